"""Whether a run fits a device, and how exactly that is known; on memory traces worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from pytest_modelbudget import budget
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.planner import InitialStorage, MemoryEvent, MemoryTrace
from pytest_modelbudget.planner.devices import device_by_name
from pytest_modelbudget.planner.margins import fit_bytes, fit_trace
from pytest_modelbudget.planner.segments import Settings
from pytest_modelbudget.reports import text
from pytest_modelbudget.results import Snapshot, SnapshotState, check
from pytest_modelbudget.summary import Fit, Margin, Plan
from pytest_modelbudget.summary.show import plans
from tests.builders import towers

MIB, GIB = 2**20, 2**30


def run(*sizes: int) -> MemoryTrace:
    """Each size is held in turn, one after another."""
    events = tuple(
        MemoryEvent("x", "", made=((n, size),), freed=(n - 1,) if n > 1 else ()) for n, size in enumerate(sizes, 1)
    )
    return MemoryTrace((InitialStorage(0, 0, "param"),), events)


@pytest.mark.parametrize(
    ("size", "verdict"),
    [
        pytest.param(7600 * MIB, "fits", id="with the highest context and a hundredth more"),
        pytest.param(7630 * MIB, "tight", id="not with a hundredth more"),
        pytest.param(8140 * MIB, "tight", id="with the lowest context and a hundredth less"),
        pytest.param(8160 * MIB, "does not fit", id="not even so"),
    ],
)
def test_verdict(size: int, verdict: str) -> None:
    """By hand on 8 GiB: what is alive, give or take a hundredth, beside a context of 119 to 500 MiB."""
    fit = fit_trace(run(size), device_by_name("8 GiB"))
    assert (fit.verdict, fit.needs) == (verdict, size + 500 * MIB)
    assert (fit.low, fit.high) == (size - size // 100 + 119 * MIB, size + size // 100 + 500 * MIB)
    assert [margin.cause for margin in fit.margins] == ["the context of the device", "the plan itself, 1 % each way"]
    assert fit_bytes(size, device_by_name("8 GiB")) == fit


def test_an_estimate_is_tight_by_its_own_error() -> None:
    """Where a plan may be off by 10 %, 7,200 MiB may not fit 8 GiB, with 500 MiB for the context."""
    assert fit_trace(run(7200 * MIB), device_by_name("8 GiB")).verdict == "fits"
    fit = fit_trace(replace(run(7200 * MIB), error_percent=10), device_by_name("8 GiB"))
    assert (fit.verdict, cause(fit, "the plan itself, 10 % each way")) == ("tight", 2 * 720 * MIB)


def cause(fit: Fit, name: str) -> int:
    """The bytes of a cause."""
    return next((margin.bytes for margin in fit.margins if margin.cause == name), 0)


def test_a_broken_up_reserve_is_tight() -> None:
    """20 MiB lie in a segment of 3 GiB that is else free, so 5 GiB have to be reserved beside it."""
    trace = MemoryTrace(
        (),
        (
            MemoryEvent("x", "", made=((1, 3 * GIB),)),
            MemoryEvent("x", "", made=((2, 20 * MIB),), freed=(1,)),
            MemoryEvent("x", "", made=((3, 5 * GIB),)),
        ),
    )
    fit = fit_trace(trace, device_by_name("8 GiB"))
    assert fit.verdict == "tight"
    assert cause(fit, "fragmentation") == pytest.approx(3 * GIB - 20 * MIB, abs=52 * MIB)
    assert fit_trace(trace, device_by_name("16 GiB")).verdict == "fits"


def convolving(size: int) -> MemoryTrace:
    """A convolution, 20 MiB that are kept, and then 4.5 GiB in place of what the convolution made."""
    return MemoryTrace(
        (),
        (
            MemoryEvent("aten.convolution", "", made=((1, size),)),
            MemoryEvent("x", "", made=((2, 20 * MIB),)),
            MemoryEvent("x", "", made=((3, 4608 * MIB),), freed=(1,)),
        ),
    )


def test_a_workspace_that_finds_no_room_is_done_without() -> None:
    """4 GiB of result would have 8 of workspace, and fit 8 GiB without."""
    fit = fit_trace(convolving(4 * GIB), device_by_name("8 GiB"))
    assert (fit.verdict, cause(fit, "workspaces of convolutions")) == ("fits", 0)


def test_a_workspace_may_break_up_the_memory() -> None:
    """4 GiB of workspace leave a segment; the 20 MiB lie in it, and it cannot be given back for the 4.5 GiB."""
    fit = fit_trace(convolving(2 * GIB), device_by_name("8 GiB"))
    assert fit.verdict == "tight"
    needed, without = 4 * GIB + 4608 * MIB, 2 * GIB + 20 * MIB + 4608 * MIB
    assert cause(fit, "workspaces of convolutions") == pytest.approx(needed - without, abs=100 * MIB)


def test_a_reserve_that_can_be_given_back_fits() -> None:
    """4 and 5 GiB one after another reserve 9 GiB where there is room, and fit into 8 where there is not."""
    found = fit_trace(run(4 * GIB, 5 * GIB), device_by_name("8 GiB"))
    assert found.fits is True
    assert found.needs == 5 * GIB + 500 * MIB


def test_what_is_alive_at_once_does_not_fit() -> None:
    """Without anything to give back the need is the whole reserve."""
    memory_trace = MemoryTrace((InitialStorage(0, 4 * GIB, "param"), InitialStorage(1, 5 * GIB, "param")), ())
    assert fit_trace(memory_trace, device_by_name("8 GiB")).needs == 9 * GIB + 500 * MIB
    assert fit_trace(memory_trace, device_by_name("8 GiB"), Settings(expandable_segments=True)).fits is False


def test_an_unknown_reserve_stays_unknown() -> None:
    """Neither fits nor does not."""
    assert fit_bytes(None, device_by_name("T4")).fits is None
    assert fit_bytes(10 * GIB, device_by_name("T4")).fits is True


FITS = {
    "fits": ((20, 6), "fits 30 B (needs up to 26 B of 30 B)", "26/30"),
    "tight": ((28, 4), "tight on 30 B (needs 28 B to 32 B of 30 B: the context of the device 4 B)", "32/30"),
    "does not": ((31, 4), "does not fit 30 B (needs at least 31 B of 30 B)", "31/30"),
    "exact": ((20, 0), "fits 30 B (needs 20 B of 30 B)", "20/30"),
}


@pytest.mark.parametrize(("numbers", "words", "used"), FITS.values(), ids=FITS)
def test_a_need_is_the_same_number_everywhere(numbers: tuple[int, int], words: str, used: str) -> None:
    """The end of the range that the verdict hangs on: in words, in what a limit says, and in the share that is used."""
    low, context = numbers
    fit = Fit("30 B", 30, low + 3, low, (Margin("the context of the device", context),) if context else ())
    plan = Plan("training", "sgd", 7, fits=(fit,))
    assert plans.fit_text(fit) == words
    limits = tuple(budget.parse({"fits": {"device": "30 B", "tight": "fail"}}, lambda _: None))
    result = check(
        ModelEntry("m", "a:b", budgets=limits), replace(towers(), plans=(plan,)), Snapshot(SnapshotState.OFF)
    )
    assert text.used_shares(result)["fits"] == Fraction(used)
    assert [violation.actual for violation in result.violations] == ([] if fit.fits else [fit.decisive])
    need = words.split("(")[1].removesuffix(")")
    assert all(need in str(violation) for violation in result.violations)
