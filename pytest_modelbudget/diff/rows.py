"""The same comparison row by row, unfolded, for those who draw a model: which row is which, and how it came out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pytest_modelbudget.diff.change import Change
from pytest_modelbudget.diff.compare import findings, to_change
from pytest_modelbudget.diff.facts import compared_fields
from pytest_modelbudget.diff.finding import Rank, RowFinding
from pytest_modelbudget.diff.match import Match, match
from pytest_modelbudget.summary import Summary

RowState = Literal["added", "removed", "changed", "follows", "renamed"]
"""How a row came out, where it is not the same: `changed` itself, or `follows` from what changed elsewhere."""

_STATE_OF_RANK: dict[Rank, RowState] = {
    Rank.CAUSE: "changed",
    Rank.CAUSED: "changed",
    Rank.NAME: "renamed",
    Rank.FOLLOWS: "follows",
}


@dataclass(frozen=True, slots=True)
class RowChange:
    """One row that is not as it was; `path` is empty for a removed one, `was` for an added one."""

    state: RowState
    path: str
    was: str
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class RowComparison:
    """The rows that differ, in the order of the new summary, removed ones last; and where the old paths are now.

    `paths` has each old path that has a counterpart, with the path of that.
    """

    rows: tuple[RowChange, ...]
    paths: dict[str, str]


def compare_rows(before: Summary, after: Summary) -> RowComparison:
    """Compare two summaries row by row; the same matching, and the same differences, as `changes` tells folded."""
    if [(row.path, *compared_fields(row)) for row in before.layers] == [
        (row.path, *compared_fields(row)) for row in after.layers
    ]:
        return RowComparison((), {row.path: row.path for row in before.layers})
    matched = match(before, after)
    paths = {old.path: new.path for _, old, _, new in matched.rows}
    return RowComparison(tuple(_row_changes(matched, findings(before, after, matched))), paths)


def _row_changes(matched: Match, row_findings: Iterable[RowFinding]) -> Iterator[RowChange]:
    findings_by_path: dict[str, list[RowFinding]] = {}
    for finding in row_findings:
        if finding.new is not None:
            findings_by_path.setdefault(finding.new.path, []).append(finding)
    added = {node.path for node in matched.added}
    origin = {new.path: old.path for _, old, _, new in matched.rows}
    for node in matched.new.below():
        if node.path in added:
            yield RowChange("added", node.path, "")
        elif node.row is not None:
            was, row_findings = origin[node.path], findings_by_path.get(node.path, [])
            states = [finding.rank for finding in row_findings]
            if states or was != node.path:
                state = _STATE_OF_RANK[min([*states, *([Rank.NAME] if was != node.path else [])])]
                yield RowChange(state, node.path, was, tuple(map(to_change, row_findings)))
    yield from (RowChange("removed", "", node.path) for node in matched.removed)
