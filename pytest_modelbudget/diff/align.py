"""Two sequences side by side: equal ends first, then what occurs once in both, then the rest in order.

Near-linear, unlike a longest common subsequence, and the same on every run; on lists that were edited in places, as
layers of a model are, it finds the same pairs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence

Pair = tuple[int, int]
Gap = tuple[int, int, int, int]
"""A stretch of both sequences: `old[lo:hi]` and `new[left:right]`."""

_ROUNDS = 24
"""How often a stretch between two pairs is looked at again; each round goes once over all that is left."""


def aligned(old: Sequence[Hashable], new: Sequence[Hashable], gap: Gap | None = None) -> list[Pair]:
    """Pairs of indices with equal keys, rising in both sequences."""
    pairs: list[Pair] = []
    open_gaps = [((gap or (0, len(old), 0, len(new))), 0)]
    while open_gaps:
        (lo, hi, left, right), rounds = open_gaps.pop()
        while lo < hi and left < right and old[lo] == new[left]:
            pairs.append((lo, left))
            lo, left = lo + 1, left + 1
        while lo < hi and left < right and old[hi - 1] == new[right - 1]:
            hi, right = hi - 1, right - 1
            pairs.append((hi, right))
        if lo < hi and left < right and rounds < _ROUNDS:
            found = _anchors(old, new, (lo, hi, left, right))
            pairs += found
            if found:
                open_gaps += ((rest, rounds + 1) for rest in between(found, (lo, hi, left, right)))
    return sorted(pairs)


def between(pairs: Sequence[Pair], gap: Gap) -> Iterator[Gap]:
    """The stretches of `gap` that the (rising) pairs leave, where both sides have something."""
    lo, hi, left, right = gap
    for index, other in (*pairs, (hi, right)):
        if lo < index and left < other:
            yield lo, index, left, other
        lo, left = index + 1, other + 1


def _anchors(old: Sequence[Hashable], new: Sequence[Hashable], gap: Gap) -> list[Pair]:
    lo, hi, left, right = gap
    once = _once(old[lo:hi]) & _once(new[left:right])
    where: dict[Hashable, list[int]] = defaultdict(list)
    for index in range(left, right):
        where[new[index]].append(index)
    taken: Counter[Hashable] = Counter()
    pairs: list[Pair] = []
    for index in range(lo, hi):
        key = old[index]
        if (not once or key in once) and taken[key] < len(where.get(key, ())):
            pairs.append((index, where[key][taken[key]]))
            taken[key] += 1
    return rising(pairs)


def _once(keys: Sequence[Hashable]) -> set[Hashable]:
    return {key for key, number in Counter(keys).items() if number == 1}


def rising(pairs: Sequence[Pair]) -> list[Pair]:
    """The longest part of `pairs` (rising in the first number) that rises in the second too."""
    ends: list[int] = []
    last: list[int] = []
    before: list[int] = []
    for index, (_, other) in enumerate(pairs):
        place = bisect_left(ends, other)
        before.append(last[place - 1] if place else -1)
        if place == len(ends):
            ends.append(other)
            last.append(index)
        else:
            ends[place], last[place] = other, index
    found: list[Pair] = []
    index = last[-1] if last else -1
    while index >= 0:
        found.append(pairs[index])
        index = before[index]
    return found[::-1]
