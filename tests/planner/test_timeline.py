"""Peaks, what is alive there, and the curve: memory traces worked out by hand."""

from __future__ import annotations

import pytest

from pytest_modelbudget.planner import InitialStorage, MemoryEvent, MemoryTrace
from pytest_modelbudget.planner.timeline import POINTS, plan_of
from pytest_modelbudget.summary import Part, Point

HELD = (InitialStorage(0, 100, "param"), InitialStorage(1, 10, "input"))
STEP = (
    MemoryEvent("mm", "a", "forward", ((2, 50),)),
    MemoryEvent("mm", "b", "forward", ((3, 30),)),
    MemoryEvent("loss", "", "loss", ((4, 1),)),
    MemoryEvent("mm_backward", "b", "backward", ((5, 40), (6, 20))),
    MemoryEvent("mm_backward", "a", "backward", ((7, 60),), (3, 5)),
    MemoryEvent("sqrt", "", "optimizer", ((8, 100), (9, 5)), (2,)),
    MemoryEvent("", "", "", (), (8,)),
)


def test_the_peak_and_what_is_alive_there() -> None:
    """Parameters, input, what the forward pass left, gradients, states and the optimizer's temporary."""
    plan = plan_of(MemoryTrace(HELD, STEP, {6: "gradient", 7: "gradient", 9: "optimizer"}), "training", "words")
    assert (plan.peak_bytes, plan.phase, plan.path, plan.op) == (296, "optimizer", "", "sqrt")
    assert plan.parts == (
        Part("param", "", 100),
        Part("temporary", "", 100),
        Part("gradient", "", 80),
        Part("input", "", 10),
        Part("optimizer", "", 5),
        Part("activation", "", 1),
    )
    assert sum(part.bytes for part in plan.parts) == plan.peak_bytes
    assert [point.bytes for point in plan.timeline] == [160, 190, 191, 251, 241, 296, 196]


def test_a_peak_in_the_backward_pass_has_activations_by_module() -> None:
    """What the forward pass made is an activation, what the backward pass made and lets go of is temporary."""
    plan = plan_of(MemoryTrace(HELD, STEP[:5], {6: "gradient"}), "training", "")
    assert (plan.peak_bytes, plan.phase, plan.path) == (251, "backward", "b")
    assert plan.parts == (
        Part("param", "", 100),
        Part("activation", "a", 50),
        Part("temporary", "b", 40),
        Part("activation", "b", 30),
        Part("gradient", "", 20),
        Part("input", "", 10),
        Part("activation", "", 1),
    )


def test_what_goes_before_the_forward_pass_ends_is_temporary() -> None:
    """Also when the peak is in the forward pass."""
    events = (
        MemoryEvent("big", "a", "forward", ((2, 500), (3, 5))),
        MemoryEvent("small", "b", "forward", ((4, 1),), (2,)),
        MemoryEvent("backward", "a", "backward", ((5, 1),)),
    )
    plan = plan_of(MemoryTrace(HELD, events), "training", "")
    assert (plan.peak_bytes, plan.phase) == (615, "forward")
    assert plan.by_role() == {"temporary": 500, "param": 100, "input": 10, "activation": 5}


def test_inference_has_no_activations() -> None:
    """Nothing is kept for a backward pass that never comes."""
    plan = plan_of(MemoryTrace(HELD, STEP[:2]), "inference", "")
    assert plan.by_role() == {"param": 100, "temporary": 80, "input": 10}


def test_only_the_last_step_counts() -> None:
    """A first step that took more (a kernel was tried out) is a warm-up."""
    events = (MemoryEvent("x", "a", made=((2, 900),)), MemoryEvent("y", "a", made=((3, 7),), freed=(2,)))
    plan = plan_of(MemoryTrace(HELD, events, {}, (0, 1)), "training", "")
    assert plan.peak_bytes == 117
    assert plan.timeline == (Point("forward", "a", 117),)


def test_the_workspace_of_a_kernel_counts_while_it_runs() -> None:
    """It has a part of its own, at the module whose kernel it is."""
    events = (MemoryEvent("conv", "a", made=((2, 5),), workspace=1000), MemoryEvent("relu", "b", made=((3, 5),)))
    plan = plan_of(MemoryTrace(HELD, events), "inference", "")
    assert plan.peak_bytes == 1115
    assert Part("workspace", "a", 1000) in plan.parts
    assert sum(part.bytes for part in plan.parts) == 1115


@pytest.mark.parametrize(
    ("events", "peak"),
    [pytest.param((), 110, id="no events"), pytest.param((MemoryEvent("", "", "", freed=(0,)),), 110, id="only less")],
)
def test_what_was_held_before_can_be_the_most(events: tuple[MemoryEvent, ...], peak: int) -> None:
    """A run that only lets go of things needs what was there."""
    plan = plan_of(MemoryTrace(HELD, events), "inference", "")
    assert plan.peak_bytes == peak == sum(part.bytes for part in plan.parts)


def test_resized_storages_count_once_with_their_last_size() -> None:
    """As sharded parameters, whose memory comes and goes under one name."""
    events = (MemoryEvent("gather", "a", made=((0, 400),)), MemoryEvent("free", "a", made=((0, 0),)))
    plan = plan_of(MemoryTrace(HELD, events), "inference", "")
    assert plan.peak_bytes == 410
    assert plan.by_role() == {"param": 400, "input": 10}


def test_a_long_timeline_is_thinned_and_keeps_its_peak() -> None:
    """Each stretch is shown by its highest point."""
    events = tuple(MemoryEvent("x", "", "forward", ((index + 2, 1),)) for index in range(5000))
    spike = MemoryEvent("y", "spike", "backward", ((9000, 10**6),))
    memory_trace = MemoryTrace(HELD, (*events[:2500], spike, MemoryEvent("", "", "", (), (9000,)), *events[2500:]))
    plan = plan_of(memory_trace, "training", "")
    assert len(plan.timeline) <= POINTS
    assert max(point.bytes for point in plan.timeline) == plan.peak_bytes == 110 + 2500 + 10**6
    assert Point("backward", "spike", 110 + 2500 + 10**6) in plan.timeline
