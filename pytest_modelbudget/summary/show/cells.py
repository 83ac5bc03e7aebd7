"""What stands in the cells of a layer table and in the lines under it; columns and rounding are decided here once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pytest_modelbudget import units
from pytest_modelbudget.summary.formulas import why
from pytest_modelbudget.summary.metrics import METRICS
from pytest_modelbudget.summary.model import Layer, Summary
from pytest_modelbudget.summary.show.exports import export_lines
from pytest_modelbudget.summary.show.nesting import parent_rows, subtotals
from pytest_modelbudget.system.escape import harmless

UNKNOWN = "?"
REAL_RUN = "real run"
"""Beside a model of which a copy was run with memory, because the abstract pass could not decide."""


@dataclass(frozen=True, slots=True)
class TableRow:
    """One line of a layer table."""

    layer: str
    output: str
    params: str
    connected: str
    why: str


def title(summary: Summary) -> str:
    """The name of a model, its framework, and how it was run if not abstractly: `net (torch, real run)`."""
    run = f", {REAL_RUN}" if summary.real_run else ""
    return harmless(f"{summary.model} ({summary.framework}{run})")


def rows(summary: Summary) -> Iterator[TableRow]:
    """The layer table in the shape of `model.summary()`; a row that holds others has the sum of all in parentheses."""
    parents = parent_rows(summary.layers)
    sums, holders = subtotals([layer.params for layer in summary.layers], parents), set(parents)
    for index, layer in enumerate(summary.layers):
        own = "" if layer.container and not layer.weights else params(layer)
        inside = f"({sums[index]:,})" if index in holders else ""
        yield TableRow(
            layer=harmless(f"{layer.path} ({layer.type})"),
            output=harmless(output(layer)),
            params=" ".join(filter(None, (own, inside))) or "-",
            connected=harmless(connections(layer)),
            why=harmless(why(layer)),
        )


def legend(summary: Summary) -> str:
    """What the numbers in parentheses are, under a table that has some; empty for others."""
    nested = any(parent >= 0 for parent in parent_rows(summary.layers))
    return "(n): the row and all rows inside it together; the totals count each row once" if nested else ""


def connections(layer: Layer) -> str:
    """The layers that feed it: those of one call joined by `, `, of different calls by `; `."""
    names = "; ".join(", ".join(call) for call in layer.connected_to if call)
    return names or (UNKNOWN if layer.calls is None else "-")


def output(layer: Layer) -> str:
    """Its output shapes."""
    if layer.calls == 0:
        return "never called"
    return layer.output_text or UNKNOWN


def params(layer: Layer) -> str:
    """Its own params, and whether some are counted elsewhere."""
    tied = any(weight.tied_to is not None and weight.role == "param" for weight in layer.weights)
    return f"{layer.params:,}{' (tied)' if tied else ''}"


def number(summary: Summary, metric: str, show: Callable[[int], str] = "{:,}".format) -> str:
    """A whole number of a model; `?` where it is not known, as where a delegate hides weights."""
    value = METRICS[metric].get(summary)
    return UNKNOWN if value is None else show(int(value))


def totals(summary: Summary) -> Iterator[tuple[str, str]]:
    """The lines under a layer table: name and value."""
    roles = {"params": "param", "buffers": "buffer"}
    for metric in METRICS.values():
        if metric.line and metric.listed(summary):
            value, role = metric.get(summary), roles.get(metric.name)
            if metric.kind == "bytes" and value is not None:
                size = f" ({units.size(int(value))})"
            else:
                size = f" ({units.size(weight_bytes(summary, role))})" if role and value is not None else ""
            yield metric.line, f"{UNKNOWN if value is None else metric.show(value)}{size}"
    sizes_text = ", ".join(f"{name}={size}" for name, size in summary.sizes)
    yield harmless(f"FLOPs, forward{f' at {sizes_text}' if sizes_text else ''}"), flops(summary)
    if summary.flops.uncounted:
        yield "Not counted", ", ".join(f"{harmless(name)} x{calls}" for name, calls in summary.flops.uncounted)
    if summary.activation_bytes is not None:
        yield "Activations for backward", units.size(summary.activation_bytes)
    if summary.optimizer_bytes is not None:
        yield "Optimizer state", units.size(summary.optimizer_bytes)
    if summary.export is not None:
        yield from export_lines(summary.export, summary)


def weight_bytes(summary: Summary, role: str) -> int:
    """Bytes of all weights of one role (`param`, `buffer`)."""
    return sum(weight.bytes for layer in summary.layers for weight in layer.own if weight.role == role)


def flops(summary: Summary) -> str:
    """`7.716 GFLOPs (3.858 GMACs)`, `>=` in front of a lower bound, `?` for unknown."""
    value = summary.flops.value
    if value is None:
        return UNKNOWN
    macs = units.flops(value // 2).replace("FLOPs", "MACs")
    return f"{'>= ' if summary.flops.is_lower_bound else ''}{units.flops(value)} ({macs})"
