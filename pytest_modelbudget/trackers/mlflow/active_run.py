"""A model's table and numbers in a run that a training script has open. It imports mlflow, as the script does."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.trackers.mlflow import artifacts, names
from pytest_modelbudget.trackers.mlflow.history import MetricPoints
from pytest_modelbudget.trackers.mlflow.store import LONGEST_TAG, TABLES, log_points

FOLDER = "modelbudget"
"""The folder among a run's artifacts."""

_LOGGED = "modelbudget.logged"
"""The tag of a run that lists the models that were logged to it."""


def rank() -> int:
    """Which of the processes of a training this is, as torch or its launcher says; 0 for one that runs alone."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank())
    launched = os.environ.get("RANK", "")
    return int(launched) if launched.isdecimal() else 0


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that can be written to by its client, the models that were logged to it, and its list of tables."""

    client: Any
    run_id: str
    models: tuple[str, ...]
    tables: tuple[Any, ...]

    def log(self, summary: Summary, now_ms: int) -> None:
        """Write the metrics that have charts, the table as text, HTML and MLflow table, and all of it as JSON.

        The first model of a run has its metrics under the plain names, every other one below its own name.
        """
        slug = artifacts.slug_of(summary.model)
        prefix = f"{slug}/" if self.models else ""
        numbers = {f"{prefix}{name}": value for name, value in names.charted(names.metrics(summary)).items()}
        folder = f"{FOLDER}/{slug}"
        with TemporaryDirectory() as scratch:
            for name, content in artifacts.summary_files(summary).items():
                Path(scratch, name).write_text(content, encoding="utf-8")
            self.client.log_artifacts(self.run_id, scratch, folder)
        tags = {_LOGGED: json.dumps([*self.models, summary.model])}
        tables = json.dumps([*self.tables, {"path": f"{folder}/layers.json", "type": "table"}])
        if len(tables) <= LONGEST_TAG:  # else the file is there and the list stays that of the script
            tags[TABLES] = tables
        log_points(self.client, self.run_id, [MetricPoints(0, now_ms, numbers)], tags)


def find(run_id: str | None, client: Any) -> OpenRun:
    """The run of an id, else the one that is active.

    Raises:
        ModelBudgetError: MLflow is not installed, or no run is active.
        Exception: whatever MLflow raises.
    """
    try:
        import mlflow
    except ImportError as error:
        raise ModelBudgetError(f"MLflow is missing ({error}): pip install 'pytest-modelbudget[mlflow]'") from None
    if run_id is None:
        active = mlflow.active_run()
        if active is None:
            raise ModelBudgetError("no MLflow run is active: call it after mlflow.start_run(), or give run_id")
        run_id = active.info.run_id
    client = client or mlflow.MlflowClient()
    tags = client.get_run(run_id).data.tags
    models, tables = (tuple(json.loads(tags.get(name, "[]"))) for name in (_LOGGED, TABLES))
    return OpenRun(client, run_id, models, tables)
