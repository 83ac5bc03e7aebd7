"""Tables as plain text for terminals, files and `print(summary)`, without colour."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

from rich.cells import cell_len

from pytest_modelbudget.summary.model import Summary
from pytest_modelbudget.summary.show import cells, plans
from pytest_modelbudget.summary.show.folding import column_widths, folded
from pytest_modelbudget.system.escape import harmless, without_commands
from pytest_modelbudget.system.intact import any_digits

WIDTH = 80
"""Columns when the terminal does not say; nothing is ever cut, long cells go on in the next line."""


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
    lines += folded(cells.legend(summary), width) if cells.legend(summary) else []
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
    cells = [list(header), *map(list, rows)]
    columns = list(zip(*cells, strict=True))
    widths = column_widths(columns, width - 2 * (len(columns) - 1), numbers=right, whole=whole)
    heading, *lines = ["\n".join(_row_lines(row, widths, right)) for row in cells]
    return without_commands("\n".join([heading, "=" * width, *lines]))


def _row_lines(row: Sequence[str], widths: Sequence[int], right: Sequence[int]) -> Iterator[str]:
    """The cells of a row beside each other, as many lines as the longest takes."""
    for parts in zip_longest(*map(folded, row, widths), fillvalue=""):
        padded = (
            f"{blanks}{part}" if index in right else f"{part}{blanks}"
            for index, part in enumerate(parts)
            for blanks in [" " * (widths[index] - cell_len(part))]
        )
        yield "  ".join(padded).rstrip()
