"""Many findings as few: equal ones of a run of blocks, of one sweep over the model, and what only follows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from pytest_modelbudget.diff.facts import NOT_KNOWN, dim_text
from pytest_modelbudget.diff.finding import MetricDelta, RowFinding
from pytest_modelbudget.diff.flow import spec_shifts
from pytest_modelbudget.diff.tree import PathNode, tokens
from pytest_modelbudget.diff.words import list_text, ranges, split_number
from pytest_modelbudget.summary import Layer
from pytest_modelbudget.summary.formulas import why

_LEAST_EQUAL = 2
"""Equal changes that are told as one."""

_ROUNDS = 3
"""Numbers in a path that are folded: blocks, experts in blocks, ..."""

_SWEEP_KINDS = ("dtype", "frozen", "unfrozen", "follows")
_SHAPE_KINDS = ("widened", "narrowed", "weights", "type", "tied", "untied")
_MOST_ROWS = 3


def runs(findings: Sequence[RowFinding]) -> list[RowFinding]:
    """Equal findings whose paths differ in one number as one: `layers.0-31.norm`."""
    current = list(findings)
    for _ in range(_ROUNDS):
        groups: dict[Hashable, list[RowFinding]] = {}
        for finding in current:
            groups.setdefault(_folding_key(finding), []).append(finding)
        folded = [folded_finding for group in groups.values() for folded_finding in _fold_group(group)]
        if len(folded) == len(current):
            break
        current = folded
    return current


@dataclass(frozen=True, slots=True)
class LayerRun:
    """`count` layers that are alike but for a number in their paths, as one: `layers.0-31.norm`; `layer` is the first.

    `params` are those of all of them.
    """

    path: str
    layer: Layer
    count: int

    @property
    def params(self) -> int:
        """Elements of their own parameters."""
        return self.count * self.layer.params


def largest_runs(layers: Iterable[Layer]) -> list[LayerRun]:
    """The layers that have params, alike ones of repeated blocks as one, most params first."""
    findings = [
        RowFinding("weights", layer.path, layer.type, "", MetricDelta(layer.params), why=why(layer), new=layer)
        for layer in layers
        if layer.params
    ]
    layer_runs = [LayerRun(run.path, run.new, run.count) for run in runs(findings) if run.new is not None]
    return sorted(layer_runs, key=lambda run: -run.params)


def _split_numbers(path: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """A path with its numbers apart: `h.3.up` as `("h", ".*", ".up")` and `(3,)`."""
    parts: list[str] = []
    numbers: list[int] = []
    for token in tokens(path):
        match = split_number(token)
        parts.append(f"{match[0]}*" if match else token)
        if match:
            numbers.append(match[1])
    return tuple(parts), tuple(numbers)


def _folding_key(finding: RowFinding) -> Hashable:
    parts, numbers = _split_numbers(finding.path)
    old_parts, old_numbers = _split_numbers(finding.was)
    offset = tuple(new - old for new, old in zip(numbers, old_numbers, strict=True)) if parts == old_parts else ()
    texts = (finding.before, finding.after)
    if finding.kind == "connection":  # of a block to the one before it
        texts = re.sub(r"[0-9]+", "*", finding.before), re.sub(r"[0-9]+", "*", finding.after)
    details = (finding.moved, finding.rank, finding.why, finding.cause, finding.count, finding.rows)
    return finding.kind, parts, old_parts, offset, texts, details


def _fold_group(group: list[RowFinding]) -> Iterator[RowFinding]:
    """Fold at the number that takes most values; those that differ in another number too stay apart."""
    parts, first_numbers = _split_numbers(group[0].path)
    if len(group) < _LEAST_EQUAL or not first_numbers:
        yield from group
        return
    numbers = [_split_numbers(finding.path)[1] for finding in group]
    position = max(range(len(first_numbers)), key=lambda index: len({own_numbers[index] for own_numbers in numbers}))
    by_other_numbers: dict[Hashable, list[RowFinding]] = {}
    for finding, own_numbers in zip(group, numbers, strict=True):
        by_other_numbers.setdefault((own_numbers[:position], own_numbers[position + 1 :]), []).append(finding)
    for alike in by_other_numbers.values():
        yield from _fold_at(parts, position, alike) if len(alike) >= _LEAST_EQUAL else alike


def _fold_at(parts: Sequence[str], position: int, group: list[RowFinding]) -> Iterator[RowFinding]:
    values = sorted(_split_numbers(finding.path)[1][position] for finding in group)
    if len(set(values)) < len(values):
        yield from group
        return
    path, head = _path_with_ranges(parts, [_split_numbers(finding.path)[1] for finding in group], position)
    old_parts, old_first = _split_numbers(group[0].was)
    old_path = (
        _path_with_ranges(old_parts, [_split_numbers(finding.was)[1] for finding in group], 0)[0]
        if old_first
        else group[0].was
    )
    count = len(group)
    first = group[0]
    block = (head, count)
    if first.block is not None and len(first.block[0]) < len(head):
        block = first.block
    yield replace(
        first,
        path=path,
        was=old_path,
        moved=sum((finding.moved for finding in group), MetricDelta()),
        count=first.count * count,
        rows=sum(finding.rows for finding in group),
        source=_common_source(group, position, head),
        block=block,
    )


def _path_with_ranges(parts: Sequence[str], numbers: Sequence[tuple[int, ...]], position: int) -> tuple[str, str]:
    """The path with each number that varies as a range, and its part up to the number at `position`."""
    text, head, index = "", "", 0
    for part in parts:
        if part.endswith("*") and index < len(numbers[0]):
            text += f"{part[:-1]}{ranges(sorted({own_numbers[index] for own_numbers in numbers}))}"
            if index == position:
                head = text
            index += 1
        else:
            text += part
    return text, head


def _common_source(group: Sequence[RowFinding], position: int, head: str) -> str:
    """Where the change came from, when that is the same row of each one's own block, or one row for all."""
    if len({finding.source for finding in group}) == 1:
        return group[0].source
    tails = set()
    for finding in group:
        parts, numbers = _split_numbers(finding.source)
        path_parts, path_numbers = _split_numbers(finding.path)
        if numbers[: position + 1] != path_numbers[: position + 1]:
            return ""
        split_at = [index for index, word in enumerate(path_parts) if word.endswith("*")][position]
        if parts[: split_at + 1] != path_parts[: split_at + 1]:
            return ""
        tails.add(finding.source[len("".join(tokens(finding.source)[: split_at + 1])) :])
    return f"{head}{tails.pop()}" if len(tails) == 1 else ""


