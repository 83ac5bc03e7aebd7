"""torch's caching allocator: segments of a device, and the blocks in them.

torch asks the device for segments and hands out blocks of them; what is freed stays reserved and is used again.
The rules are those of `c10/cuda/CUDACachingAllocator.cpp` (functions `round_size`, `get_allocation_size`,
`get_free_block`, `should_split`, `alloc_block`, `free_block` with `try_merge_blocks`, `release_cached_blocks`), which
are the same from torch 1.12 to 2.15 with default settings; ROCm has the same code.

Not modelled: more than one stream, private pools of CUDA graphs, garbage collection by a threshold, and that a full
device first gives back the oversize blocks alone where `max_split_size` is set.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Settings:
    """What `PYTORCH_CUDA_ALLOC_CONF` sets, in bytes; the defaults are torch's.

    `max_split_size`: blocks of this size or larger are not split, and serve only requests that nearly fill them.
    `roundup_power2_divisions`: requests are rounded up to one of so many steps between two powers of two (0: to 512 B).
    `expandable_segments`: each pool is one segment that grows and is mapped page by page. `large_segment` is
    `large_segment_size_mb` of torch 2.10 and later, a constant of 20 MiB before.
    """

    max_split_size: int | None = None
    roundup_power2_divisions: int = 0
    expandable_segments: bool = False
    large_segment: int = 20 * _MIB


DEFAULT = Settings()

BLOCK = 512
"""`kMinBlockSize`: every block is a multiple of it."""
SMALL = 1 * _MIB
"""`kSmallSize`: requests up to it are served from the pool of small blocks."""
SMALL_SEGMENT = 2 * _MIB
"""`kSmallBuffer`: the segments of the small pool."""
LARGE_REQUEST = 10 * _MIB
"""`kMinLargeAlloc`: requests from it on get a segment of their own size, rounded up to `ROUND_LARGE`."""
ROUND_LARGE = 2 * _MIB
"""`kRoundLarge`: what the segments of large requests are rounded up to."""
UNSPLIT_EXCESS = 20 * _MIB
"""`max_non_split_rounding_size`: how much larger than the request an oversize block may be."""


class OutOfMemory(Exception):
    """A request does not fit the device, not even after all cached segments were given back."""


class _MemoryBlock:
    """A part of a segment, in use or free; `before` and `after` are its neighbours in the segment."""

    __slots__ = ("address", "after", "before", "free", "pool", "size")

    def __init__(self, pool: _Pool, address: int, size: int) -> None:
        self.pool, self.address, self.size, self.free = pool, address, size, False
        self.before: _MemoryBlock | None = None
        self.after: _MemoryBlock | None = None


class _Pool:
    """The free blocks of one kind, smallest first and at equal size by address.

    `grows` is the last block of its expandable segment, None where one is to begin at `base`.
    """

    __slots__ = ("base", "blocks", "free", "grows", "small")

    def __init__(self, small: bool) -> None:
        self.small = small
        self.free: list[tuple[int, int]] = []
        self.blocks: dict[int, _MemoryBlock] = {}
        self.grows: _MemoryBlock | None = None
        self.base = 0

    def add(self, block: _MemoryBlock) -> None:
        block.free = True
        insort(self.free, (block.size, block.address))
        self.blocks[block.address] = block

    def take(self, block: _MemoryBlock) -> _MemoryBlock:
        block.free = False
        del self.free[bisect_left(self.free, (block.size, block.address))]
        del self.blocks[block.address]
        return block

    def fitting(self, size: int) -> _MemoryBlock | None:
        """The smallest free block of at least `size` bytes; the end of an expandable segment comes last."""
        position = bisect_left(self.free, (size, -1))
        for _, address in self.free[position : position + 2]:
            block = self.blocks[address]
            if block is not self.grows:
                return block
        return self.blocks[self.free[position][1]] if position < len(self.free) else None


class CachingAllocator:
    """The caching allocator of one device and one stream; addresses are made up, rising with every new segment."""

    def __init__(self, settings: Settings = DEFAULT, capacity: int | None = None) -> None:
        self.settings, self.capacity = settings, capacity
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = self.releases = 0
        self._small, self._large = _Pool(small=True), _Pool(small=False)
        self._used: dict[int, _MemoryBlock] = {}
        self._end = 0

    def allocate(self, size: int) -> int:
        """Allocate `size` bytes and return their address.

        Raises:
            OutOfMemory: they do not fit the capacity.
        """
        size = rounded(size, self.settings)
        pool = self._small if size <= SMALL else self._large
        block = self._cached(pool, size) or self._new(pool, size)
        if self._splits(block, size):
            self._split(block, size)
        self._used[block.address] = block
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return block.address

    def free(self, address: int) -> None:
        """Give a block back to its pool, joined with free neighbours in its segment."""
        block = self._used.pop(address)
        self.allocated -= block.size
        pool = block.pool
        before, after = block.before, block.after
        if before is not None and before.free:
            block = self._join(pool.take(before), block)
        if after is not None and after.free:
            block = self._join(block, pool.take(after))
        pool.add(block)

    def _cached(self, pool: _Pool, size: int) -> _MemoryBlock | None:
        """`get_free_block`: the best fit among free blocks."""
        block, limit = pool.fitting(size), self.settings.max_split_size
        if block is None:
            return None
        if limit is not None and not self.settings.expandable_segments:
            if size < limit <= block.size:
                return None
            if size >= limit and block.size >= size + UNSPLIT_EXCESS:
                return None
        return pool.take(block)

    def _new(self, pool: _Pool, size: int) -> _MemoryBlock:
        """`alloc_block`: a new segment, on a full device after all that is cached was given back."""
        if self.settings.expandable_segments:
            return self._grown(pool, size)
        if size <= SMALL:
            segment_size = SMALL_SEGMENT
        elif size < LARGE_REQUEST:
            segment_size = self.settings.large_segment
        else:
            segment_size = -(-size // ROUND_LARGE) * ROUND_LARGE
        self._reserve(segment_size)
        block = _MemoryBlock(pool, self._end, segment_size)
        # Segments never touch: blocks of two of them are never joined.
        self._end += segment_size + ROUND_LARGE
        return block

    def _grown(self, pool: _Pool, size: int) -> _MemoryBlock:
        """`try_allocate_expandable_block`: the pool's one segment, mapped further by whole pages."""
        page = self._page(pool)
        growth = self._segment_growth(pool, size)
        if self._full(growth):
            self._release()
            growth = self._segment_growth(pool, size)
        self._reserve(growth)
        end = pool.grows
        if end is None:
            # The pools are far apart, so that their segments never meet.
            pool.grows = end = _MemoryBlock(pool, pool.base or (0 if pool.small else page << 40), growth)
        elif end.free:
            pool.take(end).size += growth
        else:
            block = _MemoryBlock(pool, end.address + end.size, growth)
            block.before, end.after = end, block
            pool.grows = end = block
        return end

    def _page(self, pool: _Pool) -> int:
        return SMALL_SEGMENT if pool.small else self.settings.large_segment

    def _segment_growth(self, pool: _Pool, size: int) -> int:
        """What an expandable segment must grow by for `size` more bytes at its end."""
        page, end = self._page(pool), pool.grows
        free_end = end.size if end is not None and end.free else 0
        return -(-(size - free_end) // page) * page

    def _full(self, size: int) -> bool:
        return self.capacity is not None and self.reserved + size > self.capacity

    def _reserve(self, size: int) -> None:
        if self._full(size):
            self._release()
            if self._full(size):
                raise OutOfMemory(f"{size} bytes do not fit beside {self.reserved} of {self.capacity}")
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)

    def _release(self) -> None:
        """`release_cached_blocks`: give back segments, of expandable ones pages, that are free as a whole."""
        self.releases += 1
        for pool in (self._small, self._large):
            for block in list(pool.blocks.values()):
                if self.settings.expandable_segments:
                    self._unmap(pool, block)
                elif block.before is None and block.after is None:
                    self.reserved -= pool.take(block).size

    def _unmap(self, pool: _Pool, block: _MemoryBlock) -> None:
        """Cut the whole pages out of a free block; the hole is not used again, the segment grows at its end."""
        page = self._page(pool)
        first, last = -(-block.address // page) * page, (block.address + block.size) // page * page
        if first >= last:
            return
        pool.take(block)
        head, tail = first - block.address, block.address + block.size - last
        rest = _MemoryBlock(pool, last, tail)
        rest.after = block.after
        if rest.after is not None:
            rest.after.before = rest if tail else None
        block.size, block.after = head, None
        if head:
            pool.add(block)
        elif block.before is not None:
            block.before.after = None
        if tail:
            pool.add(rest)
        if pool.grows is block:
            pool.grows = None
            pool.base = last + page
        self.reserved -= last - first

    def _splits(self, block: _MemoryBlock, size: int) -> bool:
        """`should_split`: whether what a block has too much becomes a block of its own."""
        remainder, limit = block.size - size, self.settings.max_split_size
        if block.pool.small or self.settings.expandable_segments:
            return remainder >= BLOCK
        return (limit is None or size < limit) and remainder > SMALL

    def _split(self, block: _MemoryBlock, size: int) -> None:
        rest = _MemoryBlock(block.pool, block.address + size, block.size - size)
        block.size = size
        rest.before, rest.after = block, block.after
        if rest.after is not None:
            rest.after.before = rest
        block.after = rest
        if block.pool.grows is block:
            block.pool.grows = rest
        block.pool.add(rest)

    @staticmethod
    def _join(first: _MemoryBlock, second: _MemoryBlock) -> _MemoryBlock:
        first.size += second.size
        first.after = second.after
        if first.after is not None:
            first.after.before = first
        if first.pool.grows is second:
            first.pool.grows = first
        return first


def rounded(size: int, settings: Settings = DEFAULT) -> int:
    """`round_size`: the bytes of the block that a request of `size` bytes needs.

    >>> rounded(1), rounded(513), rounded(1200 * 2**20, Settings(roundup_power2_divisions=4)) // 2**20
    (512, 1024, 1280)
    """
    divisions = settings.roundup_power2_divisions
    if divisions > 1 and size > BLOCK * divisions:
        step = max(1, (1 << (size.bit_length() - 1)) // (1 << (divisions.bit_length() - 1)))
        return -(-size // step) * step
    return max(BLOCK, -(-size // BLOCK) * BLOCK)
