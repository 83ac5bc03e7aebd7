"""Numbers of any size are printed, exactly or in exponents, whatever a float and Python's own digits can hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import pytest

from pytest_modelbudget import budget, snapshot, units
from pytest_modelbudget.budget import Baseline
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError, Place
from pytest_modelbudget.reports import REPORTS, github, overall, render, terminal, text
from pytest_modelbudget.results import Result, Snapshot, SnapshotState, check, codec
from pytest_modelbudget.results.groups import ModelGroup, RunSummary, sums
from pytest_modelbudget.summary import Flops, Plan, Summary
from pytest_modelbudget.summary.metrics import METRICS
from pytest_modelbudget.summary.plan import Part, Point
from pytest_modelbudget.summary.show import plans
from pytest_modelbudget.system.intact import any_digits
from pytest_modelbudget.trackers.mlflow import artifacts, names
from tests.builders import towers

LIMITS = {
    "params": {"max": 6000, "warn": "90%", "growth": "+2%", "min": 1},
    "weight_bytes": "20 kB",
    "flops": "1 MFLOPs",
    "largest_layer_share": {"max": "1%", "growth": "+1 points"},
    "params_per_sample": 0.5,
    "layers": {"dense*": {"params": {"max": "1k", "growth": "+1k"}, "share": "1%"}},
}


def huge(power: int) -> Summary:
    """The towers with weights of `10**power` times as many elements."""
    layers = tuple(
        replace(layer, weights=tuple(replace(weight, shape=(10**power, *weight.shape)) for weight in layer.weights))
        for layer in towers().layers
    )
    return replace(towers(), layers=layers, flops=Flops(7 * 10**power), samples=3)


@pytest.fixture(params=[30, 400, 5000], ids=["long", "no float", "more digits than Python prints"])
def power(request: pytest.FixtureRequest) -> int:
    """How large."""
    return int(request.param)


@pytest.fixture(params=["grown", "shrunk"])
def checked(request: pytest.FixtureRequest, power: int) -> Result:
    """A model that became huge, or was."""
    limits = tuple(budget.parse(LIMITS, lambda below: Place("modelbudget.yaml", 7)))
    entry = ModelEntry("towers", build="a:b", budgets=limits, place=Place("modelbudget.yaml", 5), samples=3)
    before, now = replace(towers(), samples=3), huge(power)
    if request.param == "shrunk":
        before, now = now, before
    with any_digits():
        stored = Snapshot(SnapshotState.DIFFERENT, "__model_budget__/towers.yaml", before=before)
        result = check(entry, now, stored, base=Baseline("HEAD^1", before))
    return replace(result, nodeid="modelbudget.yaml::towers")


@pytest.mark.parametrize("kind", REPORTS)
def test_every_report_prints_them(checked: Result, kind: str) -> None:
    """Beside others, and as JSON exactly."""
    page = render(kind, [checked, replace(checked, id="other")])
    assert ("2 over budget" if kind == "badge" else "towers") in page or not checked.state.failed
    if kind == "json":
        with any_digits():
            assert json.loads(page)["models"][1]["summary"]["params"] == checked.summary.params  # type: ignore[union-attr]


def test_the_terminal_and_annotations_print_them(checked: Result) -> None:
    """No line of the table is as long as the number."""
    with any_digits():
        lines = list(terminal.closing_lines([checked]))
        assert max(len(line) for shown in lines for line in shown.splitlines()) <= 80
        assert "OVER BUDGET" in terminal.failure(checked)
        assert list(github.commands([checked], text.DEFAULT_SETTING))


def test_they_travel(checked: Result) -> None:
    """From worker to controller, digit by digit."""
    assert checked.summary is not None
    assert codec.unpack(codec.pack(checked)).summary == checked.summary


def test_a_snapshot_holds_what_a_machine_could() -> None:
    """Numbers of models that could be are read back from what was written; any larger is said to be damaged."""
    assert snapshot.read(snapshot.render(huge(12), declared="a")).params == huge(12).params
    with any_digits(), pytest.raises(ModelBudgetError, match="a number of 404 characters"):
        snapshot.read(snapshot.render(huge(400), declared="a"))


def test_sums_over_groups_print_them(checked: Result) -> None:
    """And the share of the limit that is used."""
    limits = tuple(budget.parse({"params": {"max": 1}}, lambda below: None))
    with any_digits():
        judged = tuple(sums([ModelGroup("g", "modelbudget.yaml", limits, ("towers",))], [checked]))
        assert list(overall.lines(RunSummary("HEAD", (), judged), [checked]))


def test_mlflow_gets_what_a_float_can_hold(power: int) -> None:
    """The rest is unknown there, never infinite and never 0."""
    metrics = names.metrics(huge(power), tuple(budget.parse(LIMITS, lambda below: None)))
    assert ("params/total" in metrics) == (power < 300)
    assert ("params/total" in names.unknown_names(metrics)) == (power > 300)
    assert float("inf") not in metrics.values()
    assert artifacts._percent(Fraction(10**power)) > 10**30


def test_a_curve_of_any_height_is_drawn(power: int) -> None:
    """In the same picture; a run in which nothing is alive has a page too."""
    points = tuple(Point("forward", "a", size * 10**power) for size in (1, 4, 2))
    plan = Plan("inference", "batch 1", peak_bytes=4 * 10**power, timeline=points, parts=(Part("param", "a", 0),))
    with any_digits():
        curve = plans.memory_curve(plan)
    assert curve is not None
    assert [y for _, y in _points(curve.line)] == [158.3, 33.3, 116.7]  # 200 - 200 * size / (1.2 * 4)
    model = replace(towers(), plans=(plan,))
    assert "inference" in render("html", [Result("a", state=check(ModelEntry("a", build="a:b"), model, Snapshot(SnapshotState.OFF)).state, summary=model)])  # fmt: skip


def _points(line: str) -> Iterator[tuple[float, float]]:
    for point in line.split():
        x, y = point.split(",")
        yield float(x), float(y)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (units.short(10**400), "1.000e+400"),
        (units.short(9_999_000_000_000_000), "9999T"),
        (units.size(10**400), "1.000e+400 B"),
        (units.flops(2 * 10**5000), "2.000e+5000 FLOPs"),
        (units.percent(Fraction(10**400)), "1.000e+402%"),
        (units.percent(-Fraction(10**400)), "-1.000e+402%"),
        (units.percent(6201), "620100.0%"),
        (units.rounded(10**400, "+.1%"), "+1.000e+402%"),
        (units.rounded(Fraction(-1, 3000), "+.1%"), "-0.0%"),
        (METRICS["params_per_sample"].show(Fraction(10**400, 3)), "3.333e+399"),
        (METRICS["params_per_sample"].show(Fraction(47, 8)), "5.875"),
        (METRICS["largest_layer_share"].show(Fraction(10**400)), "1.000e+402%"),
    ],
)
def test_units(shown: str, expected: str) -> None:
    """Short where short is what is wanted; what a float can say is said as before."""
    assert shown == expected


def test_a_limit_of_fifty_digits_is_read() -> None:
    """Written out, and as an int that a decorator was given; one that only wastes time is refused."""
    assert units.parse("1" + "0" * 50, "count") == 10**50
    assert units.parse(10**50, "count") == 10**50
    for endless in ("1" + "0" * 5000, 10**5000):
        with pytest.raises(ModelBudgetError, match="more than 60 characters"):
            units.parse(endless, "count")
