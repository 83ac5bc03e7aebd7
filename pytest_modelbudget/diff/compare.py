"""Two summaries in, changes out: match the rows, tell what differs, fold what is alike, rank."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_modelbudget.diff import fold
from pytest_modelbudget.diff.change import Change, Kind
from pytest_modelbudget.diff.facts import fields, row_facts, subtree
from pytest_modelbudget.diff.finding import Finding
from pytest_modelbudget.diff.flow import Flow
from pytest_modelbudget.diff.match import Match, match
from pytest_modelbudget.diff.names import order, renames
from pytest_modelbudget.diff.totals import ports, totals
from pytest_modelbudget.diff.tree import Node
from pytest_modelbudget.diff.words import shown
from pytest_modelbudget.summary import Layer, Summary


def changes(before: Summary, after: Summary) -> tuple[Change, ...]:
    """Return what changed from `before` to `after`, empty when they are the same model.

    Totals first, then inputs and outputs, then rows: causes before what they caused, largest difference of params
    first, names after them, what only follows last. Row by row the same as two equal summaries of a deep model in
    time near-linear in rows.
    """
    if [(row.path, *fields(row)) for row in before.layers] == [(row.path, *fields(row)) for row in after.layers]:
        return (*totals(before, after, ()), *ports(before, after))
    found = match(before, after)
    folded = fold.runs(fold.sweeps(list(_findings(before, after, found)), found.new))
    rows = map(_change, fold.ranked(fold.blocks(folded)))
    return (*totals(before, after, folded), *ports(before, after), *rows)


def _findings(before: Summary, after: Summary, found: Match) -> Iterator[Finding]:
    flow = Flow(before, after, found)
    for _, old, _, new in found.rows:
        if old.path != new.path or fields(old) != fields(new):
            yield from row_facts(old, new, flow)
        elif any(name in flow.path and flow.path[name] != name for call in old.connected_to for name in call):
            yield from row_facts(old, new, flow)  # the same words now name other rows
    names = list(renames(found))
    yield from names
    yield from _came_and_went("removed", _whole(found.old, found.removed), {one.was for one in names})
    yield from _came_and_went("added", _whole(found.new, found.added), {one.path for one in names})
    yield from order(found)


def _came_and_went(kind: Kind, groups: Iterator[list[Layer]], wrappers: set[str]) -> Iterator[Finding]:
    """The rows without counterpart, but not the row of a wrapper that is told as the new name of what it wraps."""
    for layers in groups:
        if not (layers[0].path in wrappers and layers[0].container and not layers[0].weights):
            yield subtree(kind, layers)


def _whole(root: Node, gone: Iterator[Node]) -> Iterator[list[Layer]]:
    """Rows in groups: a row with all that is inside it where all of that is among them, else alone."""
    left = set(gone)
    whole: dict[Node, bool] = {}
    for node in reversed(list(root.below())):
        whole[node] = (node.row is None or node in left) and all(whole[child] for child in node.children)
    for node in root.below():
        if node not in left:
            continue
        layers = [inside.row for inside in node.below() if inside.row is not None] if whole[node] else [node.row]
        left.difference_update(node.below() if whole[node] else ())
        yield [layer for layer in layers if layer is not None]


def _change(one: Finding) -> Change:
    moves = one.kind in _MOVES and (one.moved.params or one.kind in ("added", "removed"))
    return Change(
        kind=one.kind,
        path=one.path,
        before=one.before or (one.was if one.kind in _NAMES else ""),
        after=one.after or (one.path if one.kind in _NAMES else ""),
        delta=one.moved.params if moves else None,
        was=one.was,
        count=one.count,
        why=shown(_reason(one), 600),
        rows=one.rows,
    )


_MOVES = ("added", "removed", "type", "widened", "narrowed", "weights", "tied", "untied")
_NAMES = ("renamed", "moved")


def _reason(one: Finding) -> str:
    cause = ""
    if one.through and one.kind != "follows":
        cause = f"input {f'from {shown(one.source)} ' if one.source else ''}{one.through}"
    return "; ".join(filter(None, (one.why, cause)))
