"""Whether a run fits a device, and how exactly that is known: what is between the least and the most that it takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pytest_modelbudget.planner.allocator import Reserve, replay
from pytest_modelbudget.planner.devices import Device
from pytest_modelbudget.planner.libraries import conv_bounds, with_convolutions
from pytest_modelbudget.planner.memory_trace import PLAN_ERROR_PERCENT, MemoryTrace
from pytest_modelbudget.planner.segments import DEFAULT, Settings
from pytest_modelbudget.summary import Fit, Margin


def fit_trace(
    trace: MemoryTrace, on: Device, settings: Settings = DEFAULT, *, repeats: int = 0, reserve: Reserve | None = None
) -> Fit:
    """Whether the run on `trace` fits a device, with the reserve of the caching allocator and the highest context.

    At least it needs what is alive at once and the lowest context. On top may come the range of the context, what the
    driver keeps, what the allocator reserves without use, workspaces of convolutions where they break up its memory (a
    run does without them where they find no room), and what a plan may be off. A reserve that is too large may still
    fit: a full device makes the allocator give back what it only keeps, so the run is replayed with the device's limit.
    `reserve` is that of a replay without a limit, where it is known.
    """

    def run(trace: MemoryTrace, capacity: int | None) -> Reserve:
        return replay(trace, settings, capacity=capacity, repeats=repeats)

    reserve = reserve or run(trace, None)
    alive = reserve.peak_allocated
    limit = on.free - alive * trace.error_percent // 100
    if reserve.peak_reserved <= limit:
        reserved = reserve.peak_reserved
    elif alive <= limit and (within := run(trace, limit)).failed_at is None:
        reserved = within.peak_reserved
    elif alive > on.capacity:
        reserved = reserve.peak_reserved
    else:
        reserved = _least_reserve(partial(run, trace), max(limit, alive), reserve.peak_reserved)
    workspaces = 0
    widest = _with_workspaces(trace, on) if reserved <= limit else None
    if widest is not None and run(widest, limit).failed_at is not None:
        most = run(widest, None).peak_reserved
        workspaces = max(0, _least_reserve(partial(run, widest), limit, most) - reserved)
    return _fit(on, alive, reserved, workspaces, trace.error_percent)


def fit_bytes(reserved: int | None, on: Device) -> Fit:
    """Whether a reserve of so many bytes fits a device beside its highest context; None where it is not known."""
    return Fit(on.name, on.capacity, None) if reserved is None else _fit(on, reserved, reserved, 0, PLAN_ERROR_PERCENT)


def _least_reserve(run: Callable[[int], Reserve], low: int, high: int) -> int:
    """The capacity with which a run goes through, from `low`, with which it does not, to `high`; up to a hundredth."""
    step = high // 100
    while high - low > step:
        middle = (low + high) // 2
        low, high = (low, middle) if run(middle).failed_at is None else (middle, high)
    return high


def _with_workspaces(trace: MemoryTrace, on: Device) -> MemoryTrace | None:
    """`trace` with the largest workspaces of its convolutions; None where it has none, or nothing is known of them."""
    bounds = conv_bounds(on.platform)
    if bounds is None or not any(event.runs_without_workspace for event in trace.events):
        return None
    return with_convolutions(trace, bounds[1])


def _fit(on: Device, alive: int, reserved: int, workspaces: int, error_percent: int) -> Fit:
    error = alive * error_percent // 100
    low_context, high_context = on.context or (0, 0)
    margins = (
        ("the context of the device", high_context - low_context),
        ("what the driver keeps", on.kept),
        ("fragmentation", reserved - alive),
        ("workspaces of convolutions", workspaces),
        (f"the plan itself, {error_percent} % each way", 2 * error),
    )
    return Fit(
        on.name,
        on.capacity,
        reserved + on.capacity - on.free,
        alive - error + low_context,
        tuple(Margin(cause, size) for cause, size in margins if size > 0),
    )
