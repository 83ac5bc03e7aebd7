"""Limits on the work of a run: bytes that move, FLOPs for each of them, and the least time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_modelbudget import budget
from pytest_modelbudget.budget import Baseline, judge
from pytest_modelbudget.snapshot import schema, text
from pytest_modelbudget.summary import Plan, Summary, TimeBound
from pytest_modelbudget.summary.totals import Totals
from tests.builders import towers

RUN = Plan(
    "training", "batch 32", 100, flops=8000, bytes_moved=1000,
    time_bounds=(TimeBound("A100 80GB", 12_500_000_000), TimeBound("H100", 4 * 10**9)),
)  # fmt: skip


def planned(*plans: Plan) -> Summary:
    """The towers with plans."""
    return replace(towers(), plans=plans)


def judged(summary: Summary, written: dict[str, Any], base: Summary | Totals | None = None) -> list[str]:
    """What is found and said of limits as a manifest has them."""
    limits = tuple(budget.parse(written, lambda _: None))
    found, said = judge(summary, limits, None if base is None else Baseline("main", base))
    return [*map(str, found), *(item.text for item in said)]


LIMITS = {
    "least-time": ({"min_step_seconds": "12 ms"}, [
        "min_step_seconds: at least 12.50 ms > 12.00 ms (+500.0 us, +4.2%)",
    ]),
    "least-time-within": ({"min_step_seconds": "12.5 ms"}, []),
    "bytes": ({"bytes_moved": "999 B"}, ["bytes_moved: 1,000 bytes > 999 bytes (+1, +0.1%)"]),
    "intensity": ({"arithmetic_intensity": {"min": 9}}, ["arithmetic_intensity: 8 < 9 (-1, -11.1%)"]),
}  # fmt: skip


@pytest.mark.parametrize(("written", "expected"), LIMITS.values(), ids=LIMITS)
def test_limits(written: dict[str, Any], expected: list[str]) -> None:
    """The training that is planned is held against limits, on the first device, with words of a bound."""
    inference = Plan("inference", "batch 32", 100, flops=1, bytes_moved=1)
    assert judged(planned(inference, RUN), written) == expected


UNKNOWN = {
    "no-run": ((), "bytes_moved", "no run is planned"),
    "not-recorded": ((Plan("training", "x", 1),), "bytes_moved", "what the operators of this run of a keras model move"),
    "no-device": ((replace(RUN, time_bounds=()),), "min_step_seconds", 'name one, as in fits: "A100 80GB"'),
    "no-speed": ((replace(RUN, time_bounds=(TimeBound("24 GB", None, reason="no speed"),)),), "min_step_seconds", "no speed"),
    "no-rule": ((replace(RUN, flops_at_least=True),), "arithmetic_intensity", "operators without a FLOP rule"),
}  # fmt: skip


@pytest.mark.parametrize(("plans", "metric", "words"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_not_known_breaks_a_limit(plans: tuple[Plan, ...], metric: str, words: str) -> None:
    """An unknown number is never 0, and says why."""
    limit = {"bytes_moved": "1 GB", "min_step_seconds": "1 s", "arithmetic_intensity": 1000}[metric]
    [sentence] = judged(planned(*plans), {metric: limit})
    assert "unknown" in sentence
    assert words in sentence


GROWN = {
    "same": (RUN, []),
    "grown": (replace(RUN, time_bounds=(TimeBound("A100 80GB", 10**10),)), [
        "min_step_seconds growth: at least 12.50 ms is +2.500 ms (+25.0%) on at least 10.00 ms (main); "
        "+2% is allowed: 2.300 ms too many",
    ]),
    "other-device": (replace(RUN, time_bounds=(TimeBound("T4", 10**10),)), [
        "the least time there was on T4, here on A100 80GB (main)",
    ]),
    "other-run": (replace(RUN, recipe="batch 8"), ["training there was batch 8, here batch 32 (main)"]),
}  # fmt: skip


@pytest.mark.parametrize("kept", ["summary", "totals", "snapshot"])
@pytest.mark.parametrize(("before", "expected"), GROWN.values(), ids=GROWN)
def test_growth_against_a_base(before: Plan, expected: list[str], kept: str) -> None:
    """A base has the least time of the same run on the same device, whole, in totals or in a snapshot."""
    stored = text.plan_from(before.kind, text.stored_plan(before)) if kept == "snapshot" else before
    base = Totals.of(planned(stored)) if kept == "totals" else planned(stored)
    assert judged(planned(RUN), {"min_step_seconds": {"growth": "+2%"}}, base) == expected


def test_the_work_of_another_run_is_no_base() -> None:
    """A base that planned an inference alone says nothing of the training that is planned now, and the reverse."""
    inference = replace(RUN, kind="inference", bytes_moved=1)
    said = ["bytes_moved is not known there (main)"]
    grown = {"bytes_moved": {"growth": "+2%"}}
    for base, now in ((planned(inference), planned(RUN, inference)), (planned(RUN), planned(inference))):
        assert [judged(now, grown, kept) for kept in (base, Totals.of(base))] == [said, said]


def test_bytes_are_kept_where_flops_are_a_lower_bound() -> None:
    """Operators without a FLOP rule hide the FLOPs for each byte, not the bytes."""
    stored = text.stored_plan(replace(RUN, flops_at_least=True))
    base = planned(text.plan_from("training", stored))
    assert judged(planned(replace(RUN, bytes_moved=1_100)), {"bytes_moved": {"growth": "+2%"}}, base) == [
        "bytes_moved growth: 1,100 bytes is +100 (+10.0%) on 1,000 bytes (main); +2% is allowed: 80 too many"
    ]
    assert "flops" not in stored


def test_a_stored_time_says_its_unit() -> None:
    """A whole number of picoseconds for each device; under its first name it is still read."""
    stored = text.stored_plan(RUN)
    assert stored["least_picoseconds"] == {"A100 80GB": 12_500_000_000, "H100": 4_000_000_000}
    older = {**stored, "least_time": stored.pop("least_picoseconds")}
    assert text.plan_from("training", older) == RUN
    assert schema.EstimateSchema.model_validate(older)
