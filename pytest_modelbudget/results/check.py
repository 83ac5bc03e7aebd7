"""The decision: an entry's summary against its budgets and its snapshot. Pure; touches no file and no framework."""

from __future__ import annotations

from datetime import date

from pytest_modelbudget.budget import Baseline, judge, loosened_limits
from pytest_modelbudget.diff import changes
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.results.result import BaseComparison, Result, Snapshot, SnapshotState, State
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.summary.metrics import GROWTH_METRICS, METRICS
from pytest_modelbudget.summary.totals import number_of


def check(
    entry: ModelEntry,
    summary: Summary,
    snapshot: Snapshot,
    *,
    accept: bool = False,
    base: Baseline | None = None,
    day: date | None = None,
) -> Result:
    """Decide how a model that was counted came out; `accept` is an update run.

    `base` is what growth and inherited limits are held against, and `day` the day that waivers are: today, in UTC.
    """
    violations, findings = judge(summary, entry.parsed_budgets, base, day)
    model_changes = () if snapshot.before is None else changes(snapshot.before, summary)
    if base is not None and base.limits is not None:
        findings = (*loosened_limits(entry.id, entry.parsed_budgets, base.limits, entry.place), *findings)
    return Result(
        id=entry.id,
        state=_state(any(violation.severity == "fail" for violation in violations), snapshot.stored, accept),
        summary=summary,
        violations=violations,
        changes=model_changes,
        snapshot=snapshot,
        place=entry.place,
        tags=entry.tags,
        accepted=accept,
        limits=entry.parsed_budgets,
        findings=findings,
        since=None if base is None else _since(base, summary),
    )


def _since(base: Baseline, summary: Summary) -> BaseComparison:
    if base.summary is None:
        return BaseComparison(base.name, base.reason)
    totals = {name: number_of(base.summary, name) for name in METRICS if name in GROWTH_METRICS}
    moved = () if base.summary is summary else changes(base.summary, summary)
    return BaseComparison(base.name, totals=totals, changes=moved, before=base.summary if moved else None)


def _state(over: bool, stored: SnapshotState, accept: bool) -> State:
    if stored is SnapshotState.REFUSED or (stored is SnapshotState.BROKEN and not accept):
        return State.CONFLICT
    if over:
        return State.OVER_BUDGET
    if accept or stored in (SnapshotState.EQUAL, SnapshotState.RESTATED, SnapshotState.OFF):
        return State.OK
    return State.NO_SNAPSHOT if stored is SnapshotState.MISSING else State.CHANGED
