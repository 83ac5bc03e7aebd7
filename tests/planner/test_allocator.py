"""A run's events, replayed through the caching allocator."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

import pytest

from pytest_modelbudget.planner import InitialStorage, MemoryEvent, MemoryTrace
from pytest_modelbudget.planner.allocator import Reserve, replay
from pytest_modelbudget.planner.segments import CachingAllocator, OutOfMemory, Settings, rounded

KIB, MIB = 2**10, 2**20


def memory_trace(
    *steps: tuple[list[tuple[int, int]], list[int]],
    held: tuple[InitialStorage, ...] = (),
    begins: tuple[int, ...] = (0,),
) -> MemoryTrace:
    """A memory trace of events: what each makes, and what goes before it."""
    return MemoryTrace(
        held, tuple(MemoryEvent("x", "", made=tuple(made), freed=tuple(freed)) for made, freed in steps), steps=begins
    )


@pytest.mark.parametrize(
    ("sizes", "allocated", "reserved"),
    [
        # pytorch/pytorch#28394: one small tensor, "max memory cached: 2.0 MB".
        pytest.param([3 * 4], 512, 2 * MIB, id="a tiny tensor takes 512 bytes of a 2 MiB segment"),
        pytest.param([513], 1024, 2 * MIB, id="rounded up to 512"),
        pytest.param([MIB, MIB], 2 * MIB, 2 * MIB, id="two of 1 MiB share a small segment"),
        pytest.param([MIB, MIB, 1], 2 * MIB + 512, 4 * MIB, id="a third needs a second one"),
        pytest.param([MIB + 1], MIB + 512, 20 * MIB, id="above 1 MiB: a segment of 20 MiB"),
        pytest.param([9 * MIB] * 2, 18 * MIB, 20 * MIB, id="two of 9 MiB in one segment of 20 MiB"),
        pytest.param(
            [9 * MIB, 10 * MIB], 20 * MIB, 20 * MIB, id="10 MiB of 11 left: 1 MiB is not split off, and counts"
        ),
        pytest.param([9 * MIB, 9 * MIB, 9 * MIB], 27 * MIB, 40 * MIB, id="what is left of 20 MiB is too small"),
        pytest.param([10 * MIB], 10 * MIB, 10 * MIB, id="from 10 MiB on a segment of its own"),
        pytest.param([11 * MIB + 1], 12 * MIB, 12 * MIB, id="its segment rounded up to 2 MiB, kept whole"),
        pytest.param([0], 0, 0, id="nothing takes nothing"),
    ],
)
def test_sizes(sizes: list[int], allocated: int, reserved: int) -> None:
    """Requests are rounded and served from segments as torch does."""
    found = replay(memory_trace((list(enumerate(sizes)), [])))
    assert (found.peak_allocated, found.peak_reserved) == (allocated, reserved)


def test_what_is_freed_is_used_again_and_stays_reserved() -> None:
    """The smallest free block that fits serves a request, and nothing goes back to the device."""
    steps = [([(0, 40 * MIB), (1, 30 * MIB)], []), ([], [0, 1]), ([(2, 25 * MIB)], []), ([(3, 36 * MIB)], [])]
    found = replay(memory_trace(*steps))
    # 25 MiB are cut from the 30 MiB segment, 36 MiB from that of 40 MiB.
    assert found == Reserve(70 * MIB, 70 * MIB)


def test_free_neighbours_become_one_block() -> None:
    """Two freed halves of a segment serve one request of both, in any order of freeing."""
    for order in ([0, 1], [1, 0]):
        found = replay(memory_trace(([(0, 9 * MIB), (1, 9 * MIB)], []), ([(2, 18 * MIB)], order)))
        assert found.peak_reserved == 20 * MIB


def test_resizing_makes_the_new_block_before_the_old_one_goes() -> None:
    """A storage that is made again while it lives is copied."""
    found = replay(memory_trace(([(0, 10 * MIB)], []), ([(0, 30 * MIB)], []), ([(0, 0)], [])))
    assert found.peak_allocated == 40 * MIB


def test_a_workspace_lives_while_its_operator_runs() -> None:
    """It is allocated after the operator's result, and free for the next."""
    events = (
        MemoryEvent("conv", "", made=((0, 10 * MIB),), workspace=16 * MIB),
        MemoryEvent("x", "", made=((1, 16 * MIB),)),
    )
    assert replay(MemoryTrace((), events)) == Reserve(26 * MIB, 26 * MIB)


