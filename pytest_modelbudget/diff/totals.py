"""The totals and ports that changed, each total split by what moved it; the parts sum to the difference."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

from pytest_modelbudget import units
from pytest_modelbudget.diff.change import Change
from pytest_modelbudget.diff.finding import RowFinding
from pytest_modelbudget.diff.words import shown
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.summary.metrics import FILE_METRICS, METRICS, STORED, Number
from pytest_modelbudget.summary.totals import Totals, number_of

_MOST_PARTS = 4

_SPLIT_KINDS: dict[str, tuple[str, ...]] = {
    "trainable_params": ("frozen", "unfrozen"),
    "non_trainable_params": ("frozen", "unfrozen"),
    "weight_bytes": ("dtype",),
}
"""Kinds without which a total moves as the params do, so that its split would say the same again."""


Counted = Summary | Totals
"""A model with its rows, or its totals alone."""


def changes_of_totals(before: Totals, after: Totals) -> Iterator[Change]:
    """What changed where one side has no rows: totals, inputs and outputs, and whether any row did.

    Numbers that follow from the rows alone are told where the rows changed: elsewhere another release counts them.
    """
    stored = list(total_changes(before, after, ()))
    yield from stored
    if before.rows != after.rows:
        yield from _derived_changes(before, after, {(change.before, change.after) for change in stored})
    yield from port_changes(before, after)
    if before.rows != after.rows:
        yield Change("port", "rows", before.rows, after.rows, why=NO_ROWS)


NO_ROWS = "which rows changed is not kept (snapshot: totals); modelbudget show ID prints those of now"
"""Why the rows that changed are not told."""


def _derived_changes(before: Totals, after: Totals, stored: Container[tuple[str, str]]) -> Iterator[Change]:
    """Other numbers that changed, but those that moved as a `stored` total did."""
    for name, old in before.numbers.items():
        new = after.numbers.get(name, old)
        if name not in (*STORED, *FILE_METRICS) and old != new:
            delta = new - old if isinstance(old, int) and isinstance(new, int) else None
            texts = _number_text(name, old), _number_text(name, new)
            if texts not in stored:
                yield Change("total", name, *texts, delta)


def _number_text(name: str, number: Number | None) -> str:
    if number is None:
        return "?"
    return units.count(number) if isinstance(number, int) else METRICS[name].show(number)


def total_changes(before: Counted, after: Counted, findings: Sequence[RowFinding]) -> Iterator[Change]:
    """The totals that changed."""
    for name in STORED:
        old, new = _stored(before, name), _stored(after, name)
        if old != new:
            parts = causes(name, findings)
            yield Change(
                "total", name, units.count(old), units.count(new), new - old, why=split_text(parts), parts=parts
            )
    yield from _file_changes(before, after)
    if before.flops.rules == after.flops.rules and before.flops != after.flops:
        first, second = before.flops.value, after.flops.value
        bound = before.flops.is_lower_bound or after.flops.is_lower_bound
        delta = None if first is None or second is None or bound else second - first
        yield Change(
            "total", "flops", flops_text(before), flops_text(after), delta, why=_uncounted_change(before, after)
        )


def _file_changes(before: Counted, after: Counted) -> Iterator[Change]:
    """What changed of an exported file."""
    for name in FILE_METRICS:
        old, new = number_of(before, name), number_of(after, name)
        if old != new:
            delta = new - old if isinstance(old, int) and isinstance(new, int) else None
            yield Change("total", name, _number_text(name, old), _number_text(name, new), delta)


def _stored(counted: Counted, name: str) -> int:
    """The sum over the rows, also where a delegate hides weights that are in none."""
    number = getattr(counted, name) if isinstance(counted, Summary) else number_of(counted, name)
    assert isinstance(number, int)
    return number


def causes(metric: str, findings: Sequence[RowFinding]) -> tuple[tuple[str, int], ...]:
    """What moved a total, largest first: `("768 -> 1,024 in 98 rows", 38_123_520)`."""
    kinds = _SPLIT_KINDS.get(metric)
    if kinds is not None and not any(finding.kind in kinds for finding in findings):
        return ()
    parts: dict[str, list[int]] = {}
    first_paths: dict[str, str] = {}
    for finding in findings:
        if moved := getattr(finding.moved, metric):
            label = (
                finding.cause
                if finding.kind in ("widened", "narrowed", "weights", "dtype") and finding.cause
                else _cause_label(finding)
            )
            first_paths.setdefault(label, shown(finding.path))
            entry = parts.setdefault(label, [0, 0])
            entry[0], entry[1] = entry[0] + moved, entry[1] + (finding.rows if label == finding.cause else 0)
    ordered = sorted(parts.items(), key=lambda entry: -abs(entry[1][0]))
    return tuple((_label_with_rows(label, rows, first_paths[label]), moved) for label, (moved, rows) in ordered)


def split_text(parts: Sequence[tuple[str, int]]) -> str:
    """Two causes or more: `768 -> 1,024 in 98 rows +38,123,520, tie lost at head +38,597,376`."""
    if len(parts) < 2:
        return ""
    texts = [f"{label} {moved:+,}" for label, moved in parts[:_MOST_PARTS]]
    if smaller := parts[_MOST_PARTS:]:
        texts.append(f"{len(smaller)} more {sum(moved for _, moved in smaller):+,}")
    return ", ".join(texts)


def _label_with_rows(label: str, rows: int, path: str) -> str:
    if not rows:
        return label
    return f"{path} {label}" if rows == 1 else f"{label} in {rows:,} rows"


def _cause_label(finding: RowFinding) -> str:
    path = shown(finding.path)
    match finding.kind:
        case "added" | "removed":
            return f"{path} {finding.kind}"
        case "untied":
            return f"tie lost at {path}"
        case "tied":
            return f"tied at {path}"
        case "type" | "buffer" | "weights":
            return f"{'buffers' if finding.kind == 'buffer' else finding.kind} of {path}"
        case "frozen" | "unfrozen":
            return f"{path} {finding.kind}"
        case _:
            return path


def flops_text(summary: Counted) -> str:
    """The exact FLOPs: `12,200`, `>=12,200` for a lower bound, `?` for unknown."""
    if summary.flops.value is None:
        return "?"
    return f"{'>=' if summary.flops.is_lower_bound else ''}{units.count(summary.flops.value)}"


def _uncounted_change(before: Counted, after: Counted) -> str:
    """The operators without a formula, when they are others than before."""
    if before.flops.uncounted == after.flops.uncounted:
        return ""
    old_text, new_text = (
        ", ".join(f"{shown(name)} x{calls}" for name, calls in summary.flops.uncounted[:3]) or "none"
        for summary in (before, after)
    )
    return f"not counted {old_text} -> {new_text}"


def port_changes(before: Counted, after: Counted) -> Iterator[Change]:
    """The framework, inputs and outputs that changed."""
    pairs = (
        ("framework", before.framework, after.framework),
        ("inputs", ", ".join(map(str, before.inputs)), ", ".join(map(str, after.inputs))),
        ("outputs", ", ".join(map(str, before.outputs)), ", ".join(map(str, after.outputs))),
    )
    for name, old, new in pairs:
        if old != new:
            yield Change("port", name, old or "(none)", new or "(none)")
