"""Tables as plain text for terminals, files and `print(summary)`; laid out by rich, without colour."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from rich.box import Box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from pytest_modelbudget import units
from pytest_modelbudget.reports import plans, text
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.system.intact import any_size

WIDTH = 80
"""Columns when the terminal does not say; nothing is ever cut, long cells go on in the next line."""

_RULED = Box("    \n    \n == \n    \n    \n    \n    \n    \n", ascii=True)
"""A line below the headings, and blanks between columns."""

_LONGEST_NAME = 24
"""Characters up to which the name of a model stays on one line, in a table as wide as `WIDTH` or wider."""


@any_size()
def summary_text(
    summary: Summary,
    *,
    width: int = WIDTH,
    most: int | None = None,
    elsewhere: str = "-vv shows all",
    explain: bool = False,
) -> str:
    """The layer table of one model in the shape of `model.summary()`, with its totals; at most `most` rows.

    `elsewhere` says how to see the others. With `explain` a last column says where the params of each row come from,
    and last lines what stands out.
    """
    rows = list(text.rows(summary))
    shown = rows if most is None or len(rows) <= most else rows[:most]
    header = ("Layer (type)", "Output Shape", "Param #", "Connected to", *(("Why",) if explain else ()))
    cells = [(row.layer, row.output, row.params, row.connected, *((row.why,) if explain else ())) for row in shown]
    lines = [f"Model: {text.title(summary)}"]
    for port in summary.inputs:
        lines.append(f"Input: {text.harmless(str(port))}")
    lines.append(_grid(header, cells, right=(2,), width=width))
    if len(shown) < len(rows):
        lines.append(f"... {len(rows) - len(shown):,} more rows; {elsewhere}")
    lines.append("-" * width)
    lines += [f"{name}: {value}" for name, value in text.totals(summary)]
    lines += plans.summary_lines(summary)
    lines += [f"Note: {text.harmless(note)}" for note in summary.notes]
    lines += [f"Reading: {remark}" for remark in text.remarks(summary)] if explain else []
    return "\n".join(lines)


@any_size()
def results_text(results: Sequence[Result], *, width: int = WIDTH) -> str:
    """One line for each model: its totals, the limit used most, and how it came out."""
    cells = [_result_cells(result) for result in text.sorted_results(results)]
    header = ("model", "params", "trainable", "FLOPs", "weights", "budget used", "")
    whole = width >= WIDTH and all(len(name) <= _LONGEST_NAME for name, *_ in cells)
    return _grid(header, cells, right=(1, 2, 3, 4), width=width, whole=(0,) if whole else ())


def _result_cells(result: Result) -> tuple[str, ...]:
    summary = result.summary
    word = "" if result.state is State.OK else result.state.value
    if result.state is State.OK and result.warnings:
        word = "warn"
    if result.to_write:
        word = f"{word} written".strip()
    if summary is None:
        about_a_model = result.state in (State.BUILD_ERROR, State.NOT_CHECKED, State.SKIPPED)
        return (text.harmless(result.id), *(text.UNKNOWN if about_a_model else "-",) * 4, "-", word)
    flops = (
        text.UNKNOWN if summary.flops.value is None else units.flops(summary.flops.value).replace("FLOPs", "").strip()
    )
    return (
        text.harmless(result.id),
        units.short(summary.params),
        units.short(summary.trainable_params),
        f"{'>=' if summary.flops.is_lower_bound else ''}{flops}",
        units.size(summary.weight_bytes),
        text.used_text(result),
        text.marked(word, result),
    )


def _grid(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Sequence[int],
    width: int,
    whole: Sequence[int] = (),
) -> str:
    """Aligned columns with a rule under the header; long cells are folded into the next line, but those of `whole`.

    Folded parts of harmless cells that come to stand beside each other are made harmless too.
    """
    table = Table(box=_RULED, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for index, title in enumerate(header):
        justify: JustifyMethod = "right" if index in right else "left"
        table.add_column(Text(title), justify=justify, overflow="fold", no_wrap=index in whole)
    for row in rows:
        table.add_row(*map(Text, row))
    sink = io.StringIO()
    Console(file=sink, width=width, color_system=None, force_terminal=False, legacy_windows=False, _environ={}).print(
        table
    )
    lines = [text.without_commands(line.rstrip()) for line in sink.getvalue().rstrip("\n").split("\n")]
    rule = next(index for index, line in enumerate(lines) if not line.strip("="))  # a heading may take two lines
    return "\n".join([*lines[:rule], "=" * width, *lines[rule + 1 :]])
