"""Two sequences side by side: equal ends first, then what occurs once in both, then the rest in order.

Near-linear, unlike a longest common subsequence, and the same on every run; on lists that were edited in places, as
layers of a model are, it finds the same pairs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence

IndexPair = tuple[int, int]
Gap = tuple[int, int, int, int]
"""A stretch of both sequences: `old[lo:hi]` and `new[left:right]`."""

_ROUNDS = 24
"""How often a stretch between two pairs is looked at again; each round goes once over all that is left."""


def aligned(old: Sequence[Hashable], new: Sequence[Hashable], gap: Gap | None = None) -> list[IndexPair]:
    """Pairs of indices with equal keys, rising in both sequences."""
    pairs: list[IndexPair] = []
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
            anchors = _anchors(old, new, (lo, hi, left, right))
            pairs += anchors
            if anchors:
                open_gaps += ((smaller_gap, rounds + 1) for smaller_gap in gaps_between(anchors, (lo, hi, left, right)))
    return sorted(pairs)


def gaps_between(pairs: Sequence[IndexPair], gap: Gap) -> Iterator[Gap]:
    """The stretches of `gap` that the (rising) pairs leave, where both sides have something."""
    lo, hi, left, right = gap
    for index, other_index in (*pairs, (hi, right)):
        if lo < index and left < other_index:
            yield lo, index, left, other_index
        lo, left = index + 1, other_index + 1


def _anchors(old: Sequence[Hashable], new: Sequence[Hashable], gap: Gap) -> list[IndexPair]:
    lo, hi, left, right = gap
    unique = _unique_keys(old[lo:hi]) & _unique_keys(new[left:right])
    positions: dict[Hashable, list[int]] = defaultdict(list)
    for index in range(left, right):
        positions[new[index]].append(index)
    used: Counter[Hashable] = Counter()
    pairs: list[IndexPair] = []
    for index in range(lo, hi):
        key = old[index]
        if (not unique or key in unique) and used[key] < len(positions.get(key, ())):
            pairs.append((index, positions[key][used[key]]))
            used[key] += 1
    return longest_rising(pairs)


def _unique_keys(keys: Sequence[Hashable]) -> set[Hashable]:
    return {key for key, number in Counter(keys).items() if number == 1}


def longest_rising(pairs: Sequence[IndexPair]) -> list[IndexPair]:
    """The longest part of `pairs` (rising in the first number) that rises in the second too."""
    ends: list[int] = []
    tails: list[int] = []
    predecessors: list[int] = []
    for index, (_, second) in enumerate(pairs):
        pile = bisect_left(ends, second)
        predecessors.append(tails[pile - 1] if pile else -1)
        if pile == len(ends):
            ends.append(second)
            tails.append(index)
        else:
            ends[pile], tails[pile] = second, index
    longest: list[IndexPair] = []
    index = tails[-1] if tails else -1
    while index >= 0:
        longest.append(pairs[index])
        index = predecessors[index]
    return longest[::-1]
