"""The lines of a run's end that are about no single model: the base, what a reviewer should see, sums over groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

from pytest_modelbudget import units
from pytest_modelbudget.results import Result
from pytest_modelbudget.results.groups import Overall, Sum, shared
from pytest_modelbudget.summary.metrics import METRICS
from pytest_modelbudget.system.escape import harmless

_NOTES = ("ratchet", "growth not enforced", "base manifest", "model removed", "deselected")
"""Kinds that ask for nothing; all others are warnings."""


def lines(overall: Overall, results: Sequence[Result]) -> Iterator[str]:
    """One line for the base, each finding, and each sum."""
    if overall.base:
        yield harmless(f"base: {overall.base}")
    yield from (harmless(f"warn: {finding}") for finding in shared(results))
    for finding in overall.findings:
        yield harmless(f"{'note' if finding.kind in _NOTES else 'warn'}: {finding}")
    yield from (harmless(_sum(one)) for one in overall.sums if one.state != "incomplete")


def _sum(one: Sum) -> str:
    group, budget = one.group.name, one.budget
    place = f"  [{budget.place}]" if budget.place else ""
    if one.violation is not None:
        word = "OVER BUDGET" if one.state == "over" else "warn:"
        return f"{word} {group}: {one.violation}{place}"
    assert one.total is not None
    share = f" ({units.percent(Fraction(one.total) / Fraction(budget.limit))})" if budget.limit else ""
    return f"sum: {group}: {budget.metric} {METRICS[budget.metric].show(one.total)} of {budget.text}{share}"
