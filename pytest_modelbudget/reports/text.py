"""What every report shares: harmless text, and the columns of a model with their rounding, decided once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from pytest_modelbudget import units
from pytest_modelbudget.budget import METRICS
from pytest_modelbudget.check import Result, State
from pytest_modelbudget.explain import why
from pytest_modelbudget.summary import Layer, Summary

UNKNOWN = "?"
REAL_RUN = "real run"
"""Beside a model of which a copy was run with memory, because the abstract pass could not decide."""
_LONGEST = 400
_ORDER = tuple(State)
_COMMAND = re.compile(r"::(?=.*::)|##(?=(?:vso)?\[)")
"""What starts a command when a CI service meets it in a log: `::error::`, `##[error]`, `##vso[...]`."""


def harmless(text: str, *, longest: int = _LONGEST) -> str:
    """`text` on one line, without control and direction characters or commands to a CI service, cut when very long.

    >>> harmless("a\\x1b[2Jb\\nc")
    'a\\\\x1b[2Jb\\\\nc'
    """
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    shown = _COMMAND.sub(lambda match: f"{match[0][0]}\\x{ord(match[0][1]):02x}", shown)
    return shown if len(shown) <= longest else f"{shown[: longest - 3]}..."


def harmless_lines(text: str) -> str:
    """The same for text of several lines, such as a traceback."""
    return "\n".join(harmless(line) for line in text.splitlines())


@dataclass(frozen=True, slots=True)
class Row:
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


def marked(word: str, result: Result) -> str:
    """The word for a result, with a mark when its model needed a real run."""
    real = result.summary is not None and result.summary.real_run
    return f"{word} ({REAL_RUN})".strip() if real else word


def rows(summary: Summary) -> Iterator[Row]:
    """The layer table in the shape of `model.summary()`; `-` marks a row that only holds other rows."""
    for layer in summary.layers:
        yield Row(
            layer=harmless(f"{layer.path} ({layer.type})"),
            output=harmless(_output(layer)),
            params="-" if layer.container and not layer.weights else _params(layer),
            connected=harmless("; ".join(", ".join(call) for call in layer.connected_to if call)) or "-",
            why=harmless(why(layer)),
        )


def _output(layer: Layer) -> str:
    if layer.calls == 0:
        return "never called"
    return layer.output_text or UNKNOWN


def _params(layer: Layer) -> str:
    tied = any(weight.tied_to is not None and weight.role == "param" for weight in layer.weights)
    return f"{layer.params:,}{' (tied)' if tied else ''}"


def totals(summary: Summary) -> Iterator[tuple[str, str]]:
    """The lines under a layer table: name and value."""
    yield "Total params", f"{summary.params:,} ({units.size(weight_bytes(summary, 'param'))})"
    yield "Trainable params", f"{summary.trainable_params:,}"
    yield "Non-trainable params", f"{summary.non_trainable_params:,}"
    if summary.buffers:
        yield "Buffers", f"{summary.buffers:,} ({units.size(weight_bytes(summary, 'buffer'))})"
    at = ", ".join(f"{name}={size}" for name, size in summary.sizes)
    yield f"FLOPs, forward{f' at {at}' if at else ''}", flops(summary)
    if summary.flops.uncounted:
        yield "Not counted", ", ".join(f"{harmless(name)} x{calls}" for name, calls in summary.flops.uncounted)
    if summary.activation_bytes is not None:
        yield "Activations for backward", units.size(summary.activation_bytes)
    if summary.optimizer_bytes is not None:
        yield "Optimizer state", units.size(summary.optimizer_bytes)


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


def used(result: Result) -> tuple[str, Fraction] | None:
    """The model-wide max that is used most, as (short name of the metric, share used); None without such a limit."""
    if result.summary is None:
        return None
    shares = [
        (METRICS[budget.metric].short, Fraction(actual) / Fraction(budget.limit))
        for budget in result.limits
        if budget.layer is None and budget.bound == "max" and budget.limit
        if (actual := METRICS[budget.metric].get(result.summary)) is not None
    ]
    return max(shares, key=lambda share: share[1], default=None)


def used_text(result: Result) -> str:
    """`params 98.4%`; just over a limit never looks like just within it."""
    if (share := used(result)) is None:
        return "-"
    metric, part = share
    shown = units.percent(part)
    return f"{metric} {'>' if part > 1 and shown == '100.0%' else ''}{shown}"


def verdict(results: Sequence[Result]) -> str:
    """`2 over budget, 1 changed, 37 ok`, worst first."""
    counts: dict[str, int] = {}
    results = [result for result in results if result.is_model or result.state.failed]
    for result in sorted(results, key=lambda result: _ORDER.index(result.state), reverse=True):
        counts[result.state.value] = counts.get(result.state.value, 0) + 1
    ok = counts.pop("ok", 0)
    words = [f"{number} {word.lower()}" for word, number in counts.items()]
    return ", ".join([*words, *([f"{ok} ok"] if ok or not words else [])])


def sorted_results(results: Sequence[Result]) -> list[Result]:
    """Failures first, then by id."""
    return sorted(results, key=lambda result: (not result.state.failed, result.id))
