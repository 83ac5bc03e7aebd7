"""Limits on an exported file against its model: `export: {weight_bytes: 26%, flops: +1%}`; read and judged."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction

from pytest_modelbudget import units
from pytest_modelbudget.budget.limits import Budget, Lifted, Rule
from pytest_modelbudget.budget.planned import Breach, PlaceOf
from pytest_modelbudget.budget.values import why_unknown
from pytest_modelbudget.errors import ModelBudgetError, did_you_mean
from pytest_modelbudget.summary import Export, Summary
from pytest_modelbudget.summary.export import EXPORT_METRICS
from pytest_modelbudget.summary.metrics import METRICS
from pytest_modelbudget.summary.numbers import Number, decimal_text, show

EXPORT = "export"
"""The key of the section."""

_EXAMPLE = "write export: {weight_bytes: 26%, flops: +1%}"
_MOST_CAUSES = 4


def parse_export(value: object, place_of: PlaceOf) -> Iterator[Rule]:
    """Read `export`: for each metric the share of the model's number that the file may have, or what it may have more.

    Raises:
        ModelBudgetError: the first mistake.
    """
    if value is None:
        value = dict.fromkeys(EXPORT_METRICS)
    if not isinstance(value, Mapping) or not value:
        raise ModelBudgetError(f"budgets.export: {value!r}: {_EXAMPLE}")
    for metric, text in value.items():
        if metric not in EXPORT_METRICS:
            hint = did_you_mean(metric, EXPORT_METRICS)
            raise ModelBudgetError(
                f"budgets.export: {metric!r} cannot be limited{hint}; known are {', '.join(EXPORT_METRICS)}"
            )
        limit = _parse_share(f"budgets.export.{metric}", text)
        yield Lifted(metric, "export").limited(limit, place_of((EXPORT, metric)))


def _parse_share(title: str, text: object) -> Number | None:
    """The file's number as a share of the model's: 26% as it is, +1% as 101%."""
    if text is None:
        return None
    match = re.fullmatch(r"(\+?)\s*([0-9.]+\s*%)", text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ModelBudgetError(f"{title}: {text!r} is no share of the model's number: {_EXAMPLE}")
    try:
        share = Fraction(units.parse(match[2], "share"))
    except ModelBudgetError as mistake:
        raise ModelBudgetError(f"{title}: {mistake}") from None
    return 1 + share if match[1] else share


def excess_of_export(summary: Summary, budget: Budget) -> Iterator[Breach]:
    """The number of a file that is more than its share of the model's, with what makes the difference."""
    export = summary.export
    if export is None:
        yield None, "unknown: exported_from does not say which model the file was made from"
        return
    before, after = export.numbers.get(budget.metric), METRICS[budget.metric].get(summary)
    if export.problem or before is None:
        yield None, f"unknown: {export.problem or f'{budget.metric} of {export.original} is not known'}"
    elif after is None or (budget.metric == "flops" and summary.flops.is_lower_bound):
        yield None, why_unknown(budget.metric, summary)
    elif after > before * budget.limit:
        yield after, _excess_text(export, budget, before, after)


def _excess_text(export: Export, budget: Budget, before: int, after: Number) -> str:
    """`11,800,000 bytes are 26.3% of the 44,800,000 of resnet18, and 26% is allowed: float32 -> int8 -33,000,000`."""
    kind = METRICS[budget.metric].kind
    share = f"{decimal_text(Fraction(after) / before * 100)}% of" if before else "against"
    causes = ", ".join(f"{cause.label} {cause.amount:+,}" for cause in export.causes_of(budget.metric)[:_MOST_CAUSES])
    text = f"{show(kind, after)}, {share} the {show(kind, before)} of {export.original}; {budget.text} is allowed"
    return f"{text}: {causes}" if causes else text
