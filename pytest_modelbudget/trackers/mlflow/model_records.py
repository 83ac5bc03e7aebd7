"""What a model's history may get: the record of one model, made of its result or of its line in a table. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_modelbudget import snapshot, units
from pytest_modelbudget.results import Result
from pytest_modelbudget.summary.show import cells
from pytest_modelbudget.trackers.mlflow import names
from pytest_modelbudget.trackers.mlflow.artifacts import MeasuredModel, sha256_hex, slug_of
from pytest_modelbudget.trackers.mlflow.facts import RepositoryFacts
from pytest_modelbudget.trackers.mlflow.outbox import NOTE, OUTCOME, ModelRecord
from pytest_modelbudget.trackers.mlflow.totals import ModelTotals

COMMIT = "mlflow.source.git.commit"
"""The tag that says which commit something is of."""

_LONGEST_TAG = 5000
"""Characters; longer tags are refused or cut by servers."""


def model_key(result: Result) -> str:
    """What a model is called across runs; two files may each declare a model of the same id.

    It is the path of a snapshot of its own, also where several models share a file.
    """
    return snapshot.own_path_beside(result.snapshot.path, result.id) or result.nodeid or result.id


def git_tags(facts: RepositoryFacts) -> dict[str, str]:
    """The tags by which pages show where a run came from."""
    return {
        "mlflow.source.name": "pytest --model-budget",
        "mlflow.source.type": "JOB",
        COMMIT: facts.commit,
        "mlflow.source.git.branch": facts.branch,
        "mlflow.source.git.repoURL": facts.url,
        "mlflow.user": facts.user,
    }


def fitting_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags that say something, cut to what servers store."""
    return {name: _cut_tag(value) for name, value in tags.items() if value}


def _cut_tag(value: str) -> str:
    return value if len(value) <= _LONGEST_TAG else f"{value[: _LONGEST_TAG - 3]}..."


def totals(model: MeasuredModel) -> ModelTotals:
    """The line of a model in the table of all models."""
    result, summary = model.result, model.result.summary
    key, state = model_key(result), result.state.value
    if summary is None:
        return ModelTotals(key, result.id, state)
    charted = json.dumps(names.charted(model.numbers), sort_keys=True)
    digest = sha256_hex(f"{model.text}{charted}")[:16]
    return ModelTotals(key, result.id, state, summary.framework, digest, model.numbers)


@dataclass(frozen=True, slots=True)
class RecordContext:
    """What the records of all models of a run share: the project's name, the kind of its steps, and their tags.

    Steps of another `unit`, in a shallow clone, would tear a line apart, so they have histories of their own.
    """

    project: str
    unit: str
    tags: Mapping[str, str]


def record_context(facts: RepositoryFacts) -> RecordContext:
    """Where a run took place."""
    project = "/".join(filter(None, (facts.repository, facts.folder)))
    tags = {**git_tags(facts), "modelbudget.kind": "history", "modelbudget.dirty": str(facts.dirty).lower()}
    return RecordContext(project, "minutes" if facts.shallow else "", fitting_tags(tags))


def record(row: ModelTotals, context: RecordContext, slug: str = "") -> ModelRecord:
    """What the history of a model may get of one run; `slug` is its name among the files of the run, if it has any."""
    metrics = names.charted(row.metrics)
    tags = {
        **context.tags,
        NOTE: _history_note(row, context),
        "modelbudget.model": row.model,
        "modelbudget.framework": row.framework,
        OUTCOME: row.state,
        "modelbudget.unknown": ", ".join(_unknown_charts(metrics)) or "none",
    }
    return ModelRecord(
        key=history_key(row, context),
        name=f"{row.model[:220]}{' (by commit time)' if context.unit else ''}",
        status="FAILED" if row.failed else "FINISHED",
        tags=fitting_tags(tags),
        metrics=metrics,
        digest=row.digest,
        slug=slug or slug_of(row.model),
    )


def history_key(row: ModelTotals, context: RecordContext) -> str:
    """Which history is that of a model, wherever and whenever it runs."""
    unit = f":{context.unit}" if context.unit else ""
    return sha256_hex(f"history:{context.project}/{row.key}{unit}")[:32]


def _unknown_charts(numbers: Mapping[str, float]) -> list[str]:
    """Names of the charts that get no point."""
    return [name for name in names.unknown_names(numbers) if name in names.CHARTED]


def _history_note(row: ModelTotals, context: RecordContext) -> str:
    numbers = {metric: row.metrics.get(name) for metric, name in names.NAMES.items()}
    params, layers = (_count(numbers[metric]) for metric in ("params", "layers"))
    lines = [f"{row.state}: {params} params, {_flops(row)}, {layers} layers"]
    if commit := context.tags.get(COMMIT):
        changes = " and changes that were not committed" if context.tags.get("modelbudget.dirty") == "true" else ""
        lines.append(f"at commit {commit[:12]}{changes}")
    if unknown_names := [name for name in _unknown_charts(row.metrics) if name not in names.OPTIONAL]:
        lines.append(f"unknown there, so their last points are of an earlier commit if any: {', '.join(unknown_names)}")
    return "\n\n".join(lines)


def _count(number: float | None) -> str:
    return cells.UNKNOWN if number is None else f"{int(number):,}"


def _flops(row: ModelTotals) -> str:
    exact, at_least = row.metrics.get(names.NAMES["flops"]), row.metrics.get(names.AT_LEAST)
    if exact is not None:
        return units.flops(round(exact * 10**9))
    return "FLOPs unknown" if at_least is None else f">= {units.flops(round(at_least * 10**9))}"
