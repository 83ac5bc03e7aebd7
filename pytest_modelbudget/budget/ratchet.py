"""Limits that follow the committed number downwards."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from pytest_modelbudget import units
from pytest_modelbudget.budget.limits import Budget
from pytest_modelbudget.budget.values import matching_layers, metric_value
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.summary.metrics import Number

_STEPS = {"share": 10**6, "ratio": 10**4, "seconds": 10**9}
"""A share is written with four decimals of a percent, a ratio with four decimals, a time in whole nanoseconds."""


def limited_numbers(summary: Summary, budget: Budget) -> list[Number | None]:
    """The numbers that a budget limits: the model's, or those of each layer its glob matches."""
    if budget.layer is None:
        return [metric_value(summary, budget.metric, None)]
    return [metric_value(summary, budget.metric, layer) for layer in matching_layers(summary, budget.layer)]


def tightened_max(ratchet: Budget, largest: Number) -> Number:
    """The max that a ratchet wants above `largest`: with its slack, rounded up to what can be written."""
    exact = Fraction(largest) * (1 + ratchet.limit)
    steps = _STEPS.get(ratchet.kind, 1)
    return ceil(exact) if steps == 1 else Fraction(ceil(exact * steps), steps)


def format_limit(kind: units.Kind, limit: Number) -> str:
    """A limit as it stands in a manifest, exact: `225_610`, `24_804 B`, `12_200 FLOPs`, `81.4386%`, `3.7602`."""
    match kind:
        case "bytes":
            return f"{limit:_} B"
        case "flops":
            return f"{limit:_} FLOPs"
        case "share":
            return f"{_format_decimal(Fraction(limit) * 100)}%"
        case "seconds":
            return f"{int(limit * 10**9):_} ns"
        case "ratio":
            return _format_decimal(Fraction(limit))
        case _:
            return f"{limit:_}"


def _format_decimal(number: Fraction) -> str:
    """At most four decimals, which `tightened_max` left no more of."""
    whole, rest = divmod(number, 1)
    decimals = f"{round(rest * 10**4):04d}".rstrip("0")
    return f"{whole}.{decimals}" if decimals else str(whole)
