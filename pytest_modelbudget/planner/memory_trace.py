"""A run as a list of events: which operator of which module allocated which memory, and when it was let go of.

A memory trace is plain data, recorded by a backend; what needs a peak or a curve of memory derives it from the events.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice

from pytest_modelbudget.planner.traffic import Work
from pytest_modelbudget.summary.plan import Phase, Role

PLAN_ERROR_PERCENT = 1
"""By how much a plan may be off, each way: real steps on a CPU and byte-exact published peaks are within it
(`tests/benchmarks/memory_truth.py`, `published_peaks.py`)."""


@dataclass(frozen=True, slots=True)
class InitialStorage:
    """Memory that was there before the run; `storage` is its number on the memory trace."""

    storage: int
    bytes: int
    role: Role


@dataclass(frozen=True, slots=True)
class MemoryEvent:
    """One operator.

    `path` is the innermost module that called it, in the backward pass the one whose operator it is the gradient of
    (empty for what no module called). `made` are the storages it allocated, as (number, bytes); a number that is
    alive already was resized. `freed` are the storages let go of after the event before and before this one.
    `workspace` is what the kernel takes inside itself while it runs, where a rule is known. Views are
    left out; an event without an operator only lets go of something.
    """

    op: str
    path: str
    phase: Phase = "forward"
    made: tuple[tuple[int, int], ...] = ()
    freed: tuple[int, ...] = ()
    workspace: int = 0

    @property
    def runs_without_workspace(self) -> bool:
        """Whether it runs without its workspace, too: where one finds no room, cuDNN takes another algorithm."""
        return "convolution" in self.op


@dataclass(frozen=True, slots=True)
class MemoryTrace:
    """What a run held before it began, and its events in order.

    `roles` tell of storages made meanwhile that are known to be something lasting (`gradient`, `optimizer`, `cast`);
    what has none is an activation or a temporary, by how long it lives. `steps` are the indices of the events with
    which the steps of a training begin; the last one is measured, the others warm up. `notes` are for the reader.
    `owners` tell which of several models has a parameter, a gradient or a state, by storage.
    `work` is what the operators of the measured step (of generation: of the pass of one more token) have to do at
    least, None where that is not recorded, and `uncounted` are operators of it without a FLOP rule, with their calls.
    A plan of the run may be off by `error_percent`, each way.
    """

    held: tuple[InitialStorage, ...]
    events: tuple[MemoryEvent, ...]
    roles: Mapping[int, Role] = field(default_factory=dict)
    steps: tuple[int, ...] = (0,)
    notes: tuple[str, ...] = ()
    owners: Mapping[int, str] = field(default_factory=dict)
    work: tuple[Work, ...] | None = None
    uncounted: Mapping[str, int] = field(default_factory=dict)
    error_percent: int = PLAN_ERROR_PERCENT

    @property
    def measured(self) -> int:
        """Index of the first event that counts for the peak."""
        return self.steps[-1]

    def alive(self) -> Iterator[int]:
        """Bytes alive at each event, what was held before among them, and the kernel's workspace while it runs."""
        sizes = {item.storage: item.bytes for item in self.held}
        total = sum(sizes.values())
        for event in self.events:
            for number in event.freed:
                total -= sizes.pop(number, 0)
            for number, size in event.made:
                total += size - sizes.get(number, 0)
                sizes[number] = size
            yield total + event.workspace

    def peak(self) -> int:
        """The highest number of bytes alive at once in the measured step (without steps: in the run)."""
        initial = [self.held_bytes()] if self.measured == 0 else []
        return max(chain(initial, islice(self.alive(), self.measured, None)), default=0)

    def without_temporaries(self, phase: Phase) -> MemoryTrace:
        """The trace of a run whose `phase` is one kernel: what is made and let go of inside of it is not there."""
        made_in: dict[int, int] = {}
        temporaries: set[int] = set()
        for index, event in enumerate(self.events):
            temporaries.update(number for number in event.freed if number in made_in)
            if event.phase != phase:
                made_in.clear()
            else:
                made_in.update((number, index) for number, _ in event.made)
        events = tuple(
            replace(
                event,
                made=tuple((number, size) for number, size in event.made if number not in temporaries),
                freed=tuple(number for number in event.freed if number not in temporaries),
            )
            for event in self.events
        )
        return replace(self, events=events)

    def held_bytes(self, *roles: Role) -> int:
        """Bytes that were there before the run, of the `roles` alone when some are given."""
        return sum(item.bytes for item in self.held if not roles or item.role in roles)
