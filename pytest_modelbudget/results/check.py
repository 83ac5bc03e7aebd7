"""The decision: an entry's summary against its budgets and its snapshot. Pure; touches no file and no framework."""

from __future__ import annotations

from datetime import date

from pytest_modelbudget.budget import Baseline, judge, loosened
from pytest_modelbudget.diff import changes
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.results.result import Result, Since, Snapshot, State, Stored
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.summary.metrics import GROWS, METRICS


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
    found, said = judge(summary, entry.parsed_budgets, base, day)
    moved = () if snapshot.before is None else changes(snapshot.before, summary)
    if base is not None and base.limits is not None:
        said = (*loosened(entry.id, entry.parsed_budgets, base.limits, entry.place), *said)
    return Result(
        id=entry.id,
        state=_state(any(one.severity == "fail" for one in found), snapshot.stored, accept),
        summary=summary,
        violations=found,
        changes=moved,
        snapshot=snapshot,
        place=entry.place,
        tags=entry.tags,
        accepted=accept,
        limits=entry.parsed_budgets,
        findings=said,
        since=None if base is None else _since(base, summary),
    )


def _since(base: Baseline, summary: Summary) -> Since:
    if base.summary is None:
        return Since(base.name, base.reason)
    totals = {name: METRICS[name].get(base.summary) for name in METRICS if name in GROWS}
    same = base.summary is summary
    return Since(base.name, totals=totals, changes=() if same else changes(base.summary, summary))


def _state(over: bool, stored: Stored, accept: bool) -> State:
    if stored is Stored.REFUSED or (stored is Stored.BROKEN and not accept):
        return State.CONFLICT
    if over:
        return State.OVER_BUDGET
    if accept or stored in (Stored.EQUAL, Stored.RESTATED, Stored.OFF):
        return State.OK
    return State.NO_SNAPSHOT if stored is Stored.MISSING else State.CHANGED
