"""The one table of metrics: the numbers of a model that limits, reports and trackers know, each in one row.

A new metric is a row of `METRICS`, with the function that reads it from a summary, and a row of the table in
docs/reference/metrics.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter

from pytest_modelbudget import units
from pytest_modelbudget.summary import embeddings
from pytest_modelbudget.summary.metric import Metric as Metric
from pytest_modelbudget.summary.metric import Number as Number
from pytest_modelbudget.summary.metric import decimal_text as decimal_text
from pytest_modelbudget.summary.metric import show as show
from pytest_modelbudget.summary.model import Summary
from pytest_modelbudget.summary.plan import Kind, Plan


def _planned(kind: Kind, number: Callable[[Plan], int | None]) -> Callable[[Summary], int | None]:
    """A number of a planned run; None when it is not known, or no such run was asked for."""

    def get(summary: Summary) -> int | None:
        plan = summary.plan(kind)
        return None if plan is None else number(plan)

    return get


def _of_cache(name: str) -> Callable[[Plan], int | None]:
    """A number of the cache of a plan."""
    return lambda plan: None if plan.cache is None else getattr(plan.cache, name)


def _reason(text: str) -> str:
    return f"unknown ({text})" if text else ""


def _from_notes(word: str) -> Callable[[Summary], str]:
    """Why a number is not known: the first note of a model with this word."""
    return lambda summary: _reason(next((note for note in summary.notes if word in note.lower()), ""))


def _unplanned(kind: Kind, example: str) -> Callable[[Summary], str]:
    """Why the memory of a run is not known."""

    def why(summary: Summary) -> str:
        plan = summary.plan(kind)
        if plan is None:
            return f"unknown: no {kind} is planned: write {kind}: {example} for this model"
        return _reason(plan.notes[0] if plan.notes else "")

    return why


def _file_metric(name: str, kind: units.Kind, meaning: str, mlflow: str, line: str) -> Metric:
    """A fact of the file that a model is; not known of a model that is none."""

    def get(summary: Summary) -> int | None:
        return None if summary.file is None else getattr(summary.file, name)

    def why_unknown(summary: Summary) -> str:
        if summary.file is None:
            return "unknown: the model is built by code, and is no exported file"
        return _from_notes(line.lower())(summary) or "unknown: this kind of file does not say it"

    return Metric(
        name,
        kind,
        get,
        meaning,
        line.lower(),
        mlflow,
        line=line,
        listed=lambda summary: get(summary) is not None,
        grows=True,
        additive=True,
        on_request=True,
        charted=True,
        why_unknown=why_unknown,
    )


def _uncounted(summary: Summary) -> str:
    if not summary.flops.uncounted:
        return _from_notes("flops")(summary)
    names = ", ".join(f"{name} x{calls}" for name, calls in summary.flops.uncounted)
    known = "" if summary.flops.value is None else f"at least {units.count(summary.flops.value)}, "
    return _reason(f"{known}no formula for {names}")


_PEAK = attrgetter("peak_bytes")


def _serving_metric(name: str, number: Callable[[Plan], int | None], meaning: str, short: str, mlflow: str) -> Metric:
    """A number of an engine that serves the model."""

    def why_unknown(summary: Summary) -> str:
        plan = summary.plan("serving")
        if plan is not None and plan.cache is not None and name == "kv_bytes_per_token":
            return "unknown: no token adds to the cache of this model, which keeps states of requests alone"
        return _unplanned("serving", "{requests: 64, tokens: 32k}")(summary)

    return Metric(
        name,
        "bytes",
        _planned("serving", number),
        meaning,
        short,
        mlflow,
        grows=True,
        plan="serving",
        of_plan=number,
        on_request=True,
        charted=True,
        why_unknown=why_unknown,
    )


_TABLE = (
    Metric(
        "params",
        "count",
        lambda summary: summary.params,
        "elements of the parameters, a shared one once",
        "params",
        "params/total",
        line="Total params",
        stored=True,
        grows=True,
        additive=True,
        of_layers=True,
        charted=True,
    ),
    Metric(
        "trainable_params",
        "count",
        lambda summary: summary.trainable_params,
        "params that are trained",
        "trainable",
        "params/trainable",
        line="Trainable params",
        stored=True,
        grows=True,
        additive=True,
        of_layers=True,
        charted=True,
    ),
    Metric(
        "non_trainable_params",
        "count",
        lambda summary: summary.non_trainable_params,
        "params that are not trained",
        "frozen",
        "params/non_trainable",
        line="Non-trainable params",
        stored=True,
        grows=True,
        additive=True,
        of_layers=True,
    ),
    Metric(
        "non_embedding_params",
        "count",
        lambda summary: summary.non_embedding_params,
        "params but for those of look-up tables (embedding layers) and of heads tied to one",
        "non-emb.",
        "params/non_embedding",
        line="Non-embedding params",
        listed=lambda summary: summary.non_embedding_params != summary.params,
        grows=True,
        additive=True,
        why_unknown=lambda summary: _reason(embeddings.why_unknown(summary)),
    ),
    Metric(
        "buffers",
        "count",
        lambda summary: summary.buffers,
        "elements of torch buffers and of Keras' scales beside quantised weights",
        "buffers",
        "params/buffers",
        line="Buffers",
        listed=lambda summary: bool(summary.buffers),
        stored=True,
        grows=True,
        additive=True,
        of_layers=True,
    ),
    Metric(
        "weight_bytes",
        "bytes",
        lambda summary: summary.weight_bytes,
        "bytes of params and buffers as stored",
        "weights",
        "memory/weights_mib",
        stored=True,
        grows=True,
        additive=True,
        of_layers=True,
        charted=True,
    ),
    Metric(
        "flops",
        "flops",
        lambda summary: summary.flops.value,
        "one forward pass; a multiply-add counts 2",
        "FLOPs",
        "compute/forward_gflops",
        grows=True,
        additive=True,
        of_layers=True,
        law=True,
        charted=True,
        why_unknown=_uncounted,
    ),
    Metric(
        "activation_bytes",
        "bytes",
        lambda summary: summary.activation_bytes,
        "bytes held from the forward pass for the backward pass, params and inputs not counted",
        "activations",
        "memory/activations_mib",
        additive=True,
        of_layers=True,
        law=True,
        why_unknown=_from_notes("activation"),
    ),
    Metric(
        "inference_peak_bytes",
        "bytes",
        _planned("inference", _PEAK),
        "most bytes alive at once in one forward pass without gradients, as inference: says",
        "inference",
        "memory/inference_peak_mib",
        grows=True,
        law=True,
        plan="inference",
        of_plan=_PEAK,
        on_request=True,
        charted=True,
        why_unknown=_unplanned("inference", "{batch: 32, precision: bf16}"),
    ),
    Metric(
        "training_peak_bytes",
        "bytes",
        _planned("training", _PEAK),
        "most bytes alive at once in one training step, as training: says",
        "training",
        "memory/training_peak_mib",
        grows=True,
        law=True,
        plan="training",
        of_plan=_PEAK,
        on_request=True,
        charted=True,
        why_unknown=_unplanned("training", "{batch: 32, optimizer: adamw}"),
    ),
    _serving_metric(
        "serving_peak_bytes",
        _PEAK,
        "bytes of weights, cache and the largest pass of an engine that serves the model, as serving: says",
        "serving",
        "memory/serving_peak_mib",
    ),
    _serving_metric(
        "kv_cache_bytes",
        _of_cache("bytes"),
        "bytes that all requests of an engine keep between its passes, in whole blocks, as serving: says",
        "cache",
        "memory/kv_cache_mib",
    ),
    _serving_metric(
        "kv_bytes_per_token",
        _of_cache("bytes_per_token"),
        "bytes that a token adds to the cache while every layer keeps it, as serving: says",
        "per token",
        "memory/kv_per_token_mib",
    ),
    Metric(
        "layers",
        "count",
        lambda summary: summary.leaf_count,
        "layers that hold no other layers, sums and concatenations in a forward among them",
        "layers",
        "layers/count",
        grows=True,
    ),
    Metric(
        "largest_layer_share",
        "share",
        lambda summary: summary.largest_layer_share,
        "share of params in the largest layer",
        "largest",
        "layers/largest_share_pct",
        grows=True,
    ),
    Metric(
        "params_per_sample",
        "ratio",
        lambda summary: summary.params_per_sample,
        "params for each training sample",
        "per sample",
        "params/per_sample",
        on_request=True,
        why_unknown=lambda _: "unknown: give the size of the training set as samples",
    ),
    _file_metric(
        "file_bytes", "bytes", "bytes of an exported file, with the files of weights beside it", "file/size_mib", "File"
    ),
    _file_metric(
        "arena_bytes",
        "bytes",
        "bytes that the runtime of an exported file plans for the tensors between operators",
        "memory/arena_mib",
        "Arena",
    ),
    _file_metric("operators", "count", "operators of an exported file", "file/operators", "Operators"),
    _file_metric(
        "delegated", "count", "operators of an exported file that a delegate runs", "file/delegated", "Delegated"
    ),
)
_OF_WEIGHTS = frozenset(
    (
        *("params", "trainable_params", "non_trainable_params", "non_embedding_params", "buffers", "weight_bytes"),
        *("largest_layer_share", "params_per_sample"),
    )
)


def _of_all_weights(metric: Metric) -> Metric:
    """`metric`, not known of a model with weights that cannot be seen."""

    def unseen(summary: Summary) -> str:
        return summary.file.unseen if summary.file else ""

    return replace(
        metric,
        get=lambda summary: None if unseen(summary) else metric.get(summary),
        why_unknown=lambda summary: (
            _reason(f"at least {metric.get(summary)}, {unseen(summary)} holds weights that cannot be seen")
            if unseen(summary)
            else metric.why_unknown(summary)
        ),
    )


METRICS: dict[str, Metric] = {
    metric.name: _of_all_weights(metric) if metric.name in _OF_WEIGHTS else metric for metric in _TABLE
}
"""Every metric, by name."""

LAYER_METRICS: dict[str, units.Kind] = {
    **{metric.name: metric.kind for metric in _TABLE if metric.of_layers},
    "share": "share",
}
"""What can be limited for the layers that a glob matches; `share` is the layer's share of all params."""

