"""What is sent: results and facts become an outbox entry and its artifacts. Pure; touches no file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction

from pytest_modelbudget.check import Result, State
from pytest_modelbudget.reports import html, table, text
from pytest_modelbudget.reports import json as json_report
from pytest_modelbudget.summary import Layer, Summary
from pytest_modelbudget.trackers.mlflow import names
from pytest_modelbudget.trackers.mlflow.facts import Facts
from pytest_modelbudget.trackers.mlflow.outbox import Entry, Run

MOST_MODELS = 50
"""Up to so many models get artifacts of their own in a run; of more, those that failed or changed."""

_LONGEST_TAG = 5000
"""Characters; longer tags are refused or cut by servers."""

_TEXT_WIDTH = 120
"""Columns of a summary as text; the page scrolls, a terminal's 80 would fold."""


def make(
    results: Sequence[Result], facts: Facts, *, target: str, key: str, now_ms: int, exit_failed: bool
) -> tuple[Entry, dict[str, str]]:
    """The entry of one run of pytest, and its files (path in the entry -> text).

    `key` is unique to this run; the key of a model's history is derived from the repository and the model,
    so that it is the same everywhere.
    """
    slugs = _slugs(results)
    sent = [(result, slug) for result, slug in zip(results, slugs, strict=True) if _detailed(result, len(results))]
    known = [(result, slug) for result, slug in zip(results, slugs, strict=True) if result.summary is not None]
    files = {
        "job/report.html": html.page(results),
        "job/results.json": json_report.page(results),
        "job/models.json": _table(_MODEL_COLUMNS, (_model_cells(result) for result in text.sorted_results(results))),
    }
    for result, slug in sent:
        files |= {f"job/models/{slug}/{name}": content for name, content in _model_files(result).items()}
    for result, slug in known:
        files |= {f"history/{slug}/latest/{name}": content for name, content in _latest_files(result).items()}
    entry = Entry(
        target=target,
        created_ms=now_ms,
        point_ms=facts.commit_ms or now_ms,
        step=facts.step,
        experiment=f"modelbudget/{slug_of(facts.repository)}",
        job=_job(results, facts, key, exit_failed, tuple(slug for result, slug in sent if result.summary is not None)),
        history=tuple(_history(result, facts, slug) for result, slug in known),
    )
    return entry, files


def slug_of(name: str) -> str:
    """`name` as a name for files and pages; a short hash keeps apart what the replacing would make equal.

    >>> slug_of("resnet50"), slug_of("a/b")
    ('resnet50', 'a_b-c14cddc0')
    """
    slug = re.sub("[^A-Za-z0-9._-]", "_", name)[:150]
    return slug if slug == name and re.match("[^.]", slug) else f"{slug.lstrip('.')}-{_hash(name)[:8]}"


def _hash(value: str) -> str:
    return hashlib.sha256(value.encode("utf-8", "backslashreplace")).hexdigest()


def identity(result: Result) -> str:
    """What a model is called across runs; two files may each declare a model of the same id."""
    return result.snapshot.path or result.nodeid or result.id


def _slugs(results: Sequence[Result]) -> list[str]:
    """A slug for each result, told apart by what they are when ids are not enough (also where case does not count)."""
    slugs = [slug_of(result.id) for result in results]
    folded = [slug.casefold() for slug in slugs]
    return [
        slug if folded.count(slug.casefold()) == 1 else f"{slug}-{_hash(f'{identity(result)} {number}')[:8]}"
        for number, (result, slug) in enumerate(zip(results, slugs, strict=True))
    ]


def _detailed(result: Result, models: int) -> bool:
    return models <= MOST_MODELS or result.state.failed or bool(result.changes)


def _model_files(result: Result) -> dict[str, str]:
    if result.summary is None:
        return {"error.txt": text.harmless_lines(result.error) + "\n"}
    data = json.dumps(result.summary.to_dict(), indent=1) + "\n"
    return {**_latest_files(result), "summary.json": data}


def _latest_files(result: Result) -> dict[str, str]:
    assert result.summary is not None
    return {
        "summary.txt": table.summary_text(result.summary, width=_TEXT_WIDTH) + "\n",
        "layers.json": _table(_LAYER_COLUMNS, map(_layer_cells, result.summary.layers)),
    }


_MODEL_COLUMNS = (
    "model", "params", "trainable", "non-trainable", "buffers", "weights MiB", "GFLOPs", "layers",
    "largest layer %", "budget used %", "state",
)  # fmt: skip
"""No dots, which the page shows as empty columns; key first and params second, which its comparison starts with."""

_LAYER_COLUMNS = ("layer", "params", "type", "output shape", "trainable params", "connected to")

Cell = str | int | float


def _table(columns: Sequence[str], rows: Iterator[Sequence[Cell]]) -> str:
    """A table as MLflow stores and shows it."""
    return json.dumps({"columns": columns, "data": list(rows)})


def _model_cells(result: Result) -> tuple[Cell, ...]:
    numbers = {} if result.summary is None else names.metrics(result.summary)
    used = text.used(result)
    cells = [_number(numbers.get(names.GROUPED[name].name)) for name in _MODEL_METRICS]
    if names.AT_LEAST in numbers:
        cells[_MODEL_METRICS.index("flops")] = f">={numbers[names.AT_LEAST]}"
    share: Cell = "-" if used is None else f"{used[0]} {_percent(used[1])}"
    return (text.harmless(result.id), *cells, share, result.state.value)


_MODEL_METRICS = (
    "params", "trainable_params", "non_trainable_params", "buffers", "weight_bytes", "flops", "layers",
    "largest_layer_share",
)  # fmt: skip


def _number(value: float | None) -> Cell:
    if value is None:
        return text.UNKNOWN
    return int(value) if value.is_integer() else value