def blocks(findings: Sequence[RowFinding]) -> list[RowFinding]:
    """The rows of one run of blocks as one finding: `layers.0-31`, 32 times."""
    groups: dict[Hashable, list[RowFinding]] = {}
    for index, finding in enumerate(findings):
        folded = finding.block is not None and finding.kind in _SHAPE_KINDS
        groups.setdefault(finding.block if folded else index, []).append(finding)
    return [_block_finding(group) if len(group) > 1 else group[0] for group in groups.values()]


def _block_finding(group: list[RowFinding]) -> RowFinding:
    assert group[0].block is not None
    head, times = group[0].block
    ranked = sorted(group, key=lambda finding: -abs(finding.moved.params))
    old_params = sum(finding.old.params * finding.count // times for finding in group if finding.old is not None)
    new_params = sum(finding.new.params * finding.count // times for finding in group if finding.new is not None)
    reasons: dict[str, list[str]] = {}
    for finding in ranked[:_MOST_ROWS]:
        reasons.setdefault(finding.why, []).append(finding.path[len(head) :].lstrip("./"))
    reason_texts = [f"{', '.join(names)} {reason}" for reason, names in reasons.items()]
    more = len(group) - len(ranked[:_MOST_ROWS])
    return replace(
        ranked[0],
        path=head,
        before=f"{old_params:,} params in {len(group)} rows of each",
        after=f"{new_params:,}",
        moved=sum((finding.moved for finding in group), MetricDelta()),
        why="; ".join([*reason_texts, *([f"{more} more row{'s' if more > 1 else ''}"] if more else [])]),
        source="",
        count=times,
        rows=sum(finding.rows for finding in group),
    )


def sweeps(findings: Sequence[RowFinding], root: PathNode) -> list[RowFinding]:
    """Changes of one kind all over the model as one finding each, named by the modules they cover."""
    groups: dict[Hashable, list[RowFinding]] = {}
    for index, finding in enumerate(findings):
        key: Hashable = index
        if finding.kind == "dtype" or NOT_KNOWN in (finding.before, finding.after):
            key = (finding.kind, finding.before, finding.after)
        elif finding.kind in _SWEEP_KINDS:
            key = (finding.kind, finding.through)
        groups.setdefault(key, []).append(finding)
    return [
        _sweep_finding(group, root) if group[0].kind == "follows" or len(group) > 1 else group[0]
        for group in groups.values()
    ]


def _sweep_finding(group: list[RowFinding], root: PathNode) -> RowFinding:
    first = group[0]
    names = covering_modules(root, {finding.path for finding in group}, _RELEVANT_ROWS.get(first.kind, _has_params))
    before, after = first.before, first.after
    if first.kind in ("frozen", "unfrozen"):
        params = sum(_params_of(finding.new) for finding in group)
        before = f"{params:,} params in {len(group):,} rows {'trainable' if first.kind == 'frozen' else 'frozen'}"
    elif first.kind in ("dtype", "calls"):
        before = f"{len(group):,} rows {before}"
    elif first.kind == "follows":
        names = _outermost(names)
        before, after = "", _common_shifts(group) if first.through else "connection to rows that came or went"
    path = list_text(_patterns(names)) if len(group) > 1 else first.path
    delta = sum((finding.moved for finding in group), MetricDelta())
    return replace(first, path=path, before=before, after=after, moved=delta, rows=len(group))


def _outermost(names: Sequence[str]) -> list[str]:
    """Names without those inside another one of them; a module comes before what it holds."""
    outermost: list[str] = []
    for name in names:
        if not outermost or not name.startswith((f"{outermost[-1]}.", f"{outermost[-1]}/")):
            outermost.append(name)
    return outermost


def _patterns(names: Sequence[str]) -> list[str]:
    """Names that differ in the number of a block as one."""
    return [finding.path for finding in runs([RowFinding("follows", name, "", "") for name in names])]


def _params_of(layer: Layer | None) -> int:
    return 0 if layer is None else layer.params


def _common_shifts(group: Sequence[RowFinding]) -> str:
    """The commonest shifts of the outputs: `output 768 -> 1,024`."""
    shift_counts: Counter[str] = Counter()
    for finding in group:
        if finding.old is not None and finding.new is not None:
            shift_counts.update(
                {
                    f"{dim_text(old_dim)} -> {dim_text(new_dim)}"
                    for old_dim, new_dim in spec_shifts(finding.old, finding.new)
                }
            )
    texts = [text for text, _ in shift_counts.most_common(3)]
    more = len(shift_counts) - len(texts)
    return f"output {', '.join(texts)}{f' and {more} more' if more else ''}" if texts else "output"


def _has_params(layer: Layer) -> bool:
    return bool(layer.params)


def _has_output(layer: Layer) -> bool:
    return bool(layer.outputs)


def _has_weights(layer: Layer) -> bool:
    return bool(layer.weights)


_RELEVANT_ROWS: dict[str, Callable[[Layer], bool]] = {
    "follows": _has_output,
    "dtype": _has_weights,
    "calls": _has_weights,
}


def covering_modules(root: PathNode, paths: set[str], relevant: Callable[[Layer], bool]) -> list[str]:
    """The fewest modules that hold all of `paths` and no other relevant row."""

    def visit(node: PathNode) -> tuple[bool, list[str]]:
        """Whether all relevant rows here are among `paths`, and the names for those that are."""
        complete, names = True, []
        for child in node.children:
            covered, inside = visit(child)
            complete &= covered
            names += inside
        if node.row is not None and (node.path in paths or relevant(node.row)):
            complete &= node.path in paths
            names = [node.path, *names] if node.path in paths else names
        return complete, [node.path] if complete and names and node is not root else names

    return visit(root)[1]


def ranked(findings: Iterable[RowFinding]) -> list[RowFinding]:
    """Causes first, and of these what moved most params; what follows last; else in the order of the model."""
    return sorted(findings, key=lambda finding: (finding.rank, -abs(finding.moved.params)))
