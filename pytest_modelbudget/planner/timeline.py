"""From a memory trace to a plan: the peak of the measured step, what is alive there, and the curve that leads to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_modelbudget.planner.memory_trace import MemoryEvent, MemoryTrace
from pytest_modelbudget.summary import Kind, Part, Phase, Plan, Point, Role

POINTS = 240
"""Points of a timeline, at most."""


@dataclass(frozen=True, slots=True)
class _LiveStorage:
    """One storage at the peak: the module that made it, when, and its size."""

    path: str
    made_at: int
    bytes: int


def plan_of(trace: MemoryTrace, kind: Kind, recipe: str) -> Plan:
    """The plan of what is on `trace`; `recipe` says in words what was run.

    At the peak, what the trace gives no role is an `activation` when the forward pass made it and it lives on in the
    backward pass (or, for a peak in the forward pass, to its end), else a `temporary`. The input of a training is
    held.
    """
    curve = list(trace.alive())
    start = max(min(trace.measured, len(curve) - 1), 0)
    highest = max(range(start, len(curve)), key=curve.__getitem__, default=-1)
    if highest < 0 or (trace.measured == 0 and trace.held_bytes() > curve[highest]):
        return Plan(kind, recipe, trace.held_bytes(), parts=_peak_parts(trace, {}, -1, None))
    event = trace.events[highest]
    work = trace.work
    return Plan(
        kind,
        recipe,
        curve[highest],
        phase=event.phase or _phase_before(trace.events, highest),
        path=event.path,
        op=event.op,
        parts=_peak_parts(trace, _alive_at(trace, highest), highest, event),
        timeline=tuple(_timeline_points(trace.events, curve, start, highest)),
        flops=None if work is None else sum(item.flops for item in work),
        flops_at_least=bool(trace.uncounted),
        bytes_moved=None if work is None else sum(item.moved for item in work),
    )


def _phase_before(events: Sequence[MemoryEvent], index: int) -> Phase:
    return next((event.phase for event in reversed(events[:index]) if event.phase), "")


def _alive_at(trace: MemoryTrace, index: int) -> dict[int, _LiveStorage]:
    """What was made on the memory trace and is alive during its event `index`, by number."""
    alive: dict[int, _LiveStorage] = {}
    for position, event in enumerate(trace.events[: index + 1]):
        for number in event.freed:
            alive.pop(number, None)
        for number, size in event.made:
            previous = alive.get(number)
            alive[number] = _LiveStorage(
                previous.path if previous else event.path, previous.made_at if previous else position, size
            )
    return alive


def _peak_parts(
    trace: MemoryTrace, alive: dict[int, _LiveStorage], highest: int, event: MemoryEvent | None
) -> tuple[Part, ...]:
    """What is alive at the peak, by role and module, largest first."""
    sums: dict[tuple[Role, str], int] = {}
    freed = {number for entry in trace.events[: highest + 1] for number in entry.freed}
    for item in trace.held:
        owner = trace.owners.get(item.storage, "")
        if item.storage in alive:  # it was resized meanwhile
            sums[item.role, owner] = sums.get((item.role, owner), 0) + alive[item.storage].bytes
        elif item.storage not in freed:
            sums[item.role, owner] = sums.get((item.role, owner), 0) + item.bytes
    initial = {item.storage for item in trace.held}
    trained = any(entry.phase == "backward" for entry in trace.events)
    forward_ends = _end_of_forward(trace, highest) if alive else -1
    freed_at = _freed_at(trace, highest)
    for number, entry in alive.items():
        if number in initial:
            continue
        role = trace.roles.get(number)
        if role is None:
            origin = trace.events[entry.made_at]
            lives_on = freed_at.get(number, len(trace.events)) > forward_ends
            saved = trained and lives_on and origin.phase in ("forward", "loss") and entry.made_at <= forward_ends
            role = "activation" if saved else "temporary"
        owner = trace.owners.get(number, "")
        key: tuple[Role, str] = (role, owner if role in ("gradient", "optimizer", "cast") else entry.path)
        sums[key] = sums.get(key, 0) + entry.bytes
    if event is not None and event.workspace:
        sums["workspace", event.path] = event.workspace
    parts = (Part(role, path, size) for (role, path), size in sums.items() if size)
    return tuple(sorted(parts, key=lambda part: (-part.bytes, part.role, part.path)))


def _end_of_forward(trace: MemoryTrace, index: int) -> int:
    """The last event of the forward pass that the event `index` belongs to or follows."""
    events = trace.events
    last = index
    while last > 0 and events[last].phase not in ("forward", "loss"):
        last -= 1
    while last + 1 < len(events) and events[last + 1].phase in ("forward", "loss"):
        last += 1
    return last


def _freed_at(trace: MemoryTrace, after: int) -> dict[int, int]:
    """When each storage is let go of after the event `after`: the event before which it is gone."""
    freed_at: dict[int, int] = {}
    for index in range(after + 1, len(trace.events)):
        for number in trace.events[index].freed:
            freed_at.setdefault(number, index)
    return freed_at


def _timeline_points(events: Sequence[MemoryEvent], curve: Sequence[int], start: int, highest: int) -> Iterable[Point]:
    """The curve of the measured step in at most `POINTS` points: the highest of each stretch, the peak among them."""
    length = len(curve) - start
    stretch = max(1, -(-length // POINTS))
    phase: Phase = ""
    for begin in range(start, len(curve), stretch):
        span = range(begin, min(begin + stretch, len(curve)))
        top = highest if highest in span else max(span, key=curve.__getitem__)
        phase = events[top].phase or phase
        yield Point(phase, events[top].path, curve[top])
