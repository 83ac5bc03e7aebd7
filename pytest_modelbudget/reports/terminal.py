"""What pytest's terminal shows of a model: why it failed and what to do, and the lines at the end of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

from rich.cells import cell_len

from pytest_modelbudget import units
from pytest_modelbudget.budget import FITS, Violation
from pytest_modelbudget.diff import Change, LayerRun, largest_runs, rows_changed
from pytest_modelbudget.errors import Place
from pytest_modelbudget.reports import table, text
from pytest_modelbudget.reports.listing import listed
from pytest_modelbudget.results import Result, SnapshotState, State
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.summary.metrics import PLAN_METRICS
from pytest_modelbudget.summary.show import cells, plans
from pytest_modelbudget.summary.show.folding import hanging
from pytest_modelbudget.summary.show.table import WIDTH
from pytest_modelbudget.summary.work import WORK_METRICS
from pytest_modelbudget.system.escape import harmless, harmless_lines
from pytest_modelbudget.system.intact import any_digits

_LONGEST_CHANGE = 800
_MOST_CHANGES = 20
_MOST_ROWS = 40
_MOST_NAMED = 5
MOST_NEW = 3
"""Models without a snapshot that are shown with their layers; of more, each gets one line."""


@any_digits()
def failure(
    result: Result,
    *,
    width: int = WIDTH,
    rows: int | None = _MOST_ROWS,
    explain: bool = False,
    runs: bool = True,
    fold: bool = False,
) -> str:
    """Why a model failed, with every number, place and cure; at most `rows` rows of its layer table.

    With `explain` each of these rows says where its params come from. Without a table, a limit on runs that is broken
    has the runs told, unless `runs` says that they stand elsewhere. With `fold` sentences end at `width` too, between
    words; without it they stay whole, so that a log can be searched.
    """
    lines = [*_reasons(result, width), *_table(result, width, rows, explain, runs)]
    if fold:
        lines = [part for line in lines for part in ((line,) if _is_copied(line) else hanging(line, width))]
    return "\n".join(lines)


def _is_copied(line: str) -> bool:
    """Whether it is to be copied, as a command or from a traceback, or laid out already."""
    return not line.startswith("  ") or "\n" in line


def _reasons(result: Result, width: int) -> Iterator[str]:
    yield harmless(f"{result.id}: {result.state.value}")
    if result.error:
        yield harmless_lines(result.error)
    if result.state is State.BUILD_ERROR:
        note = f"registered at {result.place}; not counted, its snapshot is untouched"
        yield harmless(note if result.place else "not counted")
    if result.summary is None:
        return
    yield from _violations(result, width)
    yield from _snapshot(result)
    yield from _changes_since_base(result)


def _table(result: Result, width: int, rows: int | None, explain: bool, runs: bool) -> Iterator[str]:
    if result.summary is None:
        return
    if rows == 0:
        if runs and any(map(_about_runs, result.failures)):
            yield from (f"  {line}" for line in plans.summary_lines(result.summary))
    else:
        yield ""
        yield table.summary_text(result.summary, width=width, most=rows, explain=explain)


def _violations(result: Result, width: int) -> Iterator[str]:
    for violation in (*result.failures, *result.warnings):
        sign = "  " if violation.severity == "fail" else "  warn: "
        yield f"{sign}{text.violation_text(violation)}"
    if result.summary is None or not result.failures:
        return
    if result.summary.params and not all(map(_about_runs, result.failures)):
        yield from _largest_layers(result.summary, width)


def _about_runs(violation: Violation) -> bool:
    return violation.budget.metric in (FITS, *PLAN_METRICS, *WORK_METRICS) or bool(violation.budget.dim)


def _largest_layers(summary: Summary, width: int) -> Iterator[str]:
    """The layers with most params, alike ones of repeated blocks as one, on one line where that has room for them."""
    top = [harmless(f"{run.path} {_params_text(run, summary.params)}") for run in largest_runs(summary.layers)[:3]]
    line = f"  largest layers: {', '.join(top)}"
    if cell_len(line) <= width:
        yield line
        return
    yield "  largest layers:"
    yield from (part for layer in top for part in hanging(f"    {layer}", width))


def _params_text(run: LayerRun, total: int) -> str:
    """`32 x 704,512 = 22,544,384 (18.6%)`."""
    times = f"{run.count:,} x {run.layer.params:,} = " if run.count > 1 else ""
    return f"{times}{run.params:,} ({units.percent(Fraction(run.params, total))})"


def _snapshot(result: Result) -> Iterator[str]:
    snapshot = result.snapshot
    update = f'pytest --model-budget-update "{harmless(result.nodeid)}"'
    path = harmless(snapshot.path)
    match snapshot.stored:
        case SnapshotState.MISSING if result.state is not State.OK and not result.accepted:
            assert result.summary is not None
            params = cells.number(result.summary, "params")
            yield f"  {_lacking(result)} (counted {params} params); a check never writes it"
            yield from _commands("create:  ", update, result)
        case SnapshotState.DIFFERENT:
            yield f"  differs from {f'what is {harmless(snapshot.note)}' if snapshot.note else path}:"
            yield from (f"    {line}" for line in change_lines(result.changes, result.summary))
            if not result.accepted:
                yield from _commands("accept:  ", update, result)
        case SnapshotState.BROKEN:
            yield f"  {harmless(snapshot.problem)}"
            if not result.accepted:
                yield from _commands("fix:     ", update, result)
        case SnapshotState.REFUSED:
            yield f"  {harmless(snapshot.problem)}"


def _commands(word: str, update: str, result: Result) -> Iterator[str]:
    """What to do to end with a passing run; an update alone does not, while a limit is broken."""
    if not result.failures:
        yield f"{word}{update}"
        return
    places = dict.fromkeys(violation.budget.place for violation in result.failures if violation.budget.place)
    places_text = f" ({harmless(', '.join(_places(places)))})" if places else ""
    limits = "limit" if len(result.failures) == 1 else "limits"
    yield f"first:   make it fit, or change the broken {limits}{places_text}"
    yield f"then:    {update}"


def _places(places: Iterable[Place]) -> Iterator[str]:
    """`modelbudget.yaml:21`, `:23`: a file is named once for lines that follow each other."""
    previous_file = None
    for place in places:
        yield str(place) if place.file != previous_file or place.line is None else f":{place.line}"
        previous_file = place.file


def _changes_since_base(result: Result) -> Iterator[str]:
    """What moved since the base, unless the snapshot was the same there, so that it was said already."""
    if result.since is None or result.since.changes == result.changes:
        return
    if result.since.changes:
        yield f"  since {harmless(result.since.name)}:"
        yield from (f"    {line}" for line in change_lines(result.since.changes, result.summary))


def change_lines(changes: Sequence[Change], summary: Summary | None) -> Iterator[str]:
    """Totals and ports, then the first rows of those that changed, which come ranked, and how many others there are."""
    heads = [change for change in changes if change.of_the_model]
    rows = [change for change in changes if not change.of_the_model]
    yield from (harmless(str(change), longest=_LONGEST_CHANGE) for change in (*heads, *rows[:_MOST_CHANGES]))
    if len(rows) > _MOST_CHANGES:
        yield f"... and {len(rows) - _MOST_CHANGES} more changes"
    if summary is not None and rows:
        touched = sum(change.rows for change in rows if change.kind != "removed")
        yield f"= {max(0, len(summary.layers) - touched)} other rows unchanged"


def new_model(result: Result) -> str:
    """One line for a model that has no snapshot yet, in a run with many of these."""
    assert result.summary is not None
    return harmless(f"{result.id}: {result.state.value}: {_lacking(result)}; {result.summary.brief}")


def _lacking(result: Result) -> str:
    """That a model has no snapshot yet: no file, or no line in one that it shares with others."""
    path = result.snapshot.path
    return harmless(f"no line in {path} yet" if result.snapshot.is_line else f"no {path} yet")


def is_new(result: Result) -> bool:
    """Whether it failed and has no snapshot yet."""
    return result.state.failed and result.snapshot.stored is SnapshotState.MISSING


def _notes(results: Iterable[Result]) -> Iterator[str]:
    """Why snapshots are to be rewritten, or are rewritten by this run, each reason once."""
    ids_by_note: dict[tuple[str, bool], list[str]] = {}
    for result in sorted(results, key=lambda result: result.id):
        if result.snapshot.note:
            ids_by_note.setdefault((result.snapshot.note, result.to_write), []).append(result.id)
    for (note, is_written), ids in ids_by_note.items():
        them = "it" if len(ids) == 1 else "them"
        when = "rewritten now" if is_written else f"the next update rewrites {them}"
        yield harmless(f"note: {_first_of(ids)}: {note}; {when}")


def _not_run(results: Sequence[Result]) -> Iterator[str]:
    """That a passing model was only half looked at."""
    unchecked = "shapes, connections and FLOPs are not checked"
    summaries = {result.id: result.summary for result in results if result.summary is not None}
    ids = sorted(name for name, summary in summaries.items() if not _was_run(summary))
    if built := [name for name in ids if summaries[name].file is None]:
        have = "has" if len(built) == 1 else "have"
        yield harmless(f"note: {_first_of(built)} {have} no inputs: not run, so that {unchecked}")
    if files := [name for name in ids if summaries[name].file is not None]:
        hold = "holds" if len(files) == 1 else "hold"
        yield harmless(f"note: {_first_of(files)} {hold} weights alone: {unchecked}")


def _first_of(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _MOST_NAMED:,} more" if len(ids) > _MOST_NAMED else ""
    return f"{', '.join(ids[:_MOST_NAMED])}{more}"


def _was_run(summary: Summary) -> bool:
    return summary.flops.value is not None or bool(summary.inputs or summary.outputs)


def _new_models(results: Sequence[Result]) -> Iterator[str]:
    """What to do about many models without a snapshot, which got a line each."""
    new = [result for result in results if is_new(result) and not result.accepted]
    if len(new) > MOST_NEW:
        yield f"{len(new)} models have no snapshot yet:"
        yield "create:  pytest --model-budget-update"
        yield harmless(f"look:    {_show_command(new[0])}")


def _show_command(result: Result) -> str:
    file = result.nodeid.partition("::")[0]
    if file.endswith(".py"):
        return f'pytest --model-budget -v "{result.nodeid}"'
    return f"modelbudget show {result.id}"


def short_reason(result: Result) -> str:
    """The one line of pytest's short test summary."""
    if result.failures:
        others = f" (+{len(result.failures) - 1} more)" if len(result.failures) > 1 else ""
        return harmless(f"{result.failures[0]}{others}", longest=160)
    if result.error:
        error_lines = [line for line in result.error.splitlines() if line.startswith("E ")]
        return harmless(
            (error_lines[-1].removeprefix("E").strip() if error_lines else result.error.splitlines()[0]), longest=160
        )
    if result.snapshot.stored is SnapshotState.MISSING:
        return "not written: run with --model-budget-update"
    if result.snapshot.problem:
        return harmless(result.snapshot.problem, longest=160)
    first_total = next((change for change in result.changes if change.of_the_model), None)
    rows = sum(change.rows for change in result.changes if not change.of_the_model)
    return harmless(", ".join([*([str(first_total)] if first_total else []), *rows_changed(rows)]), longest=160)


def closing_lines(results: Sequence[Result], *, width: int = WIDTH, written: str = "written") -> Iterator[str]:
    """The lines of the section at the end of a run: the table, warnings, notes, and the verdict."""
    listing = listed(result for result in results if result.is_model or result.state.failed)
    yield table.results_text(listing.results, width=width, written=written)
    if listing.line:
        yield harmless(listing.line)
    for result in sorted(listing.results if listing.line else results, key=lambda result: result.id):
        for violation in result.warnings:
            yield f"warn: {harmless(result.id)}: {text.violation_text(violation)}"
    yield from _notes(results)
    yield from _not_run(results)
    yield from _new_models(results)
    seconds, models = sum(result.seconds for result in results), sum(result.is_model for result in results)
    yield f"{models} model{'' if models == 1 else 's'} in {seconds:.1f} s: {text.verdict(results)}"
