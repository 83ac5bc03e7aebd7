"""Tables as plain text for terminals, files and `print(summary)`; laid out by rich, without colour."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from rich.box import Box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from pytest_modelbudget.summary.model import Summary
from pytest_modelbudget.summary.show import cells, plans
from pytest_modelbudget.system.escape import harmless, without_commands
from pytest_modelbudget.system.intact import any_digits

WIDTH = 80
"""Columns when the terminal does not say; nothing is ever cut, long cells go on in the next line."""

_RULED = Box("    \n    \n == \n    \n    \n    \n    \n    \n", ascii=True)
"""A line below the headings, and blanks between columns."""


@any_digits()
def summary_text(
    summary: Summary,
    *,
    width: int = WIDTH,
    most: int | None = None,
    elsewhere: str = "-vv shows all",
    why: bool = False,
    remarks: Sequence[str] = (),
) -> str:
    """The layer table of one model in the shape of `model.summary()`, with its totals; at most `most` rows.

    `elsewhere` says how to see the others. With `why` a last column says where the params of each row come from;
    `remarks` are last lines.
    """
    rows = list(cells.rows(summary))
    shown_rows = rows if most is None or len(rows) <= most else rows[:most]
    header = ("Layer (type)", "Output Shape", "Param #", "Connected to", *(("Why",) if why else ()))
    content = [(row.layer, row.output, row.params, row.connected, *((row.why,) if why else ())) for row in shown_rows]
    lines = [f"Model: {cells.title(summary)}"]
    lines += [f"Input: {harmless(str(port))}" for port in summary.inputs]
    lines.append(grid(header, content, right=(2,), width=width))
    if len(shown_rows) < len(rows):
        lines.append(f"... {len(rows) - len(shown_rows):,} more rows; {elsewhere}")
    lines.append("-" * width)
    lines += filter(None, [cells.legend(summary)])
    lines += [f"{name}: {value}" for name, value in cells.totals(summary)]
    lines += plans.summary_lines(summary)
    lines += [f"Note: {harmless(note)}" for note in summary.notes]
    lines += [f"Reading: {remark}" for remark in remarks]
    return "\n".join(lines)


def grid(
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
    lines = [without_commands(line.rstrip()) for line in sink.getvalue().rstrip("\n").split("\n")]
    rule = next(index for index, line in enumerate(lines) if not line.strip("="))  # a heading may take two lines
    return "\n".join([*lines[:rule], "=" * width, *lines[rule + 1 :]])
