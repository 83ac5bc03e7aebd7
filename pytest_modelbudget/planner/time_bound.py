"""The least time of a pass or a step on a device: no run of its operators, one after another, takes less.

The sum over operators of the longer of two times: FLOPs at the highest rate of their dtype, and bytes that have to move
at the bandwidth of the memory (Williams et al., Roofline, 2009, operator by operator). What the chip may hold from one
pass to the next, its last cache, shared memory and registers, is taken off the reads and the writes of each pass. Not
in it: communication between ranks, launches, operators without a FLOP rule, and all that `traffic` leaves out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from pytest_modelbudget.planner.devices import card_of, device_data
from pytest_modelbudget.planner.traffic import Work
from pytest_modelbudget.summary.plan import PICOSECONDS, BoundPart, Limited, TimeBound

_COMPUTE: Limited = "compute"
_MEMORY: Limited = "memory"
_MIB = 2**20
_NEGLIGIBLE = 0.01
"""Share of FLOPs of a dtype without a rate that may be taken to need no time: the bound is lower by it."""

_PER_UNIT = 768 * 2**10
"""Bytes of registers, shared memory and tensor memory in one multiprocessor, at most (Blackwell)."""


@dataclass(frozen=True, slots=True)
class Speed:
    """The most that a device does in a second: FLOPs by dtype, bytes of its memory; `on_chip` bytes need no memory."""

    flops: Mapping[str, int]
    bandwidth: int
    on_chip: int


def speed_of(device: str) -> Speed | None:
    """What a device can do at most; None where that is not known, as of a size without a name.

    Raises:
        ModelBudgetError: no such device.
    """
    return _speeds().get(card_of(device))


def time_bounds(work: Sequence[Work], devices: Iterable[str]) -> Iterator[TimeBound]:
    """The least time of `work` on each of `devices` whose speed is known; a size without a name has none.

    Where the rate of a dtype is not known, the time is None, with the reason.

    Raises:
        ModelBudgetError: no such device.
    """
    for device in devices:
        if (speed := speed_of(device)) is not None:
            yield _time_bound(work, device, speed)


def _time_bound(work: Sequence[Work], device: str, speed: Speed) -> TimeBound:
    if unknown := _unknown_dtypes(work, speed):
        return TimeBound(device, None, reason=f"how fast {device} multiplies {', '.join(unknown)} is not known")
    longer: Counter[tuple[str, Limited]] = Counter()
    computing: Counter[tuple[str, Limited]] = Counter()
    for item in work:
        rate = speed.flops.get(item.dtype)
        compute = item.least_flops * PICOSECONDS // rate if rate else 0
        memory = _memory_bytes(item, speed.on_chip) * PICOSECONDS // speed.bandwidth
        computing[item.path, _COMPUTE] += compute
        longer[item.path, _COMPUTE if compute >= memory else _MEMORY] += max(compute, memory)
    with_memory = longer.total() - kept_on_chip(work, speed.on_chip) * PICOSECONDS // speed.bandwidth
    # Where the chip may hold what the operators read and write, their arithmetic alone is what takes the time.
    parts = longer if with_memory > computing.total() else computing
    ranked = sorted(parts.items(), key=lambda pair: (-pair[1], pair[0]))
    return TimeBound(
        device,
        max(with_memory, computing.total()),
        tuple(BoundPart(path, limited, picoseconds) for (path, limited), picoseconds in ranked if picoseconds),
    )


def _unknown_dtypes(work: Iterable[Work], speed: Speed) -> list[str]:
    """The dtypes without a rate, where they have more than a negligible share of the FLOPs."""
    flops: dict[str, int] = {}
    for item in work:
        flops[item.dtype] = flops.get(item.dtype, 0) + item.least_flops
    unknown = {dtype: number for dtype, number in flops.items() if number and dtype not in speed.flops}
    negligible = sum(unknown.values()) <= _NEGLIGIBLE * sum(flops.values())
    return [] if negligible else sorted(dtype or "integers" for dtype in unknown)


def _memory_bytes(item: Work, on_chip: int) -> int:
    """Bytes that an operator moves through the memory, with what it hands on as far as that has no room on the chip."""
    handed = max(0, item.handed_in - on_chip) + max(0, item.handed_on - on_chip)
    return item.read + item.written + handed


def kept_on_chip(work: Iterable[Work], on_chip: int) -> int:
    """Bytes that the chip may hold from one pass to the next: of each pass so many less are read, and written."""
    sums: dict[int, tuple[int, int]] = {}
    for item in work:
        read, written = sums.get(item.pass_number, (0, 0))
        sums[item.pass_number] = read + item.read, written + item.written
    return sum(min(on_chip, read) + min(on_chip, written) for read, written in sums.values())


@cache
def _speeds() -> dict[str, Speed]:
    data = device_data()
    rates = {row["name"]: {key: value for key, value in row.items() if isinstance(value, int)} for row in data["rates"]}
    return {row["name"]: _speed(row, rates[row["rates"]]) for row in data["speeds"]}


def _speed(row: Mapping[str, float], rates: Mapping[str, int]) -> Speed:
    clocks = int(row["units"]) * int(row["mhz"]) * 10**6
    return Speed(
        {dtype: clocks * rate for dtype, rate in rates.items()},
        round(row["gb"] * 10**9),
        int(row["cache"]) * _MIB + int(row["units"]) * _PER_UNIT,
    )
