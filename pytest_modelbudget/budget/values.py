"""The numbers of a summary that limits are held against, and how far they are from them."""

from __future__ import annotations

from fnmatch import fnmatchcase
from fractions import Fraction

from pytest_modelbudget import units
from pytest_modelbudget.summary import Kind, Layer, Summary
from pytest_modelbudget.summary.metrics import METRICS, PEAK_METRICS, Number


def layer_value(summary: Summary, layer: Layer, metric: str) -> Number | None:
    """A layer's number with everything inside it; None when one part is unknown."""
    rows = tuple(summary.below(layer.path)) if layer.container else (layer,)
    if metric == "share":
        return Fraction(sum(row.params for row in rows), summary.params) if summary.params else None
    values = [getattr(row, metric) for row in rows]
    return None if any(value is None for value in values) else sum(values)


def matching_layers(summary: Summary, glob: str) -> list[Layer]:
    """The layers whose path a glob matches."""
    return [layer for layer in summary.layers if fnmatchcase(layer.path, glob)]


def metric_value(summary: Summary, metric: str, layer: Layer | None) -> Number | None:
    """The number of a model, or of one of its layers; None when it is unknown."""
    return METRICS[metric].get(summary) if layer is None else layer_value(summary, layer, metric)


def why_unknown(metric: str, summary: Summary) -> str:
    """Why a number is not known."""
    reason = METRICS[metric].why_unknown(summary) if metric in METRICS else ""
    return reason or "unknown, so the limit cannot be checked"


def why_unplanned(summary: Summary, kind: Kind) -> str:
    """Why the memory of a run is not known."""
    return why_unknown(next(metric for metric, planned in PEAK_METRICS.items() if planned == kind), summary)


def distance_text(kind: units.Kind, actual: Number, limit: Number) -> str:
    """How far `actual` is from `limit`: `+1,201, +24.0%`, `+1.438 points` for shares."""
    gap = actual - limit
    if kind == "share":
        return f"{units.rounded(gap * 100, '+.4g')} points"
    amount = amount_text(kind, gap)
    return f"{amount}, {relative_text(gap, limit)}" if limit else amount


def amount_text(kind: units.Kind, gap: Number) -> str:
    """A difference with its sign: `+1,201`, `+0.5` for ratios, `+1.200 ms` for seconds."""
    if kind == "seconds":
        return f"{'-' if gap < 0 else '+'}{units.seconds(abs(Fraction(gap)))}"
    return units.rounded(gap, "+.4g") if kind == "ratio" else f"{int(gap):+,}"


def relative_text(gap: Number, limit: Number) -> str:
    """A gap as a share of the limit, never rounded to nothing."""
    text = units.rounded(Fraction(gap) / Fraction(limit), "+.1%")
    return f"{'+' if gap > 0 else '-'}<0.1%" if text in ("+0.0%", "-0.0%") else text
