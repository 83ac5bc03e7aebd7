"""Sums of gradients that autograd makes in place, recorded as new storages: put back on their first operands.

`sums` are numbers of storages by the event that made them: that of the sum, and that of its first operand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from pytest_modelbudget.planner import MemoryEvent

_Name = TypeVar("_Name", bound=str)


def sums_in_place(events: list[MemoryEvent], sums: Mapping[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """Those of `sums` whose first operand goes right after them."""
    return {
        index: (number, first)
        for index, (number, first) in sums.items()
        if index + 1 < len(events) and first in events[index + 1].freed
    }


def with_those_of_sums(names: Mapping[int, _Name], sums: Mapping[int, tuple[int, int]]) -> dict[int, _Name]:
    """What storages are for, also the first operands on whose memory a sum is that has a role."""
    firsts: dict[int, int] = {}
    for _, (number, first) in sorted(sums.items()):
        firsts[number] = firsts.get(first, first)
    return {**{firsts[number]: name for number, name in names.items() if number in firsts}, **names}


def with_sums_in_place(events: list[MemoryEvent], sums: Mapping[int, tuple[int, int]]) -> Iterator[MemoryEvent]:
    """`events` with each of the `sums` on the memory of its first operand."""
    renumbered: dict[int, int] = {}
    replaced = -1
    for index, event in enumerate(events):
        if not renumbered and replaced < 0 and index not in sums:  # nearly all of them
            yield event
            continue
        freed = tuple(renumbered.pop(number, number) for number in event.freed if number != replaced)
        allocated = tuple((renumbered.get(number, number), size) for number, size in event.made)
        replaced = -1
        if index in sums:
            number, replaced = sums[index]
            renumbered[number] = renumbered.pop(replaced, replaced)
            allocated = ()
        changed = allocated != event.made or freed != event.freed
        yield replace(event, made=allocated, freed=freed) if changed else event
