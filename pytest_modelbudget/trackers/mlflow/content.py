"""What is sent: results and facts become an outbox entry and its artifacts. Pure; touches no file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import get_args

from pytest_modelbudget import units
from pytest_modelbudget.reports import html, markdown, text
from pytest_modelbudget.reports import json as json_report
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.summary import Kind
from pytest_modelbudget.summary.metrics import METRICS, PEAK_METRICS, Number
from pytest_modelbudget.summary.show import cells
from pytest_modelbudget.system.escape import harmless
from pytest_modelbudget.trackers.mlflow import artifacts, model_records, names
from pytest_modelbudget.trackers.mlflow.artifacts import MeasuredModel, sha256_hex, slug_of
from pytest_modelbudget.trackers.mlflow.facts import RepositoryFacts
from pytest_modelbudget.trackers.mlflow.model_records import model_key
from pytest_modelbudget.trackers.mlflow.outbox import MODELS, NOTE, ModelRecord, OutboxEntry, RunRecord, TotalsRecord
from pytest_modelbudget.trackers.mlflow.totals import FILE, TableBuilder

MOST_MODELS = 50
"""Up to so many models get artifacts of their own in a run; of more, those that failed or changed."""

MOST_WHOLE = 200
"""Of more models than this the numbers go into one table, and a history begins when a model moves."""

MOST_LISTED = 1000
"""Of so many models that failed or changed the table of models has a row, where another table has all of them."""

MOST_DETAILED = 200
"""Of failed and changed models, too, only so many get artifacts of their own; the archive has the others."""

_LONGEST_NOTE = 3900
"""Characters of a description, which leave room for the links."""

_MOST_ROWS = 25
"""Rows of the table in a description."""


def make_entry(
    results: Sequence[Result],
    facts: RepositoryFacts,
    *,
    target: str,
    key: str,
    now_ms: int,
    exit_failed: bool,
    history: bool = True,
) -> tuple[OutboxEntry, dict[str, str | bytes]]:
    """The entry of one run of pytest, and its files (path in the entry -> content).

    `key` is unique to this run; the key of a model's history is derived from the repository and the model,
    so that it is the same everywhere. Without `history` no model gets a point. Of more than `MOST_WHOLE` models the
    numbers are in one table (`totals`), of which the sender tells what moved.
    """
    table = TableBuilder() if len(results) > MOST_WHOLE else None
    content = _RunContent(facts, len(results), table, history=history)
    for result, slug in zip(results, _slugs(results), strict=True):  # in one pass, so that memory holds one at a time
        content.add(artifacts.measure(result, slug))
    entry = OutboxEntry(
        target=target,
        created_ms=now_ms,
        point_ms=facts.commit_ms or now_ms,
        step=facts.step,
        experiment=f"modelbudget/{slug_of(facts.repository)}",
        job=_job_run(results, content, facts, key, exit_failed),
        history=tuple(content.history),
        totals=None if table is None else _totals_record(table, content, facts, history=history),
    )
    return entry, content.finished_files(results)


class _RunContent:
    """What a run has of its models, which are added one by one; `table` is that of a run of very many.

    `listed` are those that tables for people have: all, or of very many those that are remarkable, as far as these are
    no more than `MOST_LISTED`.
    """

    def __init__(self, facts: RepositoryFacts, models: int, table: TableBuilder | None, *, history: bool) -> None:
        self._context, self._models, self._history = model_records.record_context(facts), models, history
        self.table, self.sums, self.archive = table, _Sums(), artifacts.Archive()
        self.files: dict[str, str | bytes] = {}
        self.tables, self.rows, self.history = ["models.json"], list[Sequence[artifacts.Cell]](), list[ModelRecord]()
        self.slugs: dict[str, str] = {}
        self.listed: list[Result] = []
        self.remarkable = 0
        self._detailed: list[Result] = []

    def add(self, model: MeasuredModel) -> None:
        """Add one model, or what stands for several."""
        result, is_remarkable = model.result, _is_remarkable(model.result)
        self.sums.add(model)
        self.remarkable += is_remarkable
        if self.table is None or (is_remarkable and len(self.listed) < MOST_LISTED):
            self.listed.append(result)
            self.rows.append(artifacts.model_row(model))
        if self.table is not None and result.is_model:
            self.table.add(model_records.totals(model))
        elif self.table is None and result.summary is not None and self._history:
            self.history.append(model_records.record(model_records.totals(model), self._context, model.slug))
        if (is_remarkable or self._models <= MOST_MODELS) and len(self._detailed) < MOST_DETAILED:
            self._add_files(model)
        elif self.table is None:
            self.archive.add(model)

    def _add_files(self, model: MeasuredModel) -> None:
        slug = model.slug
        self._detailed.append(model.result)
        self.slugs[model_key(model.result)] = slug
        files = artifacts.model_files(model)
        self.files |= {f"job/models/{slug}/{name}": content for name, content in files.items()}
        self.tables += [f"models/{slug}/layers.json"] if model.result.summary is not None else []

    def finished_files(self, results: Sequence[Result]) -> dict[str, str | bytes]:
        """All files, with those about several models."""
        self.rows.sort(key=lambda row: (not State(row[-1]).failed, row[0]))
        files = {**self.files, "job/models.json": artifacts.models_table(self.rows)}
        if self.table is None and not self.archive.models:
            return {**files, "job/report.html": html.page(results), "job/results.json": json_report.page(results)}
        files["job/report.html"] = html.page(results, shown=self._detailed)
        if self.table is None:
            return {**files, f"job/{artifacts.ARCHIVE}": self.archive.content()}
        return {**files, FILE: self.table.content()}


def _totals_record(table: TableBuilder, content: _RunContent, facts: RepositoryFacts, *, history: bool) -> TotalsRecord:
    context = model_records.record_context(facts)
    return TotalsRecord(
        models=len(table),
        project=context.project,
        unit=context.unit,
        tags=context.tags,
        keys=table.keys_hash(),
        fingerprint=table.fingerprint(),
        slugs=content.slugs,
        history=history,
    )


def _slugs(results: Sequence[Result]) -> list[str]:
    """A slug for each result, told apart by what they are when ids are not enough (also where case does not count)."""
    slugs = [slug_of(result.id) for result in results]
    counts = Counter(slug.casefold() for slug in slugs)
    return [
        slug if counts[slug.casefold()] == 1 else f"{slug}-{sha256_hex(f'{model_key(result)} {number}')[:8]}"
        for number, (result, slug) in enumerate(zip(results, slugs, strict=True))
    ]


def _is_remarkable(result: Result) -> bool:
    """Whether a model failed or is another than its snapshot, or than the base, says."""
    return result.state.failed or bool(result.changes) or (result.since is not None and bool(result.since.changes))


class _Sums:
    """What all models together are, added one by one."""

    def __init__(self) -> None:
        self.failed = self.params = self._models = self._counted = 0
        self.seconds = 0.0
        self.frameworks: set[str] = set()
        self._most_used: Fraction | None = None
        self._peaks: dict[str, Number] = {}

    def add(self, model: MeasuredModel) -> None:
        """Add one model."""
        result, summary = model.result, model.result.summary
        self._models += 1
        self.failed += result.state.failed
        self.seconds += result.seconds
        shares = [*text.used_shares(result).values(), *([] if self._most_used is None else [self._most_used])]
        self._most_used = max(shares, default=None)
        if summary is None:
            return
        self._counted += 1
        self.params += model.data["params"]
        self.frameworks.add(summary.framework)
        for metric in PEAK_METRICS:
            if (peak := METRICS[metric].get(summary)) is not None:
                self._peaks[metric] = max(peak, self._peaks.get(metric, 0))

    def metrics(self) -> Iterator[tuple[str, float]]:
        """What has a chart of a run, few enough to be looked at."""
        yield "session/failed", self.failed
        if self._counted == self._models and names.fits_float(self.params):  # the sum of some looks like that of all
            yield "session/params_sum", self.params
        if self._most_used is not None:
            yield from _known("session/budget_used_pct", self._most_used * 100)
        for metric, peak in self._peaks.items():
            yield from _known(f"session/{metric.removesuffix('_bytes')}_mib_max", Fraction(peak, 2**20))


def _job_run(
    results: Sequence[Result], content: _RunContent, facts: RepositoryFacts, key: str, exit_failed: bool
) -> RunRecord:
    tags = {
        **model_records.git_tags(facts),
        NOTE: _job_note(results, content, facts, exit_failed),
        "modelbudget.kind": "job",
        "modelbudget.verdict": text.verdict(results),
        "modelbudget.dirty": str(facts.dirty).lower(),
        "modelbudget.frameworks": ", ".join(sorted(content.sums.frameworks)),
        "modelbudget.ci": facts.ci.service,
        "modelbudget.ci_url": facts.ci.job_url,
        "modelbudget.pull_request": facts.ci.pull_request.removeprefix("?"),
    }
    pull = f" #{facts.ci.pull_request}".removesuffix(" #?") if facts.ci.is_pull_request else ""
    counted = {} if content.table is None else {MODELS: float(len(content.table))}
    return RunRecord(
        key=key,
        name=f"{facts.branch or facts.repository}{pull} {facts.commit[:8]}".strip()[:250],
        status="FAILED" if exit_failed else "FINISHED",
        tags=model_records.fitting_tags(tags),
        metrics={**dict(content.sums.metrics()), **counted},
        folder="job",
        tables=tuple(content.tables),
        took_ms=round(1000 * content.sums.seconds),
    )


def _known(name: str, value: Fraction) -> Iterator[tuple[str, float]]:
    if names.fits_float(value):
        yield name, round(float(value), 3)


def _job_note(results: Sequence[Result], content: _RunContent, facts: RepositoryFacts, exit_failed: bool) -> str:
    """The description: the page shows about three lines of it at first, so the verdict comes first.

    Links to what the run has are put below it when it is sent. Then the models in a table, and why some need a look.
    """
    listed = text.sorted_results(content.listed)
    lines = [f"{'FAILED' if exit_failed else 'OK'}: {text.verdict(results)}", "", *_note_table(listed)]
    if content.table is not None and content.remarkable > len(listed):
        lines += [f"{content.remarkable - len(listed):,} more models failed or changed: see the table of all", ""]
    if archived := content.archive.models:
        lines += [f"{archived} models that neither failed nor changed: {artifacts.ARCHIVE}, models.json", ""]
    if facts.ci.job_url:
        lines += [f"CI: {facts.ci.job_url}", ""]
    for result in listed:
        if result.state.failed or result.changes or result.warnings:
            lines.append(f"- {_as_code(result.id)} {result.state.value}{''.join(_reason_lines(result))}")
    return "\n".join(text.cut_lines("\n".join(lines).rstrip("\n").split("\n"), _LONGEST_NOTE))


def _note_table(results: Sequence[Result]) -> Iterator[str]:
    """The lines of a table of models, and how many it leaves out."""
    if not results:
        return
    yield markdown.row(_NOTE_COLUMNS)
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |"
    yield from map(_note_row, results[:_MOST_ROWS])
    yield ""
    if len(results) > _MOST_ROWS:
        yield f"{len(results) - _MOST_ROWS:,} more models are in models.json"
        yield ""


_NOTE_COLUMNS = ("model", "state", "params", "moved", "FLOPs", "weights", "peak", "budget used")


def _note_row(result: Result) -> str:
    """A model's row in the table of a description; the peak is that of its training, else of the next run."""
    summary = result.summary
    numbers = [cells.UNKNOWN] * 5
    if summary is not None:
        peaks = [plan.peak_bytes for plan in map(summary.plan, get_args(Kind)) if plan]
        peak = next((units.size(peak) for peak in peaks if peak is not None), cells.UNKNOWN if peaks else "-")
        flops = cells.flops(summary).partition(" (")[0]
        moved = text.delta_text(result, "params")
        params, size = cells.number(summary, "params"), cells.number(summary, "weight_bytes", units.size)
        numbers = [params, moved, flops, size, peak]
    return markdown.row(
        (_as_code(result.id).replace("|", "\\|"), text.state_word(result), *numbers, text.used_text(result))
    )


def _reason_lines(result: Result) -> Iterator[str]:
    for violation in result.violations:
        yield f"\n  - {_as_code(str(violation))}"
    for change in result.changes:
        if change.kind == "total":
            yield f"\n  - {_as_code(str(change))}"


def _as_code(value: str) -> str:
    """As code in Markdown, where nothing that came from a model means anything."""
    return f"`{harmless(value).replace('`', chr(39))}`"
