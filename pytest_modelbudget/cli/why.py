"""`modelbudget why MODEL [LAYER]`: where the params, FLOPs and bytes are, and why."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from fractions import Fraction

from pytest_modelbudget import units
from pytest_modelbudget.budget import layer_value
from pytest_modelbudget.cli.project import print_lines
from pytest_modelbudget.cli.targets import Targets
from pytest_modelbudget.diff import LayerRun, largest_runs
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.explain import reading
from pytest_modelbudget.summary import Layer, Summary
from pytest_modelbudget.summary.formulas import why
from pytest_modelbudget.summary.show import cells, plans
from pytest_modelbudget.system.escape import harmless


def run(options: Namespace) -> int:
    """Print what stands out, and the largest layers; or all that is known of some."""
    summary = Targets(options).summary(options.model)
    lines = (
        _model_lines(summary, options.top) if options.layer is None else _matching_layer_lines(summary, options.layer)
    )
    print_lines(lines)
    return 0


def _model_lines(summary: Summary, most: int) -> Iterator[str]:
    yield f"Model: {harmless(summary.model)} ({summary.framework})"
    yield from (f"{name}: {value}" for name, value in cells.totals(summary))
    yield from (f"Note: {harmless(note)}" for note in summary.notes)
    if sentences := reading(summary):
        yield ""
        yield "What stands out:"
        yield from (f"  {harmless(sentence)}" for sentence in sentences)
    layer_runs = largest_runs(summary.layers)
    if layer_runs:
        yield ""
        yield f"Where the {summary.params:,} params are:"
    for run in layer_runs[:most]:
        yield _ranked_line(run.params, summary.params, _run_text(run))
    if remaining := layer_runs[most:]:
        layers = sum(run.count for run in remaining)
        text = f"in {layers:,} other layer{'' if layers == 1 else 's'}"
        yield _ranked_line(sum(run.params for run in remaining), summary.params, text)


def _ranked_line(params: int, total: int, text: str) -> str:
    return f"  {_share(Fraction(params, total)):>6}  {params:>15,}  {text}"


def _run_text(run: LayerRun) -> str:
    """`layers.0-31.up (Linear), 32 x 704,512: in*out: 512*1376 = 704,512`."""
    times = f", {run.count:,} x {run.layer.params:,}" if run.count > 1 else ""
    return f"{harmless(f'{run.path} ({run.layer.type})')}{times}: {harmless(why(run.layer))}"


def _matching_layer_lines(summary: Summary, pattern: str) -> Iterator[str]:
    """Everything about each layer whose path is `pattern`, or matches it as a glob, or the first of a run of that name.

    Raises:
        ModelBudgetError: there is none.
    """
    matches = [layer for layer in summary.layers if layer.path == pattern]
    matches = matches or [layer for layer in summary.layers if fnmatchcase(layer.path, pattern)]
    if not matches and (run := next((run for run in largest_runs(summary.layers) if run.path == pattern), None)):
        yield harmless(f"{run.path}: {run.count:,} layers alike, {run.params:,} params together; the first of them:")
        matches = [run.layer]
    if not matches:
        paths = [layer.path for layer in summary.layers]
        nearest = get_close_matches(pattern, paths, n=3, cutoff=0.4) or paths[:3]
        raise ModelBudgetError(
            f"{summary.model} has no layer {pattern!r}; near it are {', '.join(nearest) or '(it has none)'}"
        )
    for index, layer in enumerate(matches):
        if index:
            yield ""
        yield from _layer_lines(summary, layer, tuple(summary.below(layer.path)) if layer.container else (layer,))


def _layer_lines(summary: Summary, layer: Layer, rows: Sequence[Layer]) -> Iterator[str]:
    yield f"{harmless(layer.path)} ({harmless(layer.type)})"
    for name, value in _layer_facts(summary, layer, rows):
        yield f"  {name}: {harmless(value)}"


def _layer_facts(summary: Summary, layer: Layer, rows: Sequence[Layer]) -> Iterator[tuple[str, str]]:
    if layer.inputs:
        yield "inputs", "; ".join(", ".join(spec.brief for spec in call) for call in layer.inputs)
    yield "output", cells.output(layer)
    yield "connected to", cells.connections(layer)
    if layer.calls != 1:
        yield "calls", cells.UNKNOWN if layer.calls is None else f"{layer.calls:,}"
    params = sum(row.params for row in rows)
    yield "params", _with_share(params, summary.params)
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
        number_text = cells.UNKNOWN if value is None else show(int(value))
        yield title, f"{number_text}{_share_text(value, total)}"
    yield from plans.layer_times(summary, layer.path)
    if len(rows) > 1:
        largest = max(rows, key=lambda row: row.params)
        yield "layers inside", f"{sum(not row.container for row in rows):,}"
        if largest.params:
            yield (
                "largest inside",
                f"{largest.path} ({largest.type}) {_with_share(largest.params, params)}: {why(largest)}",
            )


def _with_share(count: int, total: int) -> str:
    return f"{count:,}{_share_text(count, total)}"


def _share_text(count: int | Fraction | None, total: int | None) -> str:
    """` (12.5%)`, where both are known."""
    if count is None or not total or not count:
        return ""
    return f" ({_share(Fraction(count) / total)})"


def _share(share: Fraction) -> str:
    """A share that is never rounded to nothing."""
    return "<0.1%" if (text := units.percent(share)) == "0.0%" else text
