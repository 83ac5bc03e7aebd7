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

from pytest_modelbudget.diff.align import Gap, IndexPair, aligned, gaps_between
from pytest_modelbudget.diff.tree import IdTable, Level, PathNode, build_tree
from pytest_modelbudget.summary import Layer, Summary

_MODULE_SIZE = 3
"""Rows that make a module whose structure alone tells it apart."""

_WORK_PER_ROW = 16
"""Looks at children for each row, on average, after which leftovers are left over: holds odd models near-linear."""


@dataclass(frozen=True, slots=True)
class Match:
    """The two trees with the rows that are the same (`pairs`, in the order of the new one)."""

    old: PathNode
    new: PathNode
    partner: dict[PathNode, PathNode]
    origin: dict[PathNode, PathNode]

    @property
    def rows(self) -> Iterator[tuple[PathNode, Layer, PathNode, Layer]]:
        """The pairs in which both are rows, in the order of the new summary."""
        for node in self.new.below():
            other = self.origin.get(node)
            if other is not None and other.row is not None and node.row is not None:
                yield other, other.row, node, node.row

    @property
    def removed(self) -> Iterator[PathNode]:
        """Nodes of the old tree whose row is gone."""
        return (node for node in self.old.below() if node.row is not None and not _has_row(self.partner.get(node)))

    @property
    def added(self) -> Iterator[PathNode]:
        """Nodes of the new tree whose row is new."""
        return (node for node in self.new.below() if node.row is not None and not _has_row(self.origin.get(node)))


def _has_row(node: PathNode | None) -> bool:
    return node is not None and node.row is not None


def match(before: Summary, after: Summary) -> Match:
    """Match the rows of two summaries."""
    ids = IdTable()
    matched = Match(build_tree(before, ids), build_tree(after, ids), {}, {})
    matcher = _Matcher(matched, _WORK_PER_ROW * (len(before.layers) + len(after.layers) + 1))
    matcher.pair(matched.old, matched.new)
    matcher.look_everywhere()
    return matched


class _Matcher:
    """Fills a `Match`."""

    def __init__(self, matched: Match, work: int) -> None:
        self.partner, self.origin = matched.partner, matched.origin
        self.old, self.new = matched.old, matched.new
        self.work = work
        self.tried: set[tuple[PathNode, PathNode]] = set()

    def pair(self, old: PathNode, new: PathNode) -> None:
        """Pair two nodes, and what is inside them."""
        waiting = [(old, new)]
        while waiting:
            old_node, new_node = waiting.pop()
            self.partner[old_node], self.origin[new_node] = new_node, old_node
            waiting += self._children(old_node, new_node)

    def _children(self, old: PathNode, new: PathNode) -> list[tuple[PathNode, PathNode]]:
        old_children = [node for node in old.children if node not in self.partner]
        new_children = [node for node in new.children if node not in self.origin]
        self.work -= len(old_children) + len(new_children)
        return (
            [
                (old_children[index], new_children[other_index])
                for index, other_index in _pair_siblings(old_children, new_children)
            ]
            if old_children and new_children
            else []
        )

    def look_everywhere(self) -> None:
        """Match what is left over by its contents, the largest first."""
        self._look_inside()
        for level, worth in _SEARCH_LEVELS:
            unmatched_old = [node for node in self.old.below() if node not in self.partner and worth(node)]
            unmatched_new = [node for node in self.new.below() if node not in self.origin and worth(node)]
            if not unmatched_old or not unmatched_new:
                continue
            by_name, by_contents = (
                _index_by_contents(unmatched_new, level, named=True),
                _index_by_contents(unmatched_new, level, named=False),
            )
            occurrences: dict[int, int] = defaultdict(int)
            for node in unmatched_old:
                occurrences[node.fingerprints[level]] += 1
            for node in sorted(unmatched_old, key=lambda node: (-node.size, node.position)):
                if node in self.partner:
                    continue
                counterpart = self._first(by_name.get((node.fingerprints[level], node.token)))
                if counterpart is None and _is_distinctive(node, level, occurrences[node.fingerprints[level]]):
                    counterpart = self._first(by_contents.get(node.fingerprints[level]))
                if counterpart is not None:
                    self.pair(node, counterpart)
                    self._around(node, counterpart)

    def _look_inside(self) -> None:
        """Match a layer with the only one of its shapes in the module that took its name, and the other way round."""
        unmatched_by_path = {node.path: node for node in self.new.below() if node not in self.origin}
        for node in self.old.below():
            counterpart = unmatched_by_path.get(self._path_now(node)) if node not in self.partner else None
            if counterpart is None or counterpart in self.origin:
                continue
            for outer, inner in ((counterpart, node), (node, counterpart)):
                same_shapes = [
                    candidate
                    for candidate in outer.below()
                    if candidate.fingerprints[Level.SHAPES] == inner.fingerprints[Level.SHAPES]
                ]
                if (
                    len(same_shapes) == 1
                    and inner.weighted
                    and same_shapes[0] not in self.origin
                    and same_shapes[0] not in self.partner
                ):
                    self.pair(*((node, same_shapes[0]) if outer is counterpart else (same_shapes[0], counterpart)))
                    break

    def _path_now(self, node: PathNode) -> str:
        """The path it would have if it kept its name, its parent being where it is now."""
        if node.parent is None or node.parent not in self.partner:
            return node.path
        parent = self.partner[node.parent]
        return f"{parent.path}{node.path[len(node.parent.path) :]}"

    def _first(self, nodes: deque[PathNode] | None) -> PathNode | None:
        while nodes:
            if nodes[0] not in self.origin:
                return nodes[0]
            nodes.popleft()
        return None

    def _around(self, old: PathNode, new: PathNode) -> None:
        """Look for the neighbours of a node that was found elsewhere beside it, and for its parents above it."""
        old_parent, new_parent = old.parent, new.parent
        while (
            old_parent is not None
            and new_parent is not None
            and (old_parent, new_parent) not in self.tried
            and self.work > 0
        ):
            self.tried.add((old_parent, new_parent))
            for old_child, new_child in self._children(old_parent, new_parent):
                self.pair(old_child, new_child)
            self._part_roots(old_parent, new_parent)
            if old_parent in self.partner or new_parent in self.origin or not _same_type(old_parent, new_parent):
                return
            self.partner[old_parent], self.origin[new_parent] = new_parent, old_parent
            old_parent, new_parent = old_parent.parent, new_parent.parent

    def _part_roots(self, old: PathNode, new: PathNode) -> None:
        """The roots, paired at first, part when the model with its own row turns up in a wrapper, or out of one."""
        paired = self.partner.get(self.old) is self.new and (old is self.old or new is self.new)
        one_has_a_row = _has_row(self.old) != _has_row(self.new)
        if paired and one_has_a_row and _has_row(old) and _has_row(new) and _same_type(old, new):
            del self.partner[self.old], self.origin[self.new]