PLAN_METRICS: dict[str, Kind] = {metric.name: metric.plan for metric in _TABLE if metric.plan is not None}
"""Metrics of a plan, and the section of the recipe that asks for it."""

PEAK_METRICS = {name: kind for name, kind in PLAN_METRICS.items() if name == f"{kind}_peak_bytes"}
"""The peaks among them."""

STORED = tuple(metric.name for metric in _TABLE if metric.stored)
"""Metrics that snapshots write down as they are; each is an attribute of `Summary`."""

GROWTH_METRICS = frozenset(metric.name for metric in _TABLE if metric.grows)
"""Metrics that follow from what snapshots record, so that a base has them and growth can be told."""

LAYER_GROWTH_METRICS = frozenset((*(metric.name for metric in _TABLE if metric.stored and metric.of_layers), "share"))
"""The same for layers; snapshots record no FLOPs of a row."""

FILE_METRICS = ("file_bytes", "operators", "delegated", "arena_bytes")
"""Metrics of an exported file, which its snapshot has beside what follows from its rows."""

ADDITIVE_METRICS = tuple(metric.name for metric in _TABLE if metric.additive)
"""Metrics whose sum over several models means something."""

GROWING = tuple(metric.name for metric in _TABLE if metric.law)
"""Metrics whose growth in a dimension can be limited."""
