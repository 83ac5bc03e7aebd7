"""Whole plans: workspaces, the reserve and devices, on memory traces worked out by hand."""

from __future__ import annotations

import pytest

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import InitialStorage, MemoryEvent, MemoryTrace
from pytest_modelbudget.planner.memory import memory_plan

MIB = 2**20
CUBLAS = 8_519_680  # pytorch/pytorch#95668
HOPPER = 32 * MIB
MEMORY_TRACE = MemoryTrace(
    (InitialStorage(0, 100 * MIB, "param"),),
    (
        MemoryEvent("aten.mm", "a", "forward", ((1, 30 * MIB),)),
        MemoryEvent("aten.convolution", "b", "forward", ((2, 20 * MIB),), (1,)),
        MemoryEvent("aten.relu", "c", "forward", ((3, 40 * MIB),)),
    ),
)


def test_a_product_keeps_a_workspace_and_the_range_says_what_others_take() -> None:
    """At the peak: weights, two results and cuBLAS' workspace; at most Hopper's, or a convolution's."""
    plan = memory_plan(MEMORY_TRACE, "inference", "words", torch="2.6.0")
    assert plan.peak_bytes == 160 * MIB + CUBLAS
    assert plan.low_bytes == 160 * MIB
    assert plan.high_bytes == max(160 * MIB + HOPPER, 120 * MIB + 2 * 20 * MIB + HOPPER)
    assert plan.by_role()["workspace"] == CUBLAS
    assert sum(part.bytes for part in plan.parts) == plan.peak_bytes


def test_the_reserve_is_made_of_segments() -> None:
    """Large requests get segments of their own, in steps of 2 MiB; the 30 MiB that went serve the 20, not the 40."""
    plan = memory_plan(MEMORY_TRACE, "inference", "words", torch="2.6.0")
    assert plan.reserved_bytes == (100 + 30 + 40 + 20) * MIB  # the workspace takes a segment of 20 MiB


def test_whether_it_fits_is_told_for_each_device_by_the_name_that_was_written() -> None:
    """The need has the context of the device in it."""
    plan = memory_plan(MEMORY_TRACE, "inference", "words", torch="2.6.0", devices=["1 GB", "rtx 4090", "200 MB"])
    assert [(fit.device, fit.fits) for fit in plan.fits] == [("1 GB", True), ("rtx 4090", True), ("200 MB", False)]
    assert all(fit.needs is not None and fit.needs > (plan.reserved_bytes or 0) for fit in plan.fits[:2])
    [note] = plan.notes
    assert note.startswith("what fits: a need contains the caching allocator's reserve, the context of the device")


def test_a_device_that_nobody_knows() -> None:
    """One error, with what is near."""
    with pytest.raises(ModelBudgetError, match="no device named 'A100 90GB'"):
        memory_plan(MEMORY_TRACE, "inference", "words", torch="2.6.0", devices=["A100 90GB"])