def _has_weights(node: PathNode) -> bool:
    return node.weighted


def _is_module(node: PathNode) -> bool:
    return node.weighted and node.size >= _MODULE_SIZE


_SEARCH_LEVELS = ((Level.ALL, _has_weights), (Level.SHAPES, _has_weights), (Level.WEIGHTS, _is_module))


def _is_distinctive(node: PathNode, level: Level, number: int) -> bool:
    """Whether contents alone say that it is the same, whatever its name."""
    return node.size >= _MODULE_SIZE or (level is Level.ALL and number == 1)


def _same_type(old: PathNode, new: PathNode) -> bool:
    return (old.row.type if old.row else None) == (new.row.type if new.row else None)


def _index_by_contents(nodes: Sequence[PathNode], level: Level, *, named: bool) -> dict[Hashable, deque[PathNode]]:
    nodes_by_key: dict[Hashable, deque[PathNode]] = defaultdict(deque)
    for node in nodes:
        nodes_by_key[(node.fingerprints[level], node.token) if named else node.fingerprints[level]].append(node)
    return nodes_by_key


def _pair_siblings(old: Sequence[PathNode], new: Sequence[PathNode]) -> list[IndexPair]:
    """Pairs of two lists of children: by name, or by contents where these say more."""
    names = _by_name(old, new, set(), set())
    if len(names) == len(old) == len(new) and all(
        old[i].fingerprints[Level.ALL] == new[j].fingerprints[Level.ALL] for i, j in names
    ):
        return names
    named = _complete_pairs(names, old, new, _by_contents)
    contents = _complete_pairs(_by_contents(old, new, set(), set()), old, new, _by_name)
    return contents if _similarity(contents, old, new) > _similarity(named, old, new) else named


_Rule = Callable[[Sequence[PathNode], Sequence[PathNode], set[int], set[int]], list[IndexPair]]


def _complete_pairs(
    pairs: list[IndexPair], old: Sequence[PathNode], new: Sequence[PathNode], rule: _Rule
) -> list[IndexPair]:
    return pairs + rule(old, new, {index for index, _ in pairs}, {other_index for _, other_index in pairs})


def _by_name(
    old: Sequence[PathNode], new: Sequence[PathNode], paired_old: set[int], paired_new: set[int]
) -> list[IndexPair]:
    new_by_token = {node.token: index for index, node in enumerate(new) if index not in paired_new}
    return [
        (index, new_by_token[node.token])
        for index, node in enumerate(old)
        if index not in paired_old
        and node.token in new_by_token
        and _may_be_same_row(node, new[new_by_token[node.token]])
    ]


def _may_be_same_row(old: PathNode, new: PathNode) -> bool:
    """A layer with weights and a module of another type that holds layers are not the same row under one name."""
    if old.row is None or new.row is None or old.row.type == new.row.type or bool(old.children) == bool(new.children):
        return True
    return not (new if old.children else old).weighted


def _by_contents(
    old: Sequence[PathNode], new: Sequence[PathNode], paired_old: set[int], paired_new: set[int]
) -> list[IndexPair]:
    """In order, from what is the same in everything to what is of the same type between these."""
    old_indices = [index for index in range(len(old)) if index not in paired_old]
    new_indices = [index for index in range(len(new)) if index not in paired_new]
    pairs: list[IndexPair] = []
    gaps = [(0, len(old_indices), 0, len(new_indices))]
    for level in Level:
        old_keys = [_comparison_key(old[index], level) for index in old_indices]
        new_keys = [_comparison_key(new[index], level) for index in new_indices]
        next_gaps: list[Gap] = []
        for gap in gaps:
            aligned_pairs = aligned(old_keys, new_keys, gap)
            pairs += aligned_pairs
            next_gaps += gaps_between(aligned_pairs, gap)
        gaps = next_gaps
    return [(old_indices[index], new_indices[other_index]) for index, other_index in pairs]


def _comparison_key(node: PathNode, level: Level) -> Hashable:
    """What has to be equal; names that were chosen are not given up for a likeness that any layer may have."""
    same_shapes = level is Level.SHAPES and node.weighted
    if node.loose or level is Level.ALL or same_shapes or (level is not Level.TYPE and _is_module(node)):
        return node.fingerprints[level]
    return node.fingerprints[level], node.token


def _similarity(pairs: Sequence[IndexPair], old: Sequence[PathNode], new: Sequence[PathNode]) -> int:
    return sum(
        next((len(Level) - level for level in Level if old[i].fingerprints[level] == new[j].fingerprints[level]), 0)
        for i, j in pairs
    )
