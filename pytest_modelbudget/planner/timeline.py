"""From a tape to a plan: the peak of the measured step, what is alive there, and the curve that leads to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_modelbudget.planner.tape import Event, Tape
from pytest_modelbudget.summary import Kind, Part, Phase, Plan, Point, Role

POINTS = 240
"""Points of a timeline, at most."""


@dataclass(frozen=True, slots=True)
class _Alive:
    """One storage at the peak: the module that made it, when, and its size."""

    path: str
    made_at: int
    bytes: int


def plan_of(tape: Tape, kind: Kind, recipe: str) -> Plan:
    """The plan of what is on `tape`; `recipe` says in words what was run.

    At the peak, what the tape gives no role is an `activation` when the forward pass made it and it lives on in the
    backward pass (or, for a peak in the forward pass, to its end), else a `temporary`. The input of a training is
    held.
    """
    curve = list(tape.alive())
    start = max(min(tape.measured, len(curve) - 1), 0)
    highest = max(range(start, len(curve)), key=curve.__getitem__, default=-1)
    if highest < 0 or (tape.measured == 0 and tape.held_bytes() > curve[highest]):
        return Plan(kind, recipe, tape.held_bytes(), parts=_parts(tape, {}, -1, None))
    event = tape.events[highest]
    return Plan(
        kind,
        recipe,
        curve[highest],
        phase=event.phase or _phase_before(tape.events, highest),
        path=event.path,
        op=event.op,
        parts=_parts(tape, _alive_at(tape, highest), highest, event),
        timeline=tuple(_thinned(tape.events, curve, start, highest)),
    )


def _phase_before(events: Sequence[Event], index: int) -> Phase:
    return next((event.phase for event in reversed(events[:index]) if event.phase), "")


def _alive_at(tape: Tape, index: int) -> dict[int, _Alive]:
    """What was made on the tape and is alive during its event `index`, by number."""
    alive: dict[int, _Alive] = {}
    for at, event in enumerate(tape.events[: index + 1]):
        for number in event.freed:
            alive.pop(number, None)
        for number, size in event.made:
            before = alive.get(number)
            alive[number] = _Alive(before.path if before else event.path, before.made_at if before else at, size)
    return alive


def _parts(tape: Tape, alive: dict[int, _Alive], highest: int, event: Event | None) -> tuple[Part, ...]:
    """What is alive at the peak, by role and module, largest first."""
    sums: dict[tuple[Role, str], int] = {}
    gone = {number for one in tape.events[: highest + 1] for number in one.freed}
    for item in tape.held:
        if item.storage in alive:  # it was resized meanwhile
            sums[item.role, ""] = sums.get((item.role, ""), 0) + alive[item.storage].bytes
        elif item.storage not in gone:
            sums[item.role, ""] = sums.get((item.role, ""), 0) + item.bytes
    held = {item.storage for item in tape.held}
    trained = any(one.phase == "backward" for one in tape.events)
    forward_ends = _end_of_forward(tape, highest) if alive else -1
    dies = _deaths(tape, highest)
    for number, one in alive.items():
        if number in held:
            continue
        role = tape.roles.get(number)
        if role is None:
            first = tape.events[one.made_at]
            lives_on = dies.get(number, len(tape.events)) > forward_ends
            saved = trained and lives_on and first.phase in ("forward", "loss") and one.made_at <= forward_ends
            role = "activation" if saved else "temporary"
        key: tuple[Role, str] = (role, "" if role in ("gradient", "optimizer", "cast") else one.path)
        sums[key] = sums.get(key, 0) + one.bytes
    if event is not None and event.workspace:
        sums["workspace", event.path] = event.workspace
    parts = (Part(role, path, size) for (role, path), size in sums.items() if size)
    return tuple(sorted(parts, key=lambda part: (-part.bytes, part.role, part.path)))


def _end_of_forward(tape: Tape, index: int) -> int:
    """The last event of the forward pass that the event `index` belongs to or follows."""
    events = tape.events
    at = index
    while at > 0 and events[at].phase not in ("forward", "loss"):
        at -= 1
    while at + 1 < len(events) and events[at + 1].phase in ("forward", "loss"):
        at += 1
    return at


def _deaths(tape: Tape, after: int) -> dict[int, int]:
    """When each storage is let go of after the event `after`: the event before which it is gone."""
    found: dict[int, int] = {}
    for at in range(after + 1, len(tape.events)):
        for number in tape.events[at].freed:
            found.setdefault(number, at)
    return found


def _thinned(events: Sequence[Event], curve: Sequence[int], start: int, highest: int) -> Iterable[Point]:
    """The curve of the measured step in at most `POINTS` points: the highest of each stretch, the peak among them."""
    length = len(curve) - start
    stretch = max(1, -(-length // POINTS))
    phase: Phase = ""
    for first in range(start, len(curve), stretch):
        span = range(first, min(first + stretch, len(curve)))
        at = highest if highest in span else max(span, key=curve.__getitem__)
        phase = events[at].phase or phase
        yield Point(phase, events[at].path, curve[at])
