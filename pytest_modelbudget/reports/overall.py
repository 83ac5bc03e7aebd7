"""The lines of a run's end that are about no single model: the base, what a reviewer should see, sums over groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

from pytest_modelbudget import units
from pytest_modelbudget.reports.listing import bounded
from pytest_modelbudget.results import Result
from pytest_modelbudget.results.groups import GroupSum, RunSummary, shared_findings
from pytest_modelbudget.summary.metrics import METRICS
from pytest_modelbudget.system.escape import harmless

_NOTES = ("ratchet", "growth not enforced", "base manifest", "model removed", "deselected")
"""Kinds that ask for nothing; all others are warnings."""


def lines(overall: RunSummary, results: Sequence[Result]) -> Iterator[str]:
    """One line for the base, each finding, and each sum."""
    if overall.base:
        yield harmless(f"base: {overall.base}")
    findings = [("warn", finding) for finding in shared_findings(results)]
    findings += [("note" if finding.kind in _NOTES else "warn", finding) for finding in overall.findings]
    yield from bounded([(finding.kind, harmless(f"{word}: {finding}")) for word, finding in findings])
    yield from (harmless(_sum(group_sum)) for group_sum in overall.sums if group_sum.state != "incomplete")


def _sum(group_sum: GroupSum) -> str:
    group, budget = group_sum.group.name, group_sum.budget
    place = f"  [{budget.place}]" if budget.place else ""
    if group_sum.violation is not None:
        word = "OVER BUDGET" if group_sum.state == "over" else "warn:"
        return f"{word} {group}: {group_sum.violation}{place}"
    assert group_sum.total is not None
    share = f" ({units.percent(Fraction(group_sum.total) / Fraction(budget.limit))})" if budget.limit else ""
    return f"sum: {group}: {budget.metric} {METRICS[budget.metric].show(group_sum.total)} of {budget.text}{share}"
