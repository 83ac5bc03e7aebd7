"""Many findings as few: equal ones of a run of blocks, of one sweep over the model, and what only follows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace

from pytest_modelbudget.diff.facts import NOT_KNOWN, dim_text
from pytest_modelbudget.diff.finding import Finding, Moved
from pytest_modelbudget.diff.flow import spec_shifts
from pytest_modelbudget.diff.tree import Node, tokens
from pytest_modelbudget.diff.words import listed, numbered, ranges
from pytest_modelbudget.summary import Layer

_LEAST = 2
"""Equal changes that are told as one."""

_ROUNDS = 3
"""Numbers in a path that are folded: blocks, experts in blocks, ..."""

_SWEEPS = ("dtype", "frozen", "unfrozen", "follows")
_SHAPES = ("widened", "narrowed", "weights", "type", "tied", "untied")
_MOST_ROWS = 3


def runs(findings: Sequence[Finding]) -> list[Finding]:
    """Equal findings whose paths differ in one number as one: `layers.0-31.norm`."""
    found = list(findings)
    for _ in range(_ROUNDS):
        groups: dict[Hashable, list[Finding]] = {}
        for one in found:
            groups.setdefault(_alike(one), []).append(one)
        folded = [part for group in groups.values() for part in _fold(group)]
        if len(folded) == len(found):
            break
        found = folded
    return found


def _stars(path: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """A path with its numbers apart: `h.3.up` as `("h", ".*", ".up")` and `(3,)`."""
    words: list[str] = []
    numbers: list[int] = []
    for token in tokens(path):
        match = numbered(token)
        words.append(f"{match[0]}*" if match else token)
        if match:
            numbers.append(match[1])
    return tuple(words), tuple(numbers)


def _alike(one: Finding) -> Hashable:
    words, numbers = _stars(one.path)
    was, earlier = _stars(one.was)
    offset = tuple(new - old for new, old in zip(numbers, earlier, strict=True)) if words == was else ()
    texts = (one.before, one.after)
    if one.kind == "connection":  # of a block to the one before it
        texts = re.sub(r"[0-9]+", "*", one.before), re.sub(r"[0-9]+", "*", one.after)
    told = (one.moved, one.rank, one.why, one.cause, one.count, one.rows)
    return one.kind, words, was, offset, texts, told


def _fold(group: list[Finding]) -> Iterator[Finding]:
    """Fold at the number that takes most values; those that differ in another number too stay apart."""
    words, first = _stars(group[0].path)
    if len(group) < _LEAST or not first:
        yield from group
        return
    numbers = [_stars(one.path)[1] for one in group]
    place = max(range(len(first)), key=lambda index: len({each[index] for each in numbers}))
    apart: dict[Hashable, list[Finding]] = {}
    for one, each in zip(group, numbers, strict=True):
        apart.setdefault((each[:place], each[place + 1 :]), []).append(one)
    for same in apart.values():
        yield from _folded(words, place, same) if len(same) >= _LEAST else same


def _folded(words: Sequence[str], place: int, group: list[Finding]) -> Iterator[Finding]:
    values = sorted(_stars(one.path)[1][place] for one in group)
    if len(set(values)) < len(values):
        yield from group
        return
    path, head = _ranged(words, [_stars(one.path)[1] for one in group], place)
    was_words, was_first = _stars(group[0].was)
    was = _ranged(was_words, [_stars(one.was)[1] for one in group], 0)[0] if was_first else group[0].was
    times = len(group)
    first = group[0]
    block = (head, times)
    if first.block is not None and len(first.block[0]) < len(head):
        block = first.block
    yield replace(
        first,
        path=path,
        was=was,
        moved=sum((one.moved for one in group), Moved()),
        count=first.count * times,
        rows=sum(one.rows for one in group),
        source=_source(group, place, head),
        block=block,
    )


def _ranged(words: Sequence[str], numbers: Sequence[tuple[int, ...]], place: int) -> tuple[str, str]:
    """The path with each number that varies as a range, and its part up to the number at `place`."""
    text, head, index = "", "", 0
    for word in words:
        if word.endswith("*") and index < len(numbers[0]):
            text += f"{word[:-1]}{ranges(sorted({each[index] for each in numbers}))}"
            if index == place:
                head = text
            index += 1
        else:
            text += word
    return text, head


def _source(group: Sequence[Finding], place: int, head: str) -> str:
    """Where the change came from, when that is the same row of each one's own block, or one row for all."""
    if len({one.source for one in group}) == 1:
        return group[0].source
    tails = set()
    for one in group:
        words, numbers = _stars(one.source)
        mine, own = _stars(one.path)
        if numbers[: place + 1] != own[: place + 1]:
            return ""
        at = [index for index, word in enumerate(mine) if word.endswith("*")][place]
        if words[: at + 1] != mine[: at + 1]:
            return ""
        tails.add(one.source[len("".join(tokens(one.source)[: at + 1])) :])
    return f"{head}{tails.pop()}" if len(tails) == 1 else ""


