"""Layers that are run one after the other by one loop hold their weights stacked: more of them is one change.

In a stack of `n` layers (a scan over them) each weight has a first dimension of `n`, and each row is called `n` times.
"""

from __future__ import annotations

from collections.abc import Sequence

from pytest_modelbudget.diff.finding import MetricDelta, RowFinding
from pytest_modelbudget.summary import Layer

Depths = tuple[int, int]
"""Layers of a stack before and after."""

_KINDS = ("widened", "narrowed", "weights", "buffer", "calls")


def as_one(findings: Sequence[RowFinding]) -> list[RowFinding]:
    """The findings with all those that are a stack's other depth as one for each stack, at its outermost row."""
    stacks: dict[tuple[str, Depths], list[int]] = {}
    for index, finding in enumerate(findings):
        depths = _depths(finding)
        if depths is not None:
            head = next(
                (path for path, known in stacks if known == depths and _is_inside(finding.path, path)), finding.path
            )
            stacks.setdefault((head, depths), []).append(index)
    told: dict[int, RowFinding | None] = {}
    for key, indexes in stacks.items():
        group = [findings[index] for index in indexes]
        if _moves_params(group):
            told |= dict.fromkeys(indexes)
            told[indexes[0]] = _stack_finding(*key, group)
    merged = (told.get(index, finding) for index, finding in enumerate(findings))
    return [finding for finding in merged if finding is not None]


def _moves_params(group: Sequence[RowFinding]) -> bool:
    """Whether it is a stack: what holds no weights may just be called more often."""
    return any(finding.moved for finding in group)


def _is_inside(path: str, outer: str) -> bool:
    return path == outer or path.startswith((f"{outer}.", f"{outer}/"))


def _depths(finding: RowFinding) -> Depths | None:
    """The depths of the stack that a finding is about, when it is about nothing else."""
    old, new = finding.old, finding.new
    if finding.kind not in _KINDS or old is None or new is None or not (old.calls and new.calls):
        return None
    depths = old.calls, new.calls
    if old.calls == new.calls or len(old.weights) != len(new.weights):
        return None
    rest = [(weight.name, weight.shape[1:]) for weight in old.weights]
    same = rest == [(weight.name, weight.shape[1:]) for weight in new.weights]
    stacked = all(weight.shape[:1] == (old.calls,) for weight in old.weights)
    return depths if same and stacked and all(weight.shape[:1] == (new.calls,) for weight in new.weights) else None


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
