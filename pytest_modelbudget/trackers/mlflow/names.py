"""A model's numbers under their names in MLflow, whose charts make a section of each prefix."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from pytest_modelbudget import units
from pytest_modelbudget.budget import Budget
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.summary.metrics import METRICS, Number

_SCALES: dict[units.Kind, Number] = {
    "bytes": Fraction(1, 2**20),
    "flops": Fraction(1, 10**9),
    "share": 100,
    "seconds": 1000,
}
"""Values there are ours times this: MiB, GFLOPs, percent and milliseconds."""

NAMES = {metric.name: metric.mlflow for metric in METRICS.values()}
"""The name of every metric there, by our name."""

OPTIONAL = frozenset(metric.mlflow for metric in METRICS.values() if metric.on_request)
"""Names of what is known only of models whose registration asks for it; that they lack it is no news."""

AT_LEAST = "compute/forward_gflops_at_least"
"""FLOPs that are only a lower bound; they get a line of their own, since they cannot be compared with exact ones."""


CHARTED = frozenset((*(metric.mlflow for metric in METRICS.values() if metric.charted), AT_LEAST))
"""Names of what gets a chart; everything else is in tables and files."""


def charted(numbers: Mapping[str, float]) -> dict[str, float]:
    """What gets a chart of a model's `metrics`: the chosen ones, and the shares of budgets that are used."""
    return {name: value for name, value in numbers.items() if name in CHARTED or name.startswith("budget/")}


def used_name(metric: str) -> str:
    """The name of the share of a model-wide max that is used, in percent."""
    return f"budget/{metric}_used_pct"


def metrics(summary: Summary, limits: Sequence[Budget] = ()) -> dict[str, float]:
    """A model's numbers under their MLflow names; what is unknown, or too large for a float, is left out."""
    return {name: _rounded(value) for name, value in _metrics(summary, limits) if fits_float(value)}


def fits_float(value: Number) -> bool:
    """Whether MLflow, whose metrics are floats, can hold a number."""
    return abs(Fraction(value)) < Fraction(sys.float_info.max)


def unknown_names(known_metrics: Mapping[str, float]) -> tuple[str, ...]:
    """MLflow names of the metrics that `metrics` left out, a lower bound counted as unknown."""
    return tuple(name for name in NAMES.values() if name not in known_metrics)


def _known_value(metric: str, summary: Summary) -> Number | None:
    if metric == "flops" and summary.flops.is_lower_bound:
        return None
    return METRICS[metric].get(summary)


def _metrics(summary: Summary, limits: Sequence[Budget]) -> Iterator[tuple[str, Number]]:
    values = {metric: _known_value(metric, summary) for metric in METRICS}
    for name, metric in METRICS.items():
        if (value := values[name]) is not None:
            yield metric.mlflow, value * _SCALES.get(metric.kind, 1)
    if summary.flops.is_lower_bound and summary.flops.value is not None:
        yield AT_LEAST, summary.flops.value * _SCALES["flops"]
    for budget in limits:
        if budget.layer is not None or budget.bound != "max" or not budget.limit:
            continue
        if (value := values.get(budget.metric)) is not None:
            yield used_name(budget.metric), Fraction(value) / Fraction(budget.limit) * 100


def _rounded(value: Number) -> float:
    """Whole numbers in full, others with eight digits that mean something, since pages show every digit there is."""
    return float(value) if Fraction(value).denominator == 1 else float(f"{float(value):.8g}")
