"""The totals and ports that changed, each total split by what moved it; the parts sum to the difference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytest_modelbudget import units
from pytest_modelbudget.diff.change import Change
from pytest_modelbudget.diff.finding import Finding
from pytest_modelbudget.diff.words import shown
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.summary.metrics import STORED

_MOST_PARTS = 4

_TELLING: dict[str, tuple[str, ...]] = {
    "trainable_params": ("frozen", "unfrozen"),
    "non_trainable_params": ("frozen", "unfrozen"),
    "weight_bytes": ("dtype",),
}
"""Kinds without which a total moves as the params do, so that its split would say the same again."""


def totals(before: Summary, after: Summary, findings: Sequence[Finding]) -> Iterator[Change]:
    """The totals that changed."""
    for name in STORED:
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            yield Change("total", name, units.count(old), units.count(new), new - old, why=split(name, findings))
    if before.flops.rules == after.flops.rules and before.flops != after.flops:
        old, new = before.flops.value, after.flops.value
        bound = before.flops.is_lower_bound or after.flops.is_lower_bound
        delta = None if old is None or new is None or bound else new - old
        yield Change("total", "flops", flops_text(before), flops_text(after), delta, why=_uncounted(before, after))


def split(metric: str, findings: Sequence[Finding]) -> str:
    """What moved a total, largest first: `768 -> 1,024 in 98 rows +38,123,520, tie lost at head +38,597,376`."""
    kinds = _TELLING.get(metric)
    if kinds is not None and not any(one.kind in kinds for one in findings):
        return ""
    parts: dict[str, list[int]] = {}
    first: dict[str, str] = {}
    for one in findings:
        if moved := getattr(one.moved, metric):
            label = one.cause if one.kind in ("widened", "narrowed", "weights", "dtype") and one.cause else _label(one)
            first.setdefault(label, shown(one.path))
            part = parts.setdefault(label, [0, 0])
            part[0], part[1] = part[0] + moved, part[1] + (one.rows if label == one.cause else 0)
    if len(parts) < 2:
        return ""
    ordered = sorted(parts.items(), key=lambda part: -abs(part[1][0]))
    words = [f"{_named(label, rows, first[label])} {moved:+,}" for label, (moved, rows) in ordered[:_MOST_PARTS]]
    if rest := ordered[_MOST_PARTS:]:
        words.append(f"{len(rest)} more {sum(part[0] for _, part in rest):+,}")
    return ", ".join(words)


def _named(label: str, rows: int, path: str) -> str:
    if not rows:
        return label
    return f"{path} {label}" if rows == 1 else f"{label} in {rows:,} rows"


def _label(one: Finding) -> str:
    path = shown(one.path)
    match one.kind:
        case "added" | "removed":
            return f"{path} {one.kind}"
        case "untied":
            return f"tie lost at {path}"
        case "tied":
            return f"tied at {path}"
        case "type" | "buffer" | "weights":
            return f"{'buffers' if one.kind == 'buffer' else one.kind} of {path}"
        case "frozen" | "unfrozen":
            return f"{path} {one.kind}"
        case _:
            return path


def flops_text(summary: Summary) -> str:
    """The exact FLOPs: `12,200`, `>=12,200` for a lower bound, `?` for unknown."""
    if summary.flops.value is None:
        return "?"
    return f"{'>=' if summary.flops.is_lower_bound else ''}{units.count(summary.flops.value)}"


def _uncounted(before: Summary, after: Summary) -> str:
    """The operators without a formula, when they are others than before."""
    if before.flops.uncounted == after.flops.uncounted:
        return ""
    was, now = (
        ", ".join(f"{shown(name)} x{calls}" for name, calls in one.flops.uncounted[:3]) or "none"
        for one in (before, after)
    )
    return f"not counted {was} -> {now}"


def ports(before: Summary, after: Summary) -> Iterator[Change]:
    """The framework, inputs and outputs that changed."""
    pairs = (
        ("framework", before.framework, after.framework),
        ("inputs", ", ".join(map(str, before.inputs)), ", ".join(map(str, after.inputs))),
        ("outputs", ", ".join(map(str, before.outputs)), ", ".join(map(str, after.outputs))),
    )
    for name, old, new in pairs:
        if old != new:
            yield Change("port", name, old or "(none)", new or "(none)")
