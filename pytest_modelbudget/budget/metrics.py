"""The numbers a budget can limit, and how they are written in full."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction

from pytest_modelbudget import units
from pytest_modelbudget.summary import Kind, Layer, Summary

Number = int | Fraction


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a summary: `get` gives None when it is unknown, `short` is its name in narrow columns."""

    name: str
    kind: units.Kind
    get: Callable[[Summary], Number | None]
    meaning: str
    short: str

    def show(self, value: Number) -> str:
        """`value` in full: `225,610`, `24,804 bytes`, `12,200 FLOPs`, `90.8%`, `3.76`."""
        return show(self.kind, value)


def show(kind: units.Kind, value: Number) -> str:
    """A number of one kind in full, with its unit."""
    match kind:
        case "share":
            return f"{decimals(value * 100)}%"
        case "ratio":
            return decimals(value)
        case "bytes":
            return f"{int(value):,} bytes"
        case "flops":
            return f"{int(value):,} FLOPs"
        case _:
            return f"{int(value):,}"


def decimals(value: Number) -> str:
    """Enough decimals that a value just over a limit does not look equal to it."""
    text = units.rounded(value, ",.4f")
    return text if "e" in text else text.rstrip("0").rstrip(".")


def peak(summary: Summary, kind: Kind) -> int | None:
    """The peak of a run as it was planned; None when it is not known, or no such run was asked for."""
    plan = summary.plan(kind)
    return None if plan is None else plan.peak_bytes


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("params", "count", lambda s: s.params, "elements of the parameters, a shared one once", "params"),
        Metric("trainable_params", "count", lambda s: s.trainable_params, "params that are trained", "trainable"),
        Metric(
            "non_trainable_params", "count", lambda s: s.non_trainable_params, "params that are not trained", "frozen"
        ),
        Metric(
            "buffers",
            "count",
            lambda s: s.buffers,
            "elements of torch buffers and of Keras' scales beside quantised weights",
            "buffers",
        ),
        Metric("weight_bytes", "bytes", lambda s: s.weight_bytes, "bytes of params and buffers as stored", "weights"),
        Metric("flops", "flops", lambda s: s.flops.value, "one forward pass; a multiply-add counts 2", "FLOPs"),
        Metric(
            "activation_bytes",
            "bytes",
            lambda s: s.activation_bytes,
            "bytes held from the forward pass for the backward pass, params and inputs not counted",
            "activations",
        ),
        Metric(
            "inference_peak_bytes",
            "bytes",
            lambda s: peak(s, "inference"),
            "most bytes alive at once in one forward pass without gradients, as inference: says",
            "inference",
        ),
        Metric(
            "training_peak_bytes",
            "bytes",
            lambda s: peak(s, "training"),
            "most bytes alive at once in one training step, as training: says",
            "training",
        ),
        Metric(
            "layers",
            "count",
            lambda s: len(s.leaves),
            "layers that hold no other layers, sums and concatenations in a forward among them",
            "layers",
        ),
        Metric(
            "largest_layer_share",
            "share",
            lambda s: s.largest_layer_share,
            "share of params in the largest layer",
            "largest",
        ),
        Metric(
            "params_per_sample", "ratio", lambda s: s.params_per_sample, "params for each training sample", "per sample"
        ),
    )
}
"""Every metric a budget can limit, by name."""

LAYER_METRICS: dict[str, units.Kind] = {
    "params": "count",
    "trainable_params": "count",
    "non_trainable_params": "count",
    "buffers": "count",
    "weight_bytes": "bytes",
    "flops": "flops",
    "activation_bytes": "bytes",
    "share": "share",
}
"""What can be limited for the layers that a glob matches; `share` is the layer's share of all params."""

PEAKS: dict[str, Kind] = {"inference_peak_bytes": "inference", "training_peak_bytes": "training"}
"""Metrics of a plan, and the section of the recipe that asks for it."""

_STORED = ("params", "trainable_params", "non_trainable_params", "buffers", "weight_bytes")

GROWS = frozenset((*_STORED, "flops", *PEAKS, "layers", "largest_layer_share"))
"""Metrics that snapshots record, so that a base has them and growth can be told."""

LAYER_GROWS = frozenset((*_STORED, "share"))
"""The same for layers."""

ADDITIVE = (*_STORED, "flops", "activation_bytes")
"""Metrics whose sum over several models means something."""


def layer_value(summary: Summary, layer: Layer, metric: str) -> Number | None:
    """A layer's number with everything inside it; None when one part is unknown."""
    rows = tuple(summary.below(layer.path)) if layer.container else (layer,)
    if metric == "share":
        return Fraction(sum(row.params for row in rows), summary.params) if summary.params else None
    values = [getattr(row, metric) for row in rows]
    return None if any(value is None for value in values) else sum(values)


def matching(summary: Summary, glob: str) -> list[Layer]:
    """The layers whose path a glob matches."""
    return [layer for layer in summary.layers if fnmatchcase(layer.path, glob)]


def value(summary: Summary, metric: str, layer: Layer | None) -> Number | None:
    """The number of a model, or of one of its layers; None when it is unknown."""
    return METRICS[metric].get(summary) if layer is None else layer_value(summary, layer, metric)


def unknown(metric: str, summary: Summary) -> str:
    """Why a number is not known."""
    if metric == "flops" and summary.flops.uncounted:
        names = ", ".join(f"{name} x{calls}" for name, calls in summary.flops.uncounted)
        known = "" if summary.flops.value is None else f"at least {units.count(summary.flops.value)}, "
        return f"unknown ({known}no formula for {names})"
    if metric in PEAKS:
        return unplanned(summary, PEAKS[metric])
    if metric == "params_per_sample":
        return "unknown: give the size of the training set as samples"
    reasons = [note for note in summary.notes if metric.split("_")[0].lower() in note.lower()]
    return f"unknown ({reasons[0]})" if reasons else "unknown, so the limit cannot be checked"


def unplanned(summary: Summary, kind: Kind) -> str:
    """Why the memory of a run is not known."""
    plan = summary.plan(kind)
    if plan is not None:
        return f"unknown ({plan.notes[0]})" if plan.notes else "unknown, so the limit cannot be checked"
    example = "{batch: 32, optimizer: adamw}" if kind == "training" else "{batch: 32, precision: bf16}"
    return f"unknown: no {kind} is planned: write {kind}: {example} for this model"


def distance(kind: units.Kind, actual: Number, limit: Number) -> str:
    """How far `actual` is from `limit`: `+1,201, +24.0%`, `+1.438 points` for shares."""
    gap = actual - limit
    if kind == "share":
        return f"{units.rounded(gap * 100, '+.4g')} points"
    amount = f"{int(gap):+,}" if kind != "ratio" else units.rounded(gap, "+.4g")
    return f"{amount}, {relative(gap, limit)}" if limit else amount


def relative(gap: Number, limit: Number) -> str:
    """A gap as a share of the limit, never rounded to nothing."""
    text = units.rounded(Fraction(gap) / Fraction(limit), "+.1%")
    return f"{'+' if gap > 0 else '-'}<0.1%" if text in ("+0.0%", "-0.0%") else text
