"""Which row of one summary is which row of the other: by path, else by contents and position.

Rows that keep their name are the same row, unless the contents of their neighbours say that names were only
counted on (an inserted layer renumbers all that come after it). What is left over is looked for everywhere: a
module that was renamed, moved or wrapped is found by its fingerprint, and where one part of it is found its other
parts are looked for beside it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

from pytest_modelbudget.diff.align import Gap, Pair, aligned, between
from pytest_modelbudget.diff.tree import Ids, Level, Node, grow
from pytest_modelbudget.summary import Layer, Summary

_MODULE = 3
"""Rows that make a module whose structure alone tells it apart."""

_WORK = 16
"""Looks at children for each row, on average, after which leftovers are left over: holds odd models near-linear."""


@dataclass(frozen=True, slots=True)
class Match:
    """The two trees with the rows that are the same (`pairs`, in the order of the new one)."""

    old: Node
    new: Node
    partner: dict[Node, Node]
    origin: dict[Node, Node]

    @property
    def rows(self) -> Iterator[tuple[Node, Layer, Node, Layer]]:
        """The pairs in which both are rows, in the order of the new summary."""
        for node in self.new.below():
            other = self.origin.get(node)
            if other is not None and other.row is not None and node.row is not None:
                yield other, other.row, node, node.row

    @property
    def removed(self) -> Iterator[Node]:
        """Nodes of the old tree whose row is gone."""
        return (node for node in self.old.below() if node.row is not None and not _row(self.partner.get(node)))

    @property
    def added(self) -> Iterator[Node]:
        """Nodes of the new tree whose row is new."""
        return (node for node in self.new.below() if node.row is not None and not _row(self.origin.get(node)))


def _row(node: Node | None) -> bool:
    return node is not None and node.row is not None


def match(before: Summary, after: Summary) -> Match:
    """Match the rows of two summaries."""
    ids = Ids()
    found = Match(grow(before, ids), grow(after, ids), {}, {})
    matcher = _Matcher(found, _WORK * (len(before.layers) + len(after.layers) + 1))
    matcher.pair(found.old, found.new)
    matcher.look_everywhere()
    return found


class _Matcher:
    """Fills a `Match`."""

    def __init__(self, found: Match, work: int) -> None:
        self.partner, self.origin = found.partner, found.origin
        self.old, self.new = found.old, found.new
        self.work = work
        self.tried: set[tuple[Node, Node]] = set()

    def pair(self, old: Node, new: Node) -> None:
        """Pair two nodes, and what is inside them."""
        waiting = [(old, new)]
        while waiting:
            one, other = waiting.pop()
            self.partner[one], self.origin[other] = other, one
            waiting += self._children(one, other)

    def _children(self, old: Node, new: Node) -> list[tuple[Node, Node]]:
        ours = [node for node in old.children if node not in self.partner]
        theirs = [node for node in new.children if node not in self.origin]
        self.work -= len(ours) + len(theirs)
        return [(ours[index], theirs[other]) for index, other in _siblings(ours, theirs)] if ours and theirs else []

    def look_everywhere(self) -> None:
        """Match what is left over by its contents, the largest first."""
        self._look_inside()
        for level, worth in _EVERYWHERE:
            left = [node for node in self.old.below() if node not in self.partner and worth(node)]
            there = [node for node in self.new.below() if node not in self.origin and worth(node)]
            if not left or not there:
                continue
            named, alike = _index(there, level, named=True), _index(there, level, named=False)
            number: dict[int, int] = defaultdict(int)
            for node in left:
                number[node.prints[level]] += 1
            for node in sorted(left, key=lambda node: (-node.size, node.position)):
                if node in self.partner:
                    continue
                other = self._first(named.get((node.prints[level], node.token)))
                if other is None and _telling(node, level, number[node.prints[level]]):
                    other = self._first(alike.get(node.prints[level]))
                if other is not None:
                    self.pair(node, other)
                    self._around(node, other)

    def _look_inside(self) -> None:
        """Match a layer with the only one of its shapes in the module that took its name, and the other way round."""
        there = {node.path: node for node in self.new.below() if node not in self.origin}
        for node in self.old.below():
            other = there.get(self._path_now(node)) if node not in self.partner else None
            if other is None or other in self.origin:
                continue
            for outer, inner in ((other, node), (node, other)):
                like = [one for one in outer.below() if one.prints[Level.SHAPES] == inner.prints[Level.SHAPES]]
                if len(like) == 1 and inner.weighted and like[0] not in self.origin and like[0] not in self.partner:
                    self.pair(*((node, like[0]) if outer is other else (like[0], other)))
                    break

    def _path_now(self, node: Node) -> str:
        """The path it would have if it kept its name, its parent being where it is now."""
        if node.parent is None or node.parent not in self.partner:
            return node.path
        above = self.partner[node.parent]
        return f"{above.path}{node.path[len(node.parent.path) :]}"

    def _first(self, nodes: deque[Node] | None) -> Node | None:
        while nodes:
            if nodes[0] not in self.origin:
                return nodes[0]
            nodes.popleft()
        return None

    def _around(self, old: Node, new: Node) -> None:
        """Look for the neighbours of a node that was found elsewhere beside it, and for its parents above it."""
        above, there = old.parent, new.parent
        while above is not None and there is not None and (above, there) not in self.tried and self.work > 0:
            self.tried.add((above, there))
            for one, other in self._children(above, there):
                self.pair(one, other)
            self._part_roots(above, there)
            if above in self.partner or there in self.origin or not _like(above, there):
                return
            self.partner[above], self.origin[there] = there, above
            above, there = above.parent, there.parent

    def _part_roots(self, old: Node, new: Node) -> None:
        """The roots, paired at first, part when the model with its own row turns up in a wrapper, or out of one."""
        paired = self.partner.get(self.old) is self.new and (old is self.old or new is self.new)
        one_has_a_row = _row(self.old) != _row(self.new)
        if paired and one_has_a_row and _row(old) and _row(new) and _like(old, new):
            del self.partner[self.old], self.origin[self.new]


def _has_weights(node: Node) -> bool:
    return node.weighted


def _is_module(node: Node) -> bool:
    return node.weighted and node.size >= _MODULE


_EVERYWHERE = ((Level.ALL, _has_weights), (Level.SHAPES, _has_weights), (Level.WEIGHTS, _is_module))


def _telling(node: Node, level: Level, number: int) -> bool:
    """Whether contents alone say that it is the same, whatever its name."""
    return node.size >= _MODULE or (level is Level.ALL and number == 1)


def _like(old: Node, new: Node) -> bool:
    return (old.row.type if old.row else None) == (new.row.type if new.row else None)


def _index(nodes: Sequence[Node], level: Level, *, named: bool) -> dict[Hashable, deque[Node]]:
    found: dict[Hashable, deque[Node]] = defaultdict(deque)
    for node in nodes:
        found[(node.prints[level], node.token) if named else node.prints[level]].append(node)
    return found


def _siblings(old: Sequence[Node], new: Sequence[Node]) -> list[Pair]:
    """Pairs of two lists of children: by name, or by contents where these say more."""
    names = _by_name(old, new, set(), set())
    if len(names) == len(old) == len(new) and all(
        old[i].prints[Level.ALL] == new[j].prints[Level.ALL] for i, j in names
    ):
        return names
    named = _completed(names, old, new, _by_contents)
    contents = _completed(_by_contents(old, new, set(), set()), old, new, _by_name)
    return contents if _score(contents, old, new) > _score(named, old, new) else named


_Rule = Callable[[Sequence[Node], Sequence[Node], set[int], set[int]], list[Pair]]


def _completed(pairs: list[Pair], old: Sequence[Node], new: Sequence[Node], rule: _Rule) -> list[Pair]:
    return pairs + rule(old, new, {index for index, _ in pairs}, {other for _, other in pairs})


def _by_name(old: Sequence[Node], new: Sequence[Node], ours: set[int], theirs: set[int]) -> list[Pair]:
    there = {node.token: index for index, node in enumerate(new) if index not in theirs}
    return [
        (index, there[node.token])
        for index, node in enumerate(old)
        if index not in ours and node.token in there and _may_be(node, new[there[node.token]])
    ]


def _may_be(old: Node, new: Node) -> bool:
    """A layer with weights and a module of another type that holds layers are not the same row under one name."""
    if old.row is None or new.row is None or old.row.type == new.row.type or bool(old.children) == bool(new.children):
        return True
    return not (new if old.children else old).weighted


def _by_contents(old: Sequence[Node], new: Sequence[Node], ours: set[int], theirs: set[int]) -> list[Pair]:
    """In order, from what is the same in everything to what is of the same type between these."""
    left = [index for index in range(len(old)) if index not in ours]
    there = [index for index in range(len(new)) if index not in theirs]
    pairs: list[Pair] = []
    gaps = [(0, len(left), 0, len(there))]
    for level in Level:
        keys = [_key(old[index], level) for index in left]
        others = [_key(new[index], level) for index in there]
        rest: list[Gap] = []
        for gap in gaps:
            found = aligned(keys, others, gap)
            pairs += found
            rest += between(found, gap)
        gaps = rest
    return [(left[index], there[other]) for index, other in pairs]


def _key(node: Node, level: Level) -> Hashable:
    """What has to be equal; names that were chosen are not given up for a likeness that any layer may have."""
    same_shapes = level is Level.SHAPES and node.weighted
    if node.loose or level is Level.ALL or same_shapes or (level is not Level.TYPE and _is_module(node)):
        return node.prints[level]
    return node.prints[level], node.token


def _score(pairs: Sequence[Pair], old: Sequence[Node], new: Sequence[Node]) -> int:
    return sum(
        next((len(Level) - level for level in Level if old[i].prints[level] == new[j].prints[level]), 0)
        for i, j in pairs
    )