def test_a_full_device_gives_back_cached_segments_first() -> None:
    """Where the reserve would pass the capacity, segments without a used block go; then the request fits."""
    steps = [([(0, 40 * MIB)], []), ([(1, 50 * MIB)], [0])]
    assert replay(memory_trace(*steps)).peak_reserved == 90 * MIB
    found = replay(memory_trace(*steps), capacity=60 * MIB)
    assert (found.peak_reserved, found.releases, found.failed_at) == (50 * MIB, 1, None)


@pytest.mark.parametrize("settings", [Settings(), Settings(expandable_segments=True)], ids=["segments", "expandable"])
def test_out_of_memory_says_where(settings: Settings) -> None:
    """The event that does not fit is named, with the peaks reached before it."""
    found = replay(memory_trace(([(0, 40 * MIB)], []), ([(1, 30 * MIB)], []), ([], [0])), settings, capacity=60 * MIB)
    assert found.failed_at == 1
    assert found.peak_allocated == 40 * MIB


def test_what_is_held_may_not_fit_either() -> None:
    """Parameters larger than the device fail at the start."""
    assert replay(memory_trace(held=(InitialStorage(0, 70 * MIB, "param"),)), capacity=60 * MIB).failed_at == 0


def test_expandable_segments_do_not_fragment() -> None:
    """A block grows at the end of the one segment, where separate segments cannot be joined."""
    steps = [([(0, 40 * MIB)], []), ([(1, 60 * MIB)], [0]), ([(2, 100 * MIB)], [1])]
    assert replay(memory_trace(*steps)).peak_reserved == 200 * MIB
    assert replay(memory_trace(*steps), Settings(expandable_segments=True)).peak_reserved == 100 * MIB


def test_expandable_segments_give_pages_back() -> None:
    """On a full device whole free pages are unmapped, also beside blocks in use."""
    steps = [([(0, 60 * MIB), (1, 10 * MIB)], []), ([(2, 70 * MIB)], [0])]
    assert replay(memory_trace(*steps), Settings(expandable_segments=True)).peak_reserved == 140 * MIB
    found = replay(memory_trace(*steps), Settings(expandable_segments=True), capacity=100 * MIB)
    assert (found.peak_allocated, found.peak_reserved, found.failed_at) == (80 * MIB, 80 * MIB, None)


def test_large_blocks_are_not_split_from_a_limit_on() -> None:
    """With max_split_size a block above it serves only requests that nearly fill it."""
    steps = [([(0, 200 * MIB)], []), ([(1, 30 * MIB)], [0]), ([(2, 190 * MIB)], [])]
    assert replay(memory_trace(*steps)).peak_reserved == 200 * MIB + 190 * MIB
    found = replay(memory_trace(*steps), Settings(max_split_size=100 * MIB))
    assert (found.peak_reserved, found.peak_allocated) == (230 * MIB, 230 * MIB)


@pytest.mark.parametrize(
    ("size", "divisions", "expected"),
    [
        # docs/source/notes/cuda.rst: 1200 with 4 divisions lies between 1024 and 2048 and is rounded up to 1280.
        pytest.param(1200 * KIB, 4, 1280 * KIB, id="the documentation's example"),
        pytest.param(1024 * KIB, 4, 1024 * KIB, id="a power of two stays"),
        pytest.param(1793 * KIB, 4, 2048 * KIB, id="up to the next power of two"),
        pytest.param(1500, 4, 1536, id="small requests are rounded to 512"),
    ],
)
def test_rounding_to_parts_of_powers_of_two(size: int, divisions: int, expected: int) -> None:
    """`roundup_power2_divisions` rounds to one of so many steps between powers of two."""
    assert rounded(size, Settings(roundup_power2_divisions=divisions)) == expected


