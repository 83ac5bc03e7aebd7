"""What pytest's terminal shows of a model: why it failed and what to do, and the lines at the end of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

from pytest_modelbudget import units
from pytest_modelbudget.budget import FITS, Violation
from pytest_modelbudget.diff import Change
from pytest_modelbudget.errors import Place
from pytest_modelbudget.reports import table, text
from pytest_modelbudget.results import Result, SnapshotState, State
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.summary.metrics import PEAK_METRICS
from pytest_modelbudget.summary.show import plans
from pytest_modelbudget.summary.show.table import WIDTH
from pytest_modelbudget.system.escape import harmless, harmless_lines
from pytest_modelbudget.system.intact import any_digits

_LONGEST_CHANGE = 800
_MOST_CHANGES = 20
_MOST_ROWS = 40


@any_digits()
def failure(
    result: Result,
    *,
    width: int = WIDTH,
    rows: int | None = _MOST_ROWS,
    explain: bool = False,
    runs: bool = True,
) -> str:
    """Why a model failed, with every number, place and cure; at most `rows` rows of its layer table.

    With `explain` each of these rows says where its params come from. Without a table, a limit on runs that is broken
    has the runs told, unless `runs` says that they stand elsewhere.
    """
    return "\n".join(_failure(result, width, rows, explain, runs))


def _failure(result: Result, width: int, rows: int | None, explain: bool, runs: bool) -> Iterator[str]:
    yield harmless(f"{result.id}: {result.state.value}")
    if result.error:
        yield harmless_lines(result.error)
    if result.state is State.BUILD_ERROR:
        note = f"registered at {result.place}; not counted, its snapshot is untouched"
        yield harmless(note if result.place else "not counted")
    if result.summary is None:
        return
    yield from _violations(result)
    yield from _snapshot(result)
    yield from _changes_since_base(result)
    if rows == 0:
        if runs and any(map(_about_runs, result.failures)):
            yield from (f"  {line}" for line in plans.summary_lines(result.summary))
    else:
        yield ""
        yield table.summary_text(result.summary, width=width, most=rows, explain=explain)


def _violations(result: Result) -> Iterator[str]:
    for violation in (*result.failures, *result.warnings):
        sign = "  " if violation.severity == "fail" else "  warn: "
        place = f"  [{violation.budget.place}]" if violation.budget.place else ""
        yield harmless(f"{sign}{violation}{place}")
    if result.summary is None or not result.failures:
        return
    if result.summary.params and not all(map(_about_runs, result.failures)):
        yield f"  largest layers: {_largest_layers(result)}"


def _about_runs(violation: Violation) -> bool:
    return violation.budget.metric in (FITS, *PEAK_METRICS) or bool(violation.budget.dim)


def _largest_layers(result: Result) -> str:
    assert result.summary is not None
    top = sorted(result.summary.layers, key=lambda layer: -layer.params)[:3]
    total = result.summary.params
    return harmless(
        ", ".join(
            f"{layer.path} {layer.params:,} ({units.percent(Fraction(layer.params, total))})"
            for layer in top
            if layer.params
        )
    )


def _snapshot(result: Result) -> Iterator[str]:
    snapshot = result.snapshot
    update = f'pytest --model-budget-update "{harmless(result.nodeid)}"'
    path = harmless(snapshot.path)
    match snapshot.stored:
        case SnapshotState.MISSING if result.state is not State.OK and not result.accepted:
            assert result.summary is not None
            yield f"  no {path} yet (counted {result.summary.params:,} params); a check never writes it"
            yield from _commands("create:  ", update, result)
        case SnapshotState.DIFFERENT:
            yield f"  differs from {path}:"
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
    return harmless(f"{f'{first_total}, ' if first_total else ''}{rows} row{'' if rows == 1 else 's'}", longest=160)


def closing_lines(results: Sequence[Result], *, width: int = WIDTH) -> Iterator[str]:
    """The lines of the section at the end of a run: the table, warnings, notes, and the verdict."""
    yield table.results_text([result for result in results if result.is_model or result.state.failed], width=width)
    for result in sorted(results, key=lambda result: result.id):
        for violation in result.warnings:
            place = f"  [{violation.budget.place}]" if violation.budget.place else ""
            yield harmless(f"warn: {result.id}: {violation}{place}")
        if result.snapshot.note:
            yield harmless(f"note: {result.id}: {result.snapshot.note}; the next update rewrites it")
    seconds, models = sum(result.seconds for result in results), sum(result.is_model for result in results)
    yield f"{models} model{'' if models == 1 else 's'} in {seconds:.1f} s: {text.verdict(results)}"
