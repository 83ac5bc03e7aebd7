"""What a plan hangs on that its recipe does not say: the loop's habits, and the peak with other ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from pytest_modelbudget import units
from pytest_modelbudget.planner.loops import assumptions
from pytest_modelbudget.planner.memory_trace import MemoryTrace
from pytest_modelbudget.planner.recipe import ASSUMED, Training
from pytest_modelbudget.summary import Fit, Plan

LEAST_CHANGE = 0.05
"""Share of the peak by which another habit has to change it to be told."""

_RESERVE = 1.25
"""How much more than its bytes something may change of what the allocator reserves."""

_OTHER = {"outputs": "dropped", "zero_grad": "before-backward"}
"""The habit of other loops that is looked at."""

_MEANING = {
    "outputs": "what the model returned lives until the next pass",
    "zero_grad": "gradients go before the forward pass",
}


def loop_notes(
    recipe: Training,
    plan: Plan,
    trace: MemoryTrace,
    *,
    record: Callable[[Training], Plan] | None,
    plan_trace: Callable[[MemoryTrace], Plan],
) -> Iterator[str]:
    """A line for each habit that `recipe` does not say and that changes the peak by 5 % or whether it fits a device.

    `plan` is that of `trace`. `record` makes a plan of another recipe, which takes another run: it is asked for one
    only where the outputs that are alive at the peak could matter; without it their bytes are a bound of the change.
    `plan_trace` makes a plan of a changed trace.
    """
    unsaid = assumptions(recipe)
    outputs = plan.by_role().get("output", 0)
    if "outputs" in unsaid and _may_matter(plan, -outputs):
        if record is not None:
            yield from _note("outputs", plan, record(replace(recipe, outputs="dropped")))
        elif plan.peak_bytes is not None:
            yield f"{_opening('outputs')} the peak may be down to {units.size(plan.peak_bytes - outputs)}"
    if "zero_grad" in unsaid:
        later = with_gradients_until_backward(trace)
        if _may_matter(plan, later.peak() - trace.peak()):
            yield from _note("zero_grad", plan, plan_trace(later))


def _may_matter(plan: Plan, change: int) -> bool:
    """Whether a peak that is other by up to `change` bytes is worth a look."""
    if not change or plan.peak_bytes is None:
        return False
    return abs(change) >= LEAST_CHANGE * plan.peak_bytes or any(_may_turn(fit, change) for fit in plan.fits)


def _may_turn(fit: Fit, change: int) -> bool:
    """Whether a run that takes up to `change` bytes more, negative: less, may fit a device otherwise than it does."""
    return fit.room is not None and (fit.room >= 0) != (fit.room - _RESERVE * change >= 0)


def _note(key: str, plan: Plan, other: Plan) -> Iterator[str]:
    if plan.peak_bytes is None or other.peak_bytes is None:
        return
    verdicts = [
        f"it {'fits' if changed.fits else 'does not fit'} {fit.device}"
        for fit, changed in zip(plan.fits, other.fits, strict=True)
        if changed.fits is not None and changed.fits != fit.fits
    ]
    if verdicts or abs(other.peak_bytes - plan.peak_bytes) >= LEAST_CHANGE * plan.peak_bytes:
        numbers = ", and ".join([f"the peak is {units.size(other.peak_bytes)}", *verdicts])
        yield f"{_opening(key)} {numbers}"


def _opening(key: str) -> str:
    return f"assumed is {key}: {ASSUMED[key]} ({_MEANING[key]}); with {key}: {_OTHER[key]}"


def with_gradients_until_backward(trace: MemoryTrace) -> MemoryTrace:
    """`trace`, whose loop lets go of gradients before the forward pass, with one that does before the backward pass."""
    events = list(trace.events)
    gradients = {number for event in events if event.phase == "backward" for number, _ in event.made}
    gradients.update(number for number, role in trace.roles.items() if role == "gradient")  # a fused loss makes its own
    for start in trace.steps:
        begin = next((index for index in range(start, len(events)) if events[index].phase == "backward"), None)
        if begin is None or begin == start:
            continue
        later = tuple(number for number in events[start].freed if number in gradients)
        events[begin] = replace(events[begin], freed=(*events[begin].freed, *later))
        kept = tuple(number for number in events[start].freed if number not in gradients)
        events[start] = replace(events[start], freed=kept)
    return replace(trace, events=tuple(events))