def _percent(share: Fraction) -> float:
    return float(f"{float(share * 100):.4g}")


def _layer_cells(layer: Layer) -> tuple[Cell, ...]:
    return (
        text.harmless(layer.path),
        layer.params,
        text.harmless(layer.type),
        "never called" if layer.calls == 0 else text.harmless(layer.output_text) or text.UNKNOWN,
        layer.trainable_params,
        text.harmless("; ".join(", ".join(call) for call in layer.connected_to if call)) or "-",
    )


def _job(results: Sequence[Result], facts: Facts, key: str, exit_failed: bool, tables: Sequence[str]) -> Run:
    tags = {
        **_git_tags(facts),
        "mlflow.note.content": _job_note(results, facts, exit_failed),
        "modelbudget.kind": "job",
        "modelbudget.dirty": str(facts.dirty).lower(),
        "modelbudget.ci_url": facts.ci_url,
    }
    return Run(
        key=key,
        name=f"{facts.branch or facts.repository} {facts.commit[:8]}".strip()[:250],
        status="FAILED" if exit_failed else "FINISHED",
        tags=_fitting(tags),
        metrics=dict(_job_metrics(results)),
        folder="job",
        tables=("models.json", *(f"models/{slug}/layers.json" for slug in tables)),
    )


def _git_tags(facts: Facts) -> dict[str, str]:
    return {
        "mlflow.source.name": "pytest --model-budget",
        "mlflow.source.type": "JOB",
        "mlflow.source.git.commit": facts.commit,
        "mlflow.source.git.branch": facts.branch,
        "mlflow.source.git.repoURL": facts.url,
        "mlflow.user": facts.user,
    }


def _fitting(tags: dict[str, str]) -> dict[str, str]:
    """Tags that say something, cut to what servers store."""
    return {name: _cut(value) for name, value in tags.items() if value}


def _cut(value: str) -> str:
    return value if len(value) <= _LONGEST_TAG else f"{value[: _LONGEST_TAG - 3]}..."


def _job_metrics(results: Sequence[Result]) -> Iterator[tuple[str, float]]:
    states = [result.state for result in results]
    yield "session/models", len(results)
    yield "session/failed", sum(state.failed for state in states)
    yield "session/over_budget", sum(bool(result.failures) for result in results)
    yield "session/snapshot_changed", sum(bool(result.changes) for result in results)
    yield "session/no_snapshot", states.count(State.NO_SNAPSHOT)
    yield "session/errors", states.count(State.BUILD_ERROR)
    yield "session/skipped", states.count(State.SKIPPED)
    yield "session/analysis_s", round(sum(result.seconds for result in results), 3)
    counted = [result.summary.params for result in results if result.summary is not None]
    if len(counted) == len(results):  # the sum of some would look like the sum of all
        yield "session/params_sum", sum(counted)


def _job_note(results: Sequence[Result], facts: Facts, exit_failed: bool) -> str:
    """The description: the page shows about three lines of it, so the verdict comes first."""
    lines = [f"{'FAILED' if exit_failed else 'OK'}: {text.verdict(results)}"]
    if facts.ci_url:
        lines.append(f"CI: {facts.ci_url}")
    for result in text.sorted_results(results):
        if result.state.failed or result.changes or result.warnings:
            lines.append(f"- {_code(result.id)} {result.state.value}{''.join(_why(result))}")
    if len(results) > MOST_MODELS:
        lines.append(f"Tables of models that neither failed nor changed are in report.html ({len(results)} models).")
    return "\n\n".join([lines[0], *filter(None, ["\n".join(lines[1:])])])


def _why(result: Result) -> Iterator[str]:
    for violation in result.violations:
        yield f"\n  - {_code(str(violation))}"
    for change in result.changes:
        if change.kind == "total":
            yield f"\n  - {_code(str(change))}"


def _code(value: str) -> str:
    """As code in Markdown, where nothing that came from a model means anything."""
    return f"`{text.harmless(value).replace('`', chr(39))}`"


def _history(result: Result, facts: Facts, slug: str) -> Run:
    assert result.summary is not None
    where = "/".join(filter(None, (facts.repository, facts.folder, identity(result))))
    tags = {
        **_git_tags(facts),
        "mlflow.note.content": _history_note(result, facts),
        "modelbudget.kind": "history",
        "modelbudget.model": result.id,
        "modelbudget.framework": result.summary.framework,
        "modelbudget.outcome": result.state.value,
        "modelbudget.dirty": str(facts.dirty).lower(),
        "modelbudget.unknown": ", ".join(names.unknown(result.summary)) or "none",
        "modelbudget.digest": _digest(result.summary),
    }
    return Run(
        key=_hash(f"history:{where}")[:32],
        name=result.id[:250],
        status="FAILED" if result.state.failed else "FINISHED",
        tags=_fitting(tags),
        metrics=names.metrics(result.summary, result.limits),
        folder=f"history/{slug}",
        tables=("latest/layers.json",),
    )


def _history_note(result: Result, facts: Facts) -> str:
    summary = result.summary
    assert summary is not None
    flops = "FLOPs unknown" if summary.flops.value is None else text.flops(summary)
    lines = [f"{result.state.value}: {summary.params:,} params, {flops}, {len(summary.leaves)} layers"]
    if facts.commit:
        lines.append(f"at commit {facts.commit[:12]}{' and changes that were not committed' if facts.dirty else ''}")
    if unknown := [name for name in names.unknown(summary) if name != names.GROUPED["params_per_sample"].name]:
        lines.append(f"unknown there, so their last points are of an earlier commit if any: {', '.join(unknown)}")
    return "\n\n".join(lines)


def _digest(summary: Summary) -> str:
    return _hash(json.dumps(summary.to_dict(), sort_keys=True))[:16]
