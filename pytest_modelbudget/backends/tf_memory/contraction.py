"""What Eigen's products of matrices on two threads pack of their operands, with TensorFlow's own kernels for blocks.

Read in `TensorContractionThreadPool.h`, `TensorCostModel.h` and `GeneralBlockPanelKernel.h` of Eigen, and in
`eigen_contraction_kernel.h` of TensorFlow 2.21. What blocks there are goes by the caches of the processor; those here
are of a server (`_LEVEL_1`, `_LEVEL_2`, `_LEVEL_3`), with two threads and the vectors that TensorFlow's wheels are
built for. Not counted: products that one thread makes, and those whose inner axis is shared out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

THREADS = 2
_LEVEL_1, _LEVEL_2, _LEVEL_3 = 48 << 10, 1 << 20, 32 << 20
"""Bytes of the caches of a processor: first and second level of one core, third level of all."""

_LANES = 8
"""Floats of a vector (AVX)."""

_ROWS_AT_ONCE, _COLUMNS_AT_ONCE = 16, 4
"""Elements that Eigen's innermost loop makes at once: `mr` and `nr` of `gebp_traits` without fused multiply-add."""

_LONGEST_BLOCK = 320
_UNROLLED_M, _UNROLLED_N, _SCALE_M = 48, 24, 1.5
"""`kUnrollM`, `kUnrollN` and `kScaleM` of `TensorContractionBlocking`."""

_SLICES_AT_ONCE = 2
"""Blocks of the inner axis that are packed and not used up (`EvalParallelContext`: one less than its three stages)."""

_OVERSHARDING = 8
"""Tasks of the sharded axis for each thread, from which on no other axis is shared out, with up to four threads."""

_START_CYCLES = _CYCLES_OF_THREAD = 100_000
_CYCLES_OF_TASK = 40_000
_CYCLES_OF_BYTE = 11 / 64
_STORED_BYTES_OF_LINE_SHARE = 4 * _CYCLES_OF_BYTE
_READ_DIRECTLY = 256 << 10
"""Bytes up to which a matrix whose blocks are used twice is read where it is."""

Direct = Literal["", "left", "right", "both"]
"""Which operands of a row-major product may be read where they are: those that are not transposed."""


