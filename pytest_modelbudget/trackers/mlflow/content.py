"""What is sent: results and facts become an outbox entry and its artifacts. Pure; touches no file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from pytest_modelbudget import units
from pytest_modelbudget.reports import html, markdown, text
from pytest_modelbudget.reports import json as json_report
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.summary.metrics import METRICS, PEAK_METRICS
from pytest_modelbudget.summary.show import cells
from pytest_modelbudget.system.escape import harmless
from pytest_modelbudget.trackers.mlflow import artifacts, names
from pytest_modelbudget.trackers.mlflow.artifacts import MeasuredModel, sha256_hex, slug_of
from pytest_modelbudget.trackers.mlflow.facts import RepositoryFacts
from pytest_modelbudget.trackers.mlflow.outbox import OUTCOME, ModelRecord, OutboxEntry, RunRecord

MOST_MODELS = 50
"""Up to so many models get artifacts of their own in a run; of more, those that failed or changed."""

MOST_DETAILED = 200
"""Of failed and changed models, too, only so many get artifacts of their own; the archive has the others."""

_LONGEST_TAG = 5000
"""Characters; longer tags are refused or cut by servers."""

_LONGEST_NOTE = 4300
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
    so that it is the same everywhere. Without `history` no model gets a point.
    """
    files: dict[str, str | bytes] = {}
    detailed: list[Result] = []
    tables, rows, models, params = ["models.json"], [], [], []
    archive = artifacts.Archive()
    for result, slug in zip(results, _slugs(results), strict=True):  # in one pass, so that memory holds one at a time
        model = artifacts.measure(result, slug)
        rows.append(artifacts.model_row(model))
        if result.summary is not None:
            params.append(model.data["params"])
            models += [_model_history(model, facts)] if history else []
        if _is_detailed(result, len(results)) and len(detailed) < MOST_DETAILED:
            detailed.append(result)
            files |= {f"job/models/{slug}/{name}": content for name, content in artifacts.model_files(model).items()}
            tables += [f"models/{slug}/layers.json"] if result.summary is not None else []
        else:
            archive.add(model)
    rows.sort(key=lambda row: (not State(row[-1]).failed, row[0]))
    files["job/models.json"] = artifacts.models_table(rows)
    files["job/report.html"] = html.page(detailed if archive.models else results)
    if archive.models:
        files[f"job/{artifacts.ARCHIVE}"] = archive.content()
    else:
        files["job/results.json"] = json_report.page(results)
    entry = OutboxEntry(
        target=target,
        created_ms=now_ms,
        point_ms=facts.commit_ms or now_ms,
        step=facts.step,
        experiment=f"modelbudget/{slug_of(facts.repository)}",
        job=_job_run(results, params, facts, key, exit_failed, tables, archived=archive.models),
        history=tuple(models),
    )
    return entry, files


def model_key(result: Result) -> str:
    """What a model is called across runs; two files may each declare a model of the same id."""
    return result.snapshot.path or result.nodeid or result.id


def _slugs(results: Sequence[Result]) -> list[str]:
    """A slug for each result, told apart by what they are when ids are not enough (also where case does not count)."""
    slugs = [slug_of(result.id) for result in results]
    counts = Counter(slug.casefold() for slug in slugs)
    return [
        slug if counts[slug.casefold()] == 1 else f"{slug}-{sha256_hex(f'{model_key(result)} {number}')[:8]}"
        for number, (result, slug) in enumerate(zip(results, slugs, strict=True))
    ]


def _is_detailed(result: Result, models: int) -> bool:
    return models <= MOST_MODELS or result.state.failed or bool(result.changes)


def _job_run(
    results: Sequence[Result],
    params: Sequence[int],
    facts: RepositoryFacts,
    key: str,
    exit_failed: bool,
    tables: Sequence[str],
    *,
    archived: int,
) -> RunRecord:
    tags = {
        **_git_tags(facts),
        "mlflow.note.content": _job_note(results, facts, exit_failed, archived),
        "modelbudget.kind": "job",
        "modelbudget.verdict": text.verdict(results),
        "modelbudget.dirty": str(facts.dirty).lower(),
        "modelbudget.frameworks": ", ".join(
            sorted({model_result.summary.framework for model_result in results if model_result.summary})
        ),
        "modelbudget.ci": facts.ci.service,
        "modelbudget.ci_url": facts.ci.job_url,
        "modelbudget.pull_request": facts.ci.pull_request.removeprefix("?"),
    }
    pull = f" #{facts.ci.pull_request}".removesuffix(" #?") if facts.ci.is_pull_request else ""
    return RunRecord(
        key=key,
        name=f"{facts.branch or facts.repository}{pull} {facts.commit[:8]}".strip()[:250],
        status="FAILED" if exit_failed else "FINISHED",
        tags=_fitting_tags(tags),
        metrics=dict(_job_metrics(results, params)),
        folder="job",
        tables=tuple(tables),
        took_ms=round(1000 * sum(result.seconds for result in results)),
    )


def _git_tags(facts: RepositoryFacts) -> dict[str, str]:
    return {
        "mlflow.source.name": "pytest --model-budget",
        "mlflow.source.type": "JOB",
        "mlflow.source.git.commit": facts.commit,
        "mlflow.source.git.branch": facts.branch,
        "mlflow.source.git.repoURL": facts.url,
        "mlflow.user": facts.user,
    }


