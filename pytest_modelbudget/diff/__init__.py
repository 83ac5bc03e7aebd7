"""What changed between two summaries of a model, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pytest_modelbudget import units
from pytest_modelbudget.summary import Layer, Summary

Kind = Literal["added", "removed", "changed", "total", "port"]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that moved: a `total` (metric name as `path`), a `port` (inputs, outputs) or a layer.

    `before` and `after` are the two values as text; `delta` is the difference of params (or of the total),
    None where there is none to give.
    """

    kind: Kind
    path: str
    before: str
    after: str
    delta: int | None = None

    def __str__(self) -> str:
        match self.kind:
            case "added":
                return f"+ {self.path}  {self.after}"
            case "removed":
                return f"- {self.path}  {self.before}"
            case "total":
                return f"{self.path} {self.before} -> {self.after}{self._delta}"
            case _:
                return f"~ {self.path}  {self.before} -> {self.after}"

    @property
    def _delta(self) -> str:
        if self.delta is None:
            return ""
        before = int(self.before.replace(",", ""))
        return f"  ({self.delta:+,}{f', {self.delta / before:+.2%}' if before else ''})"


TOTALS = ("params", "trainable_params", "non_trainable_params", "buffers", "weight_bytes")


def changes(before: Summary, after: Summary) -> tuple[Change, ...]:
    """Return what changed from `before` to `after`: totals, inputs and outputs, then rows in their order."""
    return (*_totals(before, after), *_ports(before, after), *_rows(before, after))


def _totals(before: Summary, after: Summary) -> Iterator[Change]:
    for name in TOTALS:
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            yield Change("total", name, units.count(old), units.count(new), new - old)
    if before.flops.rules == after.flops.rules and before.flops != after.flops:
        old, new = before.flops.value, after.flops.value
        delta = None if old is None or new is None else new - old
        yield Change("total", "flops", flops_text(before), flops_text(after), delta if _plain(before, after) else None)


def _plain(*summaries: Summary) -> bool:
    return not any(summary.flops.is_lower_bound for summary in summaries)


def flops_text(summary: Summary) -> str:
    """The exact FLOPs: `12,200`, `>=12,200` for a lower bound, `?` for unknown."""
    if summary.flops.value is None:
        return "?"
    return f"{'>=' if summary.flops.is_lower_bound else ''}{units.count(summary.flops.value)}"


def _ports(before: Summary, after: Summary) -> Iterator[Change]:
    pairs = (
        ("framework", before.framework, after.framework),
        ("inputs", ", ".join(map(str, before.inputs)), ", ".join(map(str, after.inputs))),
        ("outputs", ", ".join(map(str, before.outputs)), ", ".join(map(str, after.outputs))),
    )
    for name, old, new in pairs:
        if old != new:
            yield Change("port", name, old or "(none)", new or "(none)")


def _rows(before: Summary, after: Summary) -> Iterator[Change]:
    old = {layer.path: layer for layer in before.layers}
    new = {layer.path: layer for layer in after.layers}
    for path, layer in old.items():
        if path not in new:
            yield Change("removed", path, _row_text(layer), "", -layer.params)
        elif facts := list(_facts(layer, new[path])):
            was, now = zip(*facts, strict=True)
            yield Change("changed", path, "  ".join(was), "  ".join(now), new[path].params - layer.params)
    for path, layer in new.items():
        if path not in old:
            yield Change("added", path, "", _row_text(layer), layer.params)
    common = [path for path in old if path in new]
    if common != [path for path in new if path in old]:
        yield Change("port", "order of layers", "as in the snapshot", "another")


def _row_text(layer: Layer) -> str:
    return "  ".join(filter(None, (layer.type, layer.output_text, f"{layer.params:,} params", layer.weights_text)))


def _facts(old: Layer, new: Layer) -> Iterator[tuple[str, str]]:
    """The fields of a row that differ, each as (before, after)."""
    pairs = (
        (old.type, new.type),
        (old.output_text or "no output", new.output_text or "no output"),
        (f"{old.params:,} params", f"{new.params:,} params"),
        (old.weights_text or "no weights", new.weights_text or "no weights"),
        (connections_text(old), connections_text(new)),
        (f"called {_times(old.calls)}", f"called {_times(new.calls)}"),
        (_nesting(old), _nesting(new)),
    )
    return (pair for pair in pairs if pair[0] != pair[1])


def connections_text(layer: Layer) -> str:
    """`from a, b`; connections of different calls are joined by `; `."""
    return f"from {'; '.join(', '.join(call) for call in layer.connected_to) or 'nothing'}"


def _times(calls: int | None) -> str:
    return "an unknown number of times" if calls is None else f"{calls} times"


def _nesting(layer: Layer) -> str:
    return "holds layers" if layer.container else "holds no layers"
