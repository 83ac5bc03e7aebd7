"""What a run reserves of a device: the events on its tape, replayed through torch's caching allocator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain

from pytest_modelbudget.planner.segments import DEFAULT, CachingAllocator, OutOfMemory, Settings
from pytest_modelbudget.planner.tape import Event, Tape


@dataclass(frozen=True, slots=True)
class Reserve:
    """What a run takes of the device, in bytes.

    `peak_allocated` (comparable with `max_memory_allocated`) counts whole blocks, so rounded sizes; `peak_reserved`
    (comparable with `max_memory_reserved`) counts segments. `releases` says how often a full device made the allocator
    give back its cached segments. `failed_at` is the index of the event that did not fit the capacity, counting
    repeated events on; the peaks are then those reached before it.
    """

    peak_allocated: int
    peak_reserved: int
    releases: int = 0
    failed_at: int | None = None


def replay(tape: Tape, settings: Settings = DEFAULT, *, capacity: int | None = None, repeats: int = 0) -> Reserve:
    """Replay `tape` through the caching allocator of a device with `capacity` bytes for it (None: no end).

    `repeats` runs the last step so many times more, with new storages for those it makes: fragmentation settles, and
    what is reserved may still grow. A kernel's workspace is allocated after its results and freed with its end.
    """
    events = tape.events + _repeated(tape, repeats)
    allocator = CachingAllocator(settings, capacity)
    blocks: dict[int, int] = {}
    try:
        for item in tape.held:
            _make(allocator, blocks, item.storage, item.bytes)
    except OutOfMemory:
        return _reserve(allocator, failed_at=0)
    for index, event in enumerate(events):
        _free(allocator, blocks, event)
        try:
            _run(allocator, blocks, event)
        except OutOfMemory:
            return _reserve(allocator, failed_at=index)
    return _reserve(allocator)


def _reserve(allocator: CachingAllocator, failed_at: int | None = None) -> Reserve:
    return Reserve(allocator.peak_allocated, allocator.peak_reserved, allocator.releases, failed_at)


def _free(allocator: CachingAllocator, blocks: dict[int, int], event: Event) -> None:
    for storage in event.freed:
        if (address := blocks.pop(storage, None)) is not None:
            allocator.free(address)


def _run(allocator: CachingAllocator, blocks: dict[int, int], event: Event) -> None:
    for storage, size in event.made:
        _make(allocator, blocks, storage, size)
    if event.workspace:
        allocator.free(allocator.allocate(event.workspace))


def _make(allocator: CachingAllocator, blocks: dict[int, int], storage: int, size: int) -> None:
    """Allocate a storage; one that is alive already is resized as torch does, by a new block before the old goes."""
    old = blocks.pop(storage, None)
    if size:
        blocks[storage] = allocator.allocate(size)
    if old is not None:
        allocator.free(old)


def _repeated(tape: Tape, repeats: int) -> tuple[Event, ...]:
    """The events of the last step `repeats` times more, each time with storages of new numbers.

    A storage from before the step that the step lets go of is, in the next one, the storage of the same size that the
    step made and left alive, in the order in which they were made; where there is none, nothing is let go of.
    """
    if not repeats:
        return ()
    step = tape.events[tape.measured :]
    made = {storage: size for event in step for storage, size in event.made}
    freed = {storage for event in step for storage in event.freed}
    alive: dict[int, int] = {item.storage: item.bytes for item in tape.held}
    for event in tape.events[: tape.measured]:
        for storage in event.freed:
            alive.pop(storage, None)
        alive.update(event.made)
    left: dict[int, list[int]] = {}
    for storage, size in made.items():
        if storage not in freed and storage not in alive:
            left.setdefault(size, []).append(storage)
    heirs: dict[int, int] = {}
    for storage, size in alive.items():
        if storage in freed and left.get(size):
            heirs[storage] = left[size].pop(0)
    count = unused(tape)
    numbers, repeated = {storage: storage for storage in made}, []
    for _ in range(repeats):
        ends = {old: numbers[heir] for old, heir in heirs.items()}
        numbers = {storage: storage if storage in alive else count + place for place, storage in enumerate(made)}
        count += len(made)
        repeated += [_renumbered(event, numbers, ends) for event in step]
    return tuple(repeated)


def unused(tape: Tape) -> int:
    """The first number above those of all storages on a tape."""
    made = (storage for event in tape.events for storage, _ in event.made)
    return 1 + max(chain((item.storage for item in tape.held), made), default=-1)


def _renumbered(event: Event, numbers: dict[int, int], ends: dict[int, int]) -> Event:
    freed = tuple(numbers.get(storage, ends.get(storage, -1)) for storage in event.freed)
    return replace(event, made=tuple((numbers[storage], size) for storage, size in event.made), freed=freed)