def _fitting_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags that say something, cut to what servers store."""
    return {name: _cut_tag(value) for name, value in tags.items() if value}


def _cut_tag(value: str) -> str:
    return value if len(value) <= _LONGEST_TAG else f"{value[: _LONGEST_TAG - 3]}..."


def _job_metrics(results: Sequence[Result], params: Sequence[int]) -> Iterator[tuple[str, float]]:
    """What has a chart of a run, few enough to be looked at; `params` are those of the models that were counted."""
    yield "session/failed", sum(result.state.failed for result in results)
    if len(params) == len(results) and names.fits_float(sum(params)):  # the sum of some looks like that of all
        yield "session/params_sum", sum(params)
    if shares := [share for result in results for share in text.used_shares(result).values()]:
        yield from _known("session/budget_used_pct", max(shares) * 100)
    for metric in PEAK_METRICS:
        peaks = [METRICS[metric].get(result.summary) for result in results if result.summary]
        if known_peaks := [peak for peak in peaks if peak is not None]:
            yield from _known(f"session/{metric.removesuffix('_bytes')}_mib_max", Fraction(max(known_peaks), 2**20))


def _known(name: str, value: Fraction) -> Iterator[tuple[str, float]]:
    if names.fits_float(value):
        yield name, round(float(value), 3)


def _job_note(results: Sequence[Result], facts: RepositoryFacts, exit_failed: bool, archived: int) -> str:
    """The description: the page shows about three lines of it at first, so the verdict comes first.

    Links to what the run has are put below it when it is sent. Then all models in a table, and why some need a look.
    """
    ordered = text.sorted_results(results)
    rows = [_note_row(result) for result in ordered]
    lines = [f"{'FAILED' if exit_failed else 'OK'}: {text.verdict(results)}", "", markdown.row(_NOTE_COLUMNS)]
    lines += ["| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |", *rows[:_MOST_ROWS], ""]
    if len(rows) > _MOST_ROWS:
        lines += [f"{len(rows) - _MOST_ROWS:,} more models are in models.json", ""]
    if archived:
        lines += [f"{archived} models that neither failed nor changed: {artifacts.ARCHIVE}, models.json", ""]
    if facts.ci.job_url:
        lines += [f"CI: {facts.ci.job_url}", ""]
    for result in ordered:
        if result.state.failed or result.changes or result.warnings:
            lines.append(f"- {_as_code(result.id)} {result.state.value}{''.join(_reason_lines(result))}")
    return "\n".join(text.cut_lines("\n".join(lines).rstrip("\n").split("\n"), _LONGEST_NOTE))


_NOTE_COLUMNS = ("model", "state", "params", "moved", "FLOPs", "weights", "peak", "budget used")


def _note_row(result: Result) -> str:
    """A model's row in the table of a description; the peak is that of its training, else of its inference."""
    summary = result.summary
    numbers = [cells.UNKNOWN] * 5
    if summary is not None:
        peaks = [plan.peak_bytes for plan in (summary.plan("training"), summary.plan("inference")) if plan]
        peak = next((units.size(peak) for peak in peaks if peak is not None), cells.UNKNOWN if peaks else "-")
        flops = cells.flops(summary).partition(" (")[0]
        moved = text.delta_text(result, "params")
        numbers = [f"{summary.params:,}", moved, flops, units.size(summary.weight_bytes), peak]
    return markdown.row(
        (_as_code(result.id).replace("|", "\\|"), markdown.state(result), *numbers, text.used_text(result))
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


def _model_history(model: MeasuredModel, facts: RepositoryFacts) -> ModelRecord:
    result, metrics = model.result, names.charted(model.numbers)
    assert result.summary is not None
    identity_path = "/".join(filter(None, (facts.repository, facts.folder, model_key(result))))
    unit = ":minutes" if facts.shallow else ""  # steps of another kind would tear the line apart
    tags = {
        **_git_tags(facts),
        "mlflow.note.content": _history_note(model, facts),
        "modelbudget.kind": "history",
        "modelbudget.model": result.id,
        "modelbudget.framework": result.summary.framework,
        OUTCOME: result.state.value,
        "modelbudget.dirty": str(facts.dirty).lower(),
        "modelbudget.unknown": ", ".join(_unknown_charts(metrics)) or "none",
    }
    return ModelRecord(
        key=sha256_hex(f"history:{identity_path}{unit}")[:32],
        name=f"{result.id[:220]}{' (by commit time)' if facts.shallow else ''}",
        status="FAILED" if result.state.failed else "FINISHED",
        tags=_fitting_tags(tags),
        metrics=metrics,
        digest=sha256_hex(f"{model.text}{json.dumps(metrics, sort_keys=True)}")[:16],
        slug=model.slug,
    )


def _unknown_charts(numbers: Mapping[str, float]) -> list[str]:
    """Names of the charts that get no point."""
    return [name for name in names.unknown_names(numbers) if name in names.CHARTED]


def _history_note(model: MeasuredModel, facts: RepositoryFacts) -> str:
    result, summary = model.result, model.result.summary
    assert summary is not None
    flops = "FLOPs unknown" if summary.flops.value is None else cells.flops(summary)
    lines = [f"{result.state.value}: {summary.params:,} params, {flops}, {len(summary.leaves)} layers"]
    if facts.commit:
        changes = " and changes that were not committed" if facts.dirty else ""
        lines.append(f"at commit {facts.commit[:12]}{changes}")
    if unknown_names := [name for name in _unknown_charts(model.numbers) if name not in names.OPTIONAL]:
        lines.append(f"unknown there, so their last points are of an earlier commit if any: {', '.join(unknown_names)}")
    return "\n\n".join(lines)
