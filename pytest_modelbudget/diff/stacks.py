"""Layers that are run one after the other by one loop hold their weights stacked: more of them is one change.

In a stack of `n` layers (a scan over them) each weight has a first dimension of `n`, and each row is called `n` times.
A table of `n` rows that is read `n` times has that too: a stack is only what has a matrix for each layer.
"""

from __future__ import annotations

from collections.abc import Sequence

from pytest_modelbudget.diff.finding import MetricDelta, RowFinding
from pytest_modelbudget.summary import Layer, Summary

Depths = tuple[int, int]
"""Layers of a stack before and after."""

_KINDS = ("widened", "narrowed", "weights", "buffer", "calls")
_FRAMEWORKS = ("jax",)
"""Where a loop over layers is one row for each module in it; elsewhere each layer is a module with rows of its own."""


def merged(findings: Sequence[RowFinding], before: Summary, after: Summary) -> list[RowFinding]:
    """The findings with all those that are a stack's other depth as one for each stack, at its outermost row."""
    if not {before.framework, after.framework} <= set(_FRAMEWORKS):
        return list(findings)
    result: list[RowFinding | None] = list(findings)
    for (head, depths), indexes in _stacks(findings).items():
        group = [findings[index] for index in indexes]
        if any(_has_matrices(finding) for finding in group):
            for index in indexes:
                result[index] = None
            result[indexes[0]] = _stack_finding(head, depths, group)
    return [finding for finding in result if finding is not None]


def _stacks(findings: Sequence[RowFinding]) -> dict[tuple[str, Depths], list[int]]:
    """The positions of the findings that may be about one stack, by its outermost path and its depths."""
    stacks: dict[tuple[str, Depths], list[int]] = {}
    for index, finding in enumerate(findings):
        depths = _depths(finding)
        if depths is not None:
            heads = (path for path, known in stacks if known == depths and _is_inside(finding.path, path))
            stacks.setdefault((next(heads, finding.path), depths), []).append(index)
    return stacks


def _has_matrices(finding: RowFinding) -> bool:
    """Whether each layer of a stack has a matrix in this row."""
    return finding.new is not None and any(len(weight.shape) > 2 for weight in finding.new.weights)


def _is_inside(path: str, outer: str) -> bool:
    return path == outer or path.startswith((f"{outer}.", f"{outer}/"))


def _depths(finding: RowFinding) -> Depths | None:
    """The depths of the stack that a finding is about, when it is about nothing else."""
    old, new = finding.old, finding.new
    if finding.kind not in _KINDS or old is None or new is None or not (old.calls and new.calls):
        return None
    if old.calls == new.calls or _each_layer(old) is None or _each_layer(old) != _each_layer(new):
        return None
    return old.calls, new.calls


def _each_layer(row: Layer) -> list[tuple[str, tuple[int, ...]]] | None:
    """The names and shapes of the weights of one layer of a stack; None for a row that cannot be one."""
    if any(weight.shape[:1] != (row.calls,) for weight in row.weights):
        return None
    return [(weight.name, weight.shape[1:]) for weight in row.weights]


def _stack_finding(head: str, depths: Depths, group: Sequence[RowFinding]) -> RowFinding:
    delta = sum((finding.moved for finding in group), MetricDelta())
    rows: dict[str, Layer] = {finding.path: finding.new for finding in group if finding.new is not None}
    each = sum(layer.params for layer in rows.values()) // depths[1]
    before, after = (f"{depth:,} layers in one stack" for depth in depths)
    return RowFinding(
        "weights",
        head,
        before,
        after,
        delta,
        why=f"{depths[0]:,} x {each:,} -> {depths[1]:,} x {each:,}" if each else "",
        cause=f"{depths[0]:,} -> {depths[1]:,}",
        rows=len(rows),
        old=group[0].old,
        new=group[0].new,
    )