def test_a_repeated_step_lets_go_of_what_the_step_before_left() -> None:
    """Gradients that live from one step into the next are replaced, not added up."""
    steps = [([(0, 30 * MIB), (1, 12 * MIB)], []), ([], [0])]
    again = [([(2, 30 * MIB)], []), ([(3, 12 * MIB)], [1]), ([], [2])]
    whole = memory_trace(*steps, *again, begins=(0, 2))
    found = replay(whole, repeats=5)
    assert (found.peak_allocated, found.peak_reserved) == (42 * MIB, 42 * MIB)
    assert found == replay(whole)


def test_what_a_step_makes_anew_for_good_is_made_once() -> None:
    """Replicas put other buckets in the place of their first one, in the second step alone: the third has them."""
    steps = [([(0, 40 * MIB)], []), ([(1, 25 * MIB), (2, 15 * MIB)], [0])]
    assert replay(memory_trace(*steps, begins=(0, 1)), repeats=3) == Reserve(40 * MIB, 40 * MIB)


@pytest.mark.parametrize("seed", range(10))
def test_repeating_is_as_if_the_memory_trace_were_longer(seed: int) -> None:
    """The reserve after two repetitions is that of a memory trace with two more steps, fragmentation and all."""
    source = random.Random(seed)
    sizes = [int(2 ** source.uniform(10, 26)) for _ in range(40)]
    order = source.sample(range(40), 40)
    kept = set(source.sample(range(40), 6))

    def steps(count: int) -> MemoryTrace:
        events, begins = [], []
        for step in range(count):
            begins.append(len(events))
            for place, size in enumerate(sizes):
                gone = [40 * step + item for item in order[: place // 2] if item < place - 5 and item not in kept]
                if place in kept and step:
                    gone.append(40 * (step - 1) + place)
                events.append(([(40 * step + place, size)], gone))
            events.append(([], [40 * step + item for item in range(40) if item not in kept]))
        return memory_trace(*events, begins=tuple(begins))

    once, longer = replay(steps(2)), replay(steps(4))
    assert replay(steps(2), repeats=2).peak_reserved == longer.peak_reserved >= once.peak_reserved


def test_resnet18_on_a_device() -> None:
    """Parameters and buffers allocate the 44.6904296875 MiB that pytorch/pytorch#107667 measured."""
    models = pytest.importorskip("torchvision.models")
    import torch

    with torch.device("meta"):
        model = models.resnet18()
    tensors = [
        tensor
        for module in model.modules()
        for group in (module._parameters, module._buffers)
        for tensor in group.values()
        if tensor is not None
    ]
    found = replay(memory_trace(held=tuple(InitialStorage(i, t.nbytes, "param") for i, t in enumerate(tensors))))
    assert found.peak_allocated == 44.6904296875 * MIB


class Naive:
    """The same rules over plain lists that are searched from end to end: slow, with nothing to keep in step."""

    def __init__(self) -> None:
        self.segments: list[tuple[bool, int, list[list[int]]]] = []
        self.allocated = self.reserved = self.end = 0

    def allocate(self, request: int) -> int:
        size = max(1, -(-request // 512)) * 512
        small = size <= MIB
        fits = [
            (part[1], part[0], parts, place)
            for kind, _, parts in self.segments
            if kind == small
            for place, part in enumerate(parts)
            if not part[2] and part[1] >= size
        ]
        if fits:
            _, _, parts, place = min(fits, key=lambda item: item[:2])
        else:
            room = 2 * MIB if small else 20 * MIB if size < 10 * MIB else (size + 2 * MIB - 1) // (2 * MIB) * 2 * MIB
            parts, place = [[self.end, room, 0]], 0
            self.segments.append((small, room, parts))
            self.reserved += room
            self.end += room + 2 * MIB
        start, have, _ = parts[place]
        cut = have - size >= 512 if small else have - size > MIB
        parts[place : place + 1] = [[start, size, 1], [start + size, have - size, 0]] if cut else [[start, have, 1]]
        self.allocated += size if cut else have
        return start

    def free(self, address: int) -> None:
        for _, _, parts in self.segments:
            for part in parts:
                if part[0] == address and part[2]:
                    part[2] = 0
                    self.allocated -= part[1]
            joined: list[list[int]] = []
            for part in parts:
                if joined and not joined[-1][2] and not part[2]:
                    joined[-1][1] += part[1]
                else:
                    joined.append(part)
            parts[:] = joined


def segments_of(allocator: CachingAllocator) -> list[list[tuple[int, int, bool]]]:
    """All segments, each as its blocks in order: (address, size, whether it is free)."""
    blocks = [*allocator._used.values(), *allocator._small.blocks.values(), *allocator._large.blocks.values()]
    segments = []
    for first in sorted((block for block in blocks if block.before is None), key=lambda block: block.address):
        chain = [first]
        while (after := chain[-1].after) is not None:
            chain.append(after)
        segments.append([(block.address, block.size, block.free) for block in chain])
    return segments


def requests(seed: int, length: int) -> Iterator[int]:
    """Sizes to allocate; a negative one says which living block goes, counted around."""
    source = random.Random(seed)
    for _ in range(length):
        yield -source.randrange(1, 10**6) if source.random() < 0.48 else int(2 ** source.uniform(2, 25.5))


@pytest.mark.parametrize("seed", range(20))
def test_against_a_model_without_data_structures(seed: int) -> None:
    """Every address, every segment and every block of random runs is the same."""
    ours, naive, alive = CachingAllocator(), Naive(), list[int]()
    for request in requests(seed, 400):
        if request > 0:
            address = ours.allocate(request)
            assert address == naive.allocate(request)
            alive.append(address)
        elif alive:
            address = alive.pop(-request % len(alive))
            ours.free(address)
            naive.free(address)
        assert (ours.allocated, ours.reserved) == (naive.allocated, naive.reserved)
    assert segments_of(ours) == sorted(
        [(start, size, not used) for start, size, used in parts] for _, _, parts in naive.segments
    )


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(expandable_segments=True),
        Settings(max_split_size=8 * MIB),
        Settings(roundup_power2_divisions=8),
    ],
    ids=["defaults", "expandable", "max split", "rounded up"],
)
@pytest.mark.parametrize("capacity", [None, 300 * MIB], ids=["no end", "300 MiB"])
def test_blocks_never_overlap_and_fill_their_segments(settings: Settings, capacity: int | None) -> None:
    """In random runs blocks tile the segments, used ones add up to what is allocated, all of them to the reserve."""
    allocator, alive = CachingAllocator(settings, capacity), list[int]()
    for count, request in enumerate(requests(7, 2000)):
        if request < 0 and alive:
            allocator.free(alive.pop(-request % len(alive)))
        elif request > 0:
            try:
                alive.append(allocator.allocate(request))
            except OutOfMemory:
                assert capacity is not None
        if count % 50:
            continue
        segments = segments_of(allocator)
        for segment in segments:
            for (start, size, free), (following, _, also) in pairwise(segment):
                assert start + size == following
                assert not (free and also)
        blocks = sorted(block for segment in segments for block in segment)
        assert all(a[0] + a[1] <= b[0] for a, b in pairwise(blocks))
        assert sum(size for _, size, free in blocks if not free) == allocator.allocated
        assert sum(size for _, size, _ in blocks) == allocator.reserved
        assert capacity is None or allocator.reserved <= capacity
