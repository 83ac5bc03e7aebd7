"""Two summaries in, changes out: match the rows, tell what differs, fold what is alike, rank."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_modelbudget.diff import fold, stacks
from pytest_modelbudget.diff.change import Change, ChangeKind, Changes
from pytest_modelbudget.diff.facts import compared_fields, row_findings, subtree_finding
from pytest_modelbudget.diff.finding import RowFinding
from pytest_modelbudget.diff.flow import Flow
from pytest_modelbudget.diff.match import Match, match
from pytest_modelbudget.diff.names import order_change, renames
from pytest_modelbudget.diff.totals import changes_of_totals, port_changes, total_changes
from pytest_modelbudget.diff.tree import PathNode
from pytest_modelbudget.diff.words import shown
from pytest_modelbudget.summary import Layer, Summary
from pytest_modelbudget.summary.totals import Totals


def changes(before: Summary | Totals, after: Summary | Totals) -> Changes:
    """Return what changed from `before` to `after`, empty when they are the same model.

    Totals first, then inputs and outputs, then rows: causes before what they caused, largest difference of params
    first, names after them, what only follows last. Row by row the same as two equal summaries of a deep model in
    time near-linear in rows. Where one side has totals and no rows, totals are compared, and a digest of the rows.
    """
    if isinstance(before, Totals) or isinstance(after, Totals):
        return Changes(changes_of_totals(Totals.of(before), Totals.of(after)))
    if [(row.path, *compared_fields(row)) for row in before.layers] == [
        (row.path, *compared_fields(row)) for row in after.layers
    ]:
        return Changes((*total_changes(before, after, ()), *port_changes(before, after)))
    matched = match(before, after)
    row_changes = stacks.merged(list(findings(before, after, matched)), before, after)
    folded = fold.runs(fold.sweeps(row_changes, matched.new))
    rows = map(to_change, fold.ranked(fold.blocks(folded)))
    return Changes((*total_changes(before, after, folded), *port_changes(before, after), *rows))


def findings(before: Summary, after: Summary, matched: Match) -> Iterator[RowFinding]:
    """Each difference of each row, before any are folded."""
    flow = Flow(before, after, matched)
    for _, old, _, new in matched.rows:
        if old.path != new.path or compared_fields(old) != compared_fields(new):
            yield from row_findings(old, new, flow)
        elif any(name in flow.path and flow.path[name] != name for call in old.connected_to for name in call):
            yield from row_findings(old, new, flow)  # the same words now name other rows
    name_findings = list(renames(matched))
    yield from name_findings
    yield from _added_or_removed(
        "removed", _whole_subtrees(matched.old, matched.removed), {rename.was for rename in name_findings}
    )
    yield from _added_or_removed(
        "added", _whole_subtrees(matched.new, matched.added), {rename.path for rename in name_findings}
    )
    yield from order_change(matched)


def _added_or_removed(kind: ChangeKind, groups: Iterator[list[Layer]], wrappers: set[str]) -> Iterator[RowFinding]:
    """The rows without counterpart, but not the row of a wrapper that is told as the new name of what it wraps."""
    for layers in groups:
        if not (layers[0].path in wrappers and layers[0].container and not layers[0].weights):
            yield subtree_finding(kind, layers)


def _whole_subtrees(root: PathNode, nodes: Iterator[PathNode]) -> Iterator[list[Layer]]:
    """Rows in groups: a row with all that is inside it where all of that is among them, else alone."""
    remaining = set(nodes)
    complete: dict[PathNode, bool] = {}
    for node in reversed(list(root.below())):
        complete[node] = (node.row is None or node in remaining) and all(complete[child] for child in node.children)
    for node in root.below():
        if node not in remaining:
            continue
        layers = [inside.row for inside in node.below() if inside.row is not None] if complete[node] else [node.row]
        remaining.difference_update(node.below() if complete[node] else ())
        yield [layer for layer in layers if layer is not None]


def to_change(finding: RowFinding) -> Change:
    has_params = finding.kind in _KINDS_WITH_PARAMS and (finding.moved.params or finding.kind in ("added", "removed"))
    return Change(
        kind=finding.kind,
        path=finding.path,
        before=finding.before or (finding.was if finding.kind in _NAME_KINDS else ""),
        after=finding.after or (finding.path if finding.kind in _NAME_KINDS else ""),
        delta=finding.moved.params if has_params else None,
        was=finding.was,
        count=finding.count,
        why=shown(_reason_text(finding), 600),
        rows=finding.rows,
    )


_KINDS_WITH_PARAMS = ("added", "removed", "type", "widened", "narrowed", "weights", "tied", "untied")
_NAME_KINDS = ("renamed", "moved")


def _reason_text(finding: RowFinding) -> str:
    cause = ""
    if finding.through and finding.kind != "follows":
        cause = f"input {f'from {shown(finding.source)} ' if finding.source else ''}{finding.through}"
    return "; ".join(filter(None, (finding.why, cause)))