@dataclass(frozen=True, slots=True)
class _Blocks:
    """A product in Eigen's words, whose matrices are column-major: `m` are the columns of a row-major product."""

    m: int
    n: int
    k: int
    bm: int
    bn: int
    bk: int

    @classmethod
    def of(cls, m: int, n: int, k: int, item: int, *, by_columns: bool) -> _Blocks:
        """The sizes of blocks that Eigen proposes, as TensorFlow changes those of floats."""
        bk = k if k <= _LONGEST_BLOCK else _LONGEST_BLOCK
        near, far = (n, m) if by_columns else (m, n)  # the axis that is cut for the second level, and for the third
        near_cut = _cut(near, (_LEVEL_2 - _LEVEL_1) // (_COLUMNS_AT_ONCE * item * bk), _COLUMNS_AT_ONCE)
        fits = (_LEVEL_3 - _LEVEL_2) // (item * bk * THREADS)
        far_cut = _cut(far, fits if fits >= _ROWS_AT_ONCE else far, _ROWS_AT_ONCE)
        bm, bn = (far_cut, near_cut) if by_columns else (near_cut, far_cut)
        if item == 4:
            bm = min(m, _up(int(bm * _SCALE_M), _UNROLLED_M))
            bn = min(n, _up(bn, _UNROLLED_N))
            bk = min(k, _up(k // -(-k // bk), _LANES))
        return cls(m, n, k, bm, bn, bk)

    def cycles(self, coefficients: float) -> float:
        """What Eigen reckons that a kernel needs for so many elements of the result."""
        return coefficients * (self._computed() + _STORED_BYTES_OF_LINE_SHARE)

    def _computed(self) -> float:
        wide = self.bm >= _COLUMNS_AT_ONCE and self.bn >= _ROWS_AT_ONCE
        width = 4.0 if self.bk == 1 else 1.0 if wide else 2.0
        return self.bk * width / _LANES


def packed_bytes(rows: int, inner: int, columns: int, item: int, direct: Direct = "") -> int:
    """Bytes that a row-major product of `rows` x `inner` and `inner` x `columns` writes beside its result.

    `direct` says which operands are plain matrices that are not transposed, `item` the bytes of an element.
    """
    m, n, k = columns, rows, inner
    if min(m, n, k) < 2:  # products with a vector
        return 0
    threads = _threads(m, n, k, item)
    if threads == 1 or _shards_inner_axis(m, n, k, threads):
        return 0
    by_columns = _by_columns(m, n)
    blocks = _Blocks.of(m, n, k, item, by_columns=by_columns)
    count_m, count_n, slices = -(-m // blocks.bm), -(-n // blocks.bn), -(-k // blocks.bk)
    grain_m, grain_n = _grains(blocks, by_columns=by_columns)
    tasks = -(-count_n // grain_n) if by_columns else -(-count_m // grain_m)
    alone = tasks >= _OVERSHARDING * THREADS
    at_once = min(slices, _SLICES_AT_ONCE)
    of_m = 0 if _is_direct("right", direct, item, m, k, blocks.bm >= m, count_n) else m * blocks.bk * at_once
    of_n = 0 if _is_direct("left", direct, item, n, k, blocks.bk >= k, count_m) else n * blocks.bk * at_once
    if alone and by_columns:
        of_n = min(of_n, THREADS * grain_n * blocks.bn * blocks.bk)
    elif alone:
        of_m = min(of_m, THREADS * grain_m * blocks.bm * blocks.bk)
    return (of_m + of_n) * item


def _is_direct(side: str, direct: Direct, item: int, length: int, inner: int, whole: bool, uses: int) -> bool:
    """Whether blocks of a matrix are read where they are: in one piece, used once, or twice and small."""
    if item != 4 or direct not in (side, "both"):
        return False
    return whole or uses == 1 or (uses == 2 and length * inner * item < _READ_DIRECTLY)


def _cut(length: int, fits: int, unit: int) -> int:
    """A length of blocks: what fits a cache, at most the part of one thread."""
    part = -(-length // THREADS)
    if fits <= part:
        return max(fits - fits % unit, unit)
    return min(length, _up(part, unit))


def _up(length: int, unit: int) -> int:
    return -(-length // unit) * unit


def _by_columns(m: int, n: int) -> bool:
    """Which axis is shared out (`shardByCol`)."""
    unit = _COLUMNS_AT_ONCE
    few = n // THREADS < unit
    uneven = n // THREADS < 4 * unit and n % (THREADS * unit) != 0 and (m % (THREADS * unit) == 0 or m // n >= 6)
    if m // THREADS >= unit and (few or uneven):
        return False
    return not (n // THREADS < 16 * unit and m > n * 32)


def _threads(m: int, n: int, k: int, item: int) -> int:
    by_columns = _by_columns(m, n)
    blocks = _Blocks.of(m, n, k, item, by_columns=by_columns)
    loaded = item * _CYCLES_OF_BYTE * blocks.bk  # of the operand that is read once for each block of the other
    cycles = blocks.cycles(1.0) + loaded / (m if by_columns else n)
    return min(THREADS, max(1, int((n * m * cycles - _START_CYCLES) / _CYCLES_OF_THREAD + 0.9)))


def _shards_inner_axis(m: int, n: int, k: int, threads: int) -> bool:
    """Whether threads share out the inner axis (`shardByInnerDim`): the two others are short."""
    wide = n >= _COLUMNS_AT_ONCE and m >= _ROWS_AT_ONCE
    step = (1.0 if wide else 2.0) * m * n / _LANES + 4 * _CYCLES_OF_BYTE + 4 * _CYCLES_OF_BYTE * n
    total = k * step
    added = m * n * (3 * _CYCLES_OF_BYTE + 1 / _LANES)
    if total / THREADS + 100_000 + THREADS * (added + 3_000) >= total:
        return False
    unit, part = _COLUMNS_AT_ONCE, k // THREADS
    if m * n * 4 > _LEVEL_3 // THREADS or part < 2 * unit:
        return False
    return max(m, n) // threads < unit or (part > 8 * unit and min(m, n) < 2 * unit)


def _grains(blocks: _Blocks, *, by_columns: bool) -> tuple[int, int]:
    """Blocks of a task along both axes (`coarsenM`, `coarsenN`)."""
    grain_m = grain_n = 1
    for along_m in (True, False) if by_columns else (False, True):
        if along_m:
            grain_m = _coarsened(blocks, grain_n, along_m=True)
        else:
            grain_n = _coarsened(blocks, grain_m, along_m=False)
    return grain_m, grain_n


def _coarsened(blocks: _Blocks, other: int, *, along_m: bool) -> int:
    count_m, count_n = -(-blocks.m // blocks.bm), -(-blocks.n // blocks.bn)
    count, count_other = (count_m, count_n) if along_m else (count_n, count_m)

    def parallelism(grain: int) -> float:
        tasks = -(-count // grain) * -(-count_other // other)
        return tasks / (-(-tasks // THREADS) * THREADS)

    grain, tasks_before = 1, count
    for candidate in range(1, count + 1):
        if -(-count // candidate) == tasks_before:
            continue
        size = blocks.cycles(blocks.bm * blocks.bn * float(candidate * other)) / _CYCLES_OF_TASK
        if size > 2:
            break
        tasks_before = -(-count // candidate)
        if size < 1 or parallelism(candidate) > parallelism(grain) or parallelism(candidate) == 1:
            grain = candidate
    return grain