def blocks(findings: Sequence[Finding]) -> list[Finding]:
    """The rows of one run of blocks as one finding: `layers.0-31`, 32 times."""
    groups: dict[Hashable, list[Finding]] = {}
    for index, one in enumerate(findings):
        folded = one.block is not None and one.kind in _SHAPES
        groups.setdefault(one.block if folded else index, []).append(one)
    return [_block(group) if len(group) > 1 else group[0] for group in groups.values()]


def _block(group: list[Finding]) -> Finding:
    assert group[0].block is not None
    head, times = group[0].block
    ranked = sorted(group, key=lambda one: -abs(one.moved.params))
    was = sum(one.old.params * one.count // times for one in group if one.old is not None)
    now = sum(one.new.params * one.count // times for one in group if one.new is not None)
    reasons: dict[str, list[str]] = {}
    for one in ranked[:_MOST_ROWS]:
        reasons.setdefault(one.why, []).append(one.path[len(head) :].lstrip("./"))
    words = [f"{', '.join(names)} {why}" for why, names in reasons.items()]
    rest = len(group) - len(ranked[:_MOST_ROWS])
    return replace(
        ranked[0],
        path=head,
        before=f"{was:,} params in {len(group)} rows of each",
        after=f"{now:,}",
        moved=sum((one.moved for one in group), Moved()),
        why="; ".join([*words, *([f"{rest} more row{'s' if rest > 1 else ''}"] if rest else [])]),
        source="",
        count=times,
        rows=sum(one.rows for one in group),
    )


def sweeps(findings: Sequence[Finding], root: Node) -> list[Finding]:
    """Changes of one kind all over the model as one finding each, named by the modules they cover."""
    groups: dict[Hashable, list[Finding]] = {}
    for index, one in enumerate(findings):
        key: Hashable = index
        if one.kind == "dtype" or NOT_KNOWN in (one.before, one.after):
            key = (one.kind, one.before, one.after)
        elif one.kind in _SWEEPS:
            key = (one.kind, one.through)
        groups.setdefault(key, []).append(one)
    return [
        _sweep(group, root) if group[0].kind == "follows" or len(group) > 1 else group[0] for group in groups.values()
    ]


def _sweep(group: list[Finding], root: Node) -> Finding:
    first = group[0]
    names = cover(root, {one.path for one in group}, _RELEVANT.get(first.kind, _has_params))
    before, after = first.before, first.after
    if first.kind in ("frozen", "unfrozen"):
        params = sum(_own(one.new) for one in group)
        before = f"{params:,} params in {len(group):,} rows {'trainable' if first.kind == 'frozen' else 'frozen'}"
    elif first.kind in ("dtype", "calls"):
        before = f"{len(group):,} rows {before}"
    elif first.kind == "follows":
        names = _outermost(names)
        before, after = "", _followed(group) if first.through else "connection to rows that came or went"
    path = listed(_patterns(names)) if len(group) > 1 else first.path
    both = sum((one.moved for one in group), Moved())
    return replace(first, path=path, before=before, after=after, moved=both, rows=len(group))


def _outermost(names: Sequence[str]) -> list[str]:
    """Names without those inside another one of them; a module comes before what it holds."""
    kept: list[str] = []
    for name in names:
        if not kept or not name.startswith((f"{kept[-1]}.", f"{kept[-1]}/")):
            kept.append(name)
    return kept


def _patterns(names: Sequence[str]) -> list[str]:
    """Names that differ in the number of a block as one."""
    return [one.path for one in runs([Finding("follows", name, "", "") for name in names])]


def _own(layer: Layer | None) -> int:
    return 0 if layer is None else layer.params


def _followed(group: Sequence[Finding]) -> str:
    """The commonest shifts of the outputs: `output 768 -> 1,024`."""
    counted: Counter[str] = Counter()
    for one in group:
        if one.old is not None and one.new is not None:
            counted.update({f"{dim_text(was)} -> {dim_text(now)}" for was, now in spec_shifts(one.old, one.new)})
    words = [text for text, _ in counted.most_common(3)]
    more = len(counted) - len(words)
    return f"output {', '.join(words)}{f' and {more} more' if more else ''}" if words else "output"


def _has_params(layer: Layer) -> bool:
    return bool(layer.params)


def _has_output(layer: Layer) -> bool:
    return bool(layer.outputs)


def _has_weights(layer: Layer) -> bool:
    return bool(layer.weights)


_RELEVANT: dict[str, Callable[[Layer], bool]] = {"follows": _has_output, "dtype": _has_weights, "calls": _has_weights}


def cover(root: Node, paths: set[str], relevant: Callable[[Layer], bool]) -> list[str]:
    """The fewest modules that hold all of `paths` and no other relevant row."""

    def visit(node: Node) -> tuple[bool, list[str]]:
        """Whether all relevant rows here are among `paths`, and the names for those that are."""
        whole, names = True, []
        for child in node.children:
            covered, inside = visit(child)
            whole &= covered
            names += inside
        if node.row is not None and (node.path in paths or relevant(node.row)):
            whole &= node.path in paths
            names = [node.path, *names] if node.path in paths else names
        return whole, [node.path] if whole and names and node is not root else names

    return visit(root)[1]


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """Causes first, and of these what moved most params; what follows last; else in the order of the model."""
    return sorted(findings, key=lambda one: (one.rank, -abs(one.moved.params)))
