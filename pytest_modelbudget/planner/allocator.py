"""What a run reserves of a device: the events on its memory trace, replayed through torch's caching allocator."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import chain

from pytest_modelbudget.planner.memory_trace import MemoryEvent, MemoryTrace
from pytest_modelbudget.planner.segments import DEFAULT, CachingAllocator, OutOfMemory, Settings


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


def replay(
    trace: MemoryTrace, settings: Settings = DEFAULT, *, capacity: int | None = None, repeats: int = 0
) -> Reserve:
    """Replay `trace` through the caching allocator of a device with `capacity` bytes for it (None: no end).

    `repeats` runs the last step so many times more, with new storages for those it makes: fragmentation settles, and
    what is reserved may still grow. A kernel's workspace is allocated after its results and freed with its end; one
    that the kernel can do without is left out where it does not fit.
    """
    events = trace.events + _repeated_events(trace, repeats)
    allocator = CachingAllocator(settings, capacity)
    blocks: dict[int, int] = {}
    try:
        for item in trace.held:
            _allocate(allocator, blocks, item.storage, item.bytes)
    except OutOfMemory:
        return _reserve(allocator, failed_at=0)
    for index, event in enumerate(events):
        _free(allocator, blocks, event)
        try:
            _run_event(allocator, blocks, event)
        except OutOfMemory:
            return _reserve(allocator, failed_at=index)
    return _reserve(allocator)


def _reserve(allocator: CachingAllocator, failed_at: int | None = None) -> Reserve:
    return Reserve(allocator.peak_allocated, allocator.peak_reserved, allocator.releases, failed_at)


def _free(allocator: CachingAllocator, blocks: dict[int, int], event: MemoryEvent) -> None:
    for storage in event.freed:
        if (address := blocks.pop(storage, None)) is not None:
            allocator.free(address)


def _run_event(allocator: CachingAllocator, blocks: dict[int, int], event: MemoryEvent) -> None:
    for storage, size in event.made:
        _allocate(allocator, blocks, storage, size)
    if event.workspace:
        with suppress(OutOfMemory) if event.runs_without_workspace else nullcontext():
            allocator.free(allocator.allocate(event.workspace))


def _allocate(allocator: CachingAllocator, blocks: dict[int, int], storage: int, size: int) -> None:
    """Allocate a storage; one that is alive already is resized as torch does, by a new block before the old goes."""
    old_address = blocks.pop(storage, None)
    if size:
        blocks[storage] = allocator.allocate(size)
    if old_address is not None:
        allocator.free(old_address)


def _repeated_events(trace: MemoryTrace, repeats: int) -> tuple[MemoryEvent, ...]:
    """The events of the last step `repeats` times more, each time with storages of new numbers.

    A storage from before the step that the step lets go of is, in the next one, the storage of the same size that the
    step made and left alive, in the order in which they were made; where there is none, nothing is let go of. What the
    step left alive in place of nothing was made once: the buckets that replicas make anew in their second pass.
    """
    if not repeats:
        return ()
    step = trace.events[trace.measured :]
    allocated = {storage: size for event in step for storage, size in event.made}
    freed = {storage for event in step for storage in event.freed}
    alive: dict[int, int] = {item.storage: item.bytes for item in trace.held}
    for event in trace.events[: trace.measured]:
        for storage in event.freed:
            alive.pop(storage, None)
        alive.update(event.made)
    unclaimed: dict[int, list[int]] = {}
    for storage, size in allocated.items():
        if storage not in freed and storage not in alive:
            unclaimed.setdefault(size, []).append(storage)
    successors: dict[int, int] = {}
    for storage, size in alive.items():
        if storage in freed and unclaimed.get(size):
            successors[storage] = unclaimed[size].pop(0)
    once = {storage for storages in unclaimed.values() for storage in storages}
    next_number = next_storage_number(trace)
    numbers, repeated = {storage: storage for storage in allocated}, []
    for _ in range(repeats):
        freed_as = {predecessor: numbers[successor] for predecessor, successor in successors.items()}
        numbers = {
            storage: storage if storage in alive or storage in once else next_number + offset
            for offset, storage in enumerate(allocated)
        }
        next_number += len(allocated)
        repeated += [_renumber(event, numbers, freed_as, once) for event in step]
    return tuple(repeated)


def next_storage_number(trace: MemoryTrace) -> int:
    """The first number above those of all storages on a memory trace."""
    allocated = (storage for event in trace.events for storage, _ in event.made)
    return 1 + max(chain((item.storage for item in trace.held), allocated), default=-1)


def _renumber(
    event: MemoryEvent, numbers: dict[int, int], freed_as: dict[int, int], left_out: Collection[int]
) -> MemoryEvent:
    if not event.made and not event.freed:
        return event
    freed = tuple([numbers.get(storage, freed_as.get(storage, -1)) for storage in event.freed])
    made = tuple([(numbers[storage], size) for storage, size in event.made if storage not in left_out])
    return MemoryEvent(event.op, event.path, event.phase, made, freed, event.workspace)  # `replace` takes far longer
