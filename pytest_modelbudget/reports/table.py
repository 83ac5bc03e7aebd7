"""Tables as plain text for terminals and files: one model with what stands out, and all results."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_modelbudget import units
from pytest_modelbudget.reports import text
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.summary.show import cells, table
from pytest_modelbudget.summary.show.table import WIDTH
from pytest_modelbudget.system.escape import harmless
from pytest_modelbudget.system.intact import any_digits

_LONGEST_NAME = 24
"""Characters up to which the name of a model stays on one line, in a table as wide as `WIDTH` or wider."""


@any_digits()
def summary_text(
    summary: Summary,
    *,
    width: int = WIDTH,
    most: int | None = None,
    elsewhere: str = "-vv shows all",
    explain: bool = False,
) -> str:
    """The layer table of one model; see `summary.show.table`.

    With `explain` a last column says where the params of each row come from, and last lines what stands out.
    """
    remarks = text.remarks(summary) if explain else ()
    return table.summary_text(summary, width=width, most=most, elsewhere=elsewhere, why=explain, remarks=remarks)


@any_digits()
def results_text(results: Sequence[Result], *, width: int = WIDTH, written: str = "written") -> str:
    """One line for each model: its totals, the limit used most, how it came out, and that its snapshot is `written`."""
    rows = [_result_cells(result, written) for result in text.sorted_results(results)]
    header = ("model", "params", "trainable", "FLOPs", "weights", "budget used", "")
    unbroken = width >= WIDTH and all(len(name) <= _LONGEST_NAME for name, *_ in rows)
    return table.grid(header, rows, right=(1, 2, 3, 4), width=width, whole=(0,) if unbroken else ())


def _result_cells(result: Result, written: str) -> tuple[str, ...]:
    summary = result.summary
    word = "" if result.state is State.OK else result.state.value
    if result.state is State.OK and result.warnings:
        word = "warn"
    if result.to_write:
        word = f"{word} {written}".strip()
    if summary is None:
        about_a_model = result.state in (State.BUILD_ERROR, State.NOT_CHECKED, State.SKIPPED)
        return (harmless(result.id), *(cells.UNKNOWN if about_a_model else "-",) * 4, "-", word)
    flops = (
        cells.UNKNOWN if summary.flops.value is None else units.flops(summary.flops.value).replace("FLOPs", "").strip()
    )
    return (
        harmless(result.id),
        cells.number(summary, "params", units.short),
        cells.number(summary, "trainable_params", units.short),
        f"{'>=' if summary.flops.is_lower_bound else ''}{flops}",
        cells.number(summary, "weight_bytes", units.size),
        text.used_text(result),
        text.with_real_run_mark(word, result),
    )
