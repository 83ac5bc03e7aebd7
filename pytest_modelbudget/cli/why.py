"""`modelbudget why MODEL [LAYER]`: where the params, FLOPs and bytes are, and why."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from fractions import Fraction

from pytest_modelbudget import units
from pytest_modelbudget.budget import layer_value
from pytest_modelbudget.cli.targets import Targets
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.explain import reading
from pytest_modelbudget.summary import Layer, Summary
from pytest_modelbudget.summary.formulas import why
from pytest_modelbudget.summary.show import cells
from pytest_modelbudget.system.escape import harmless


def run(options: Namespace) -> int:
    """Print what stands out, and the largest layers; or all that is known of some."""
    summary = Targets(options).summary(options.model)
    lines = _model(summary, options.top) if options.layer is None else _layers(summary, options.layer)
    print("\n".join(lines))
    return 0


def _model(summary: Summary, most: int) -> Iterator[str]:
    yield f"Model: {harmless(summary.model)} ({summary.framework})"
    yield from (f"{name}: {value}" for name, value in cells.totals(summary))
    yield from (f"Note: {harmless(note)}" for note in summary.notes)
    if said := reading(summary):
        yield ""
        yield "What stands out:"
        yield from (f"  {harmless(sentence)}" for sentence in said)
    ranked = sorted((layer for layer in summary.layers if layer.params), key=lambda layer: -layer.params)
    if ranked:
        yield ""
        yield f"Where the {summary.params:,} params are:"
    for layer in ranked[:most]:
        share = units.percent(Fraction(layer.params, summary.params))
        yield f"  {share:>6}  {layer.params:>15,}  {harmless(f'{layer.path} ({layer.type})')}: {harmless(why(layer))}"
    if rest := ranked[most:]:
        params = sum(layer.params for layer in rest)
        share = units.percent(Fraction(params, summary.params))
        yield f"  {share:>6}  {params:>15,}  in {len(rest):,} other layer{'' if len(rest) == 1 else 's'}"


def _layers(summary: Summary, wanted: str) -> Iterator[str]:
    """Everything about each layer whose path is `wanted`, or matches it as a glob.

    Raises:
        ModelBudgetError: there is none.
    """
    found = [layer for layer in summary.layers if layer.path == wanted]
    found = found or [layer for layer in summary.layers if fnmatchcase(layer.path, wanted)]
    if not found:
        paths = [layer.path for layer in summary.layers]
        near = get_close_matches(wanted, paths, n=3, cutoff=0.4) or paths[:3]
        raise ModelBudgetError(
            f"{summary.model} has no layer {wanted!r}; near it are {', '.join(near) or '(it has none)'}"
        )
    for index, layer in enumerate(found):
        if index:
            yield ""
        yield from _layer(summary, layer, tuple(summary.below(layer.path)) if layer.container else (layer,))


def _layer(summary: Summary, layer: Layer, rows: Sequence[Layer]) -> Iterator[str]:
    yield f"{harmless(layer.path)} ({harmless(layer.type)})"
    for name, value in _facts(summary, layer, rows):
        yield f"  {name}: {harmless(value)}"


def _facts(summary: Summary, layer: Layer, rows: Sequence[Layer]) -> Iterator[tuple[str, str]]:
    if layer.inputs:
        yield "inputs", "; ".join(", ".join(spec.brief for spec in call) for call in layer.inputs)
    yield "output", cells.output(layer)
    yield "connected to", cells.connections(layer)
    if layer.calls != 1:
        yield "calls", cells.UNKNOWN if layer.calls is None else f"{layer.calls:,}"
    params = sum(row.params for row in rows)
    yield "params", _share(params, summary.params)
    if reason := why(layer):
        yield "why", reason
    if frozen := sum(row.non_trainable_params for row in rows):
        yield "not trained", f"{frozen:,} of these"
    if buffers := sum(row.buffers for row in rows):
        yield "buffers", f"{buffers:,}"
    yield "weights", units.size(sum(row.weight_bytes for row in rows))
    for name, show in (("flops", units.flops), ("activation_bytes", units.size)):
        value = layer_value(summary, layer, name)
        total = summary.flops.value if name == "flops" else summary.activation_bytes
        title = "FLOPs" if name == "flops" else "activations for backward"
        shown = cells.UNKNOWN if value is None else show(int(value))
        yield title, f"{shown}{_of(value, total)}"
    if len(rows) > 1:
        largest = max(rows, key=lambda row: row.params)
        yield "layers inside", f"{sum(not row.container for row in rows):,}"
        if largest.params:
            yield "largest inside", f"{largest.path} ({largest.type}) {_share(largest.params, params)}: {why(largest)}"


def _share(part: int, whole: int) -> str:
    return f"{part:,}{_of(part, whole)}"


def _of(part: int | Fraction | None, whole: int | None) -> str:
    """` (12.5%)`, where both are known."""
    if part is None or not whole or not part:
        return ""
    share = units.percent(Fraction(part) / whole)
    return f" ({'<0.1%' if share == '0.0%' else share})"
