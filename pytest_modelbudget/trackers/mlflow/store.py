"""An MLflow store as this project uses it: every call can be made again without making anything twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pytest_modelbudget.trackers.mlflow import views
from pytest_modelbudget.trackers.mlflow.history import MetricPoints
from pytest_modelbudget.trackers.mlflow.outbox import FOLDER
from pytest_modelbudget.trackers.mlflow.target import Target
from pytest_modelbudget.trackers.mlflow.trouble import SendError, is_transient

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as StoredRun

KEY = "modelbudget.key"
"""The tag that says which run one is, whoever made it."""

TABLES = "mlflow.loggedArtifacts"
"""The tag that lists the tables of a run."""

LONGEST_TAG = 5000

_MOST_BYTES = 100 * 10**6
"""Of an artifact that is read."""

_MOST_TAGS = 100
"""Tags that servers take in one request."""


class Store:
    """The experiments and runs at a target; imports mlflow. Its runs are never active, MLflow's environment stays."""

    def __init__(self, target: Target) -> None:
        from mlflow import MlflowClient

        self._target = target
        self._client: MlflowClient = MlflowClient(tracking_uri=target.uri)

    def experiment(self, name: str) -> str:
        """The id of an experiment, made when it is not there.

        Raises:
            Trouble: it was deleted, and its name is still taken.
        """
        stored = self._client.get_experiment_by_name(name)
        if stored is None:
            try:
                return str(self._client.create_experiment(name, self._artifacts(name), views.experiment_tags(name)))
            except Exception:  # another machine may have made it in between, or the answer was lost
                stored = self._client.get_experiment_by_name(name)
                if stored is None:
                    raise
        if stored.lifecycle_stage != "active":
            cure = f"mlflow experiments restore --experiment-id {stored.experiment_id}"
            raise SendError(f"the experiment {name} was deleted in MLflow", cure)
        return str(stored.experiment_id)

    def _artifacts(self, name: str) -> str | None:
        """Where artifacts go: beside the embedded store; a server knows by itself."""
        if not self._target.local:
            return None
        return (Path.cwd() / "artifacts" / name).as_uri()

    @property
    def parallel(self) -> int:
        """How many requests at once are worth while; a database file takes one after the other."""
        return 1 if self._target.is_database else 4

    def experiment_tags(self, experiment: str) -> dict[str, str]:
        """The tags of an experiment."""
        return dict(self._client.get_experiment(experiment).tags)

    def set_experiment_tag(self, experiment: str, name: str, text: str) -> None:
        """Set a tag of an experiment."""
        self._client.set_experiment_tag(experiment, name, text)

    def by_key(self, experiment: str, condition: str) -> dict[str, StoredRun]:
        """The runs that match by key; of runs that were made twice one stays, with points if any, else the oldest."""
        runs: list[StoredRun] = []
        token: str | None = None
        while True:
            page = self._client.search_runs([experiment], condition, max_results=1000, page_token=token)
            runs += page
            if not (token := page.token):
                break
        runs_by_key: dict[str, StoredRun] = {}
        for run in sorted(runs, key=lambda run: (not run.data.metrics, run.info.start_time, run.info.run_id)):
            key = run.data.tags.get(KEY, "")
            if key in runs_by_key:
                self._client.delete_run(run.info.run_id)
            elif key:
                runs_by_key[key] = run
        return runs_by_key

    def newest(self, run: StoredRun) -> tuple[int, dict[str, float]]:
        """The last step at which a run has points, and its values there."""
        last_points = {
            name: max(
                self._client.get_metric_history(run.info.run_id, name), key=lambda value: (value.step, value.timestamp)
            )
            for name in run.data.metrics
        }
        step = max(point.step for point in last_points.values())
        return step, {name: point.value for name, point in last_points.items() if point.step == step}

    def run_of_key(self, experiment: str, key: str) -> StoredRun | None:
        """The run of a key."""
        return self.by_key(experiment, f"tags.`{KEY}` = '{key}'").get(key)

    def newest_run(self, experiment: str, condition: str) -> StoredRun | None:
        """The run that began last of those that match."""
        runs = self._client.search_runs([experiment], condition, max_results=1, order_by=["attributes.start_time DESC"])
        return runs[0] if runs else None

    def existing_run(self, run_id: str) -> StoredRun | None:
        """A run by its id; None when it is not there any more."""
        try:
            run = self._client.get_run(run_id)
        except Exception as error:
            if is_transient(error) or not _is_missing(error):
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def download(self, run: StoredRun, name: str) -> bytes | None:
        """The content of an artifact; None when it is not there, or larger than what is read."""
        self._check_place(run)
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        with TemporaryDirectory() as folder:
            try:  # the client would ask for logged models too, of which older servers know nothing
                path = Path(get_artifact_repository(run.info.artifact_uri).download_artifacts(name, folder))
            except Exception as error:
                if is_transient(error):
                    raise
                return None
            return path.read_bytes() if path.stat().st_size <= _MOST_BYTES else None

    def create(self, experiment: str, key: str, name: str, start_ms: int, tags: Mapping[str, str]) -> None:
        """Make a run. Look for it afterwards: another machine, or a lost answer, may have made it twice."""
        self._client.create_run(experiment, start_ms, {KEY: key, **tags}, name)

    def log(self, run_id: str, points: Iterable[MetricPoints] = (), tags: Mapping[str, str] | None = None) -> None:
        """Write points and tags."""
        log_points(self._client, run_id, points, tags or {})

    def upload(self, run: StoredRun, folder: Path, into: str | None = None) -> None:
        """Write a folder's files as artifacts.

        Raises:
            Trouble: the embedded store, a file that anybody may have put there, says that they belong elsewhere.
        """
        self._check_place(run)
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        if self._target.is_server:  # the client would ask for the run once more, for each of a thousand models
            get_artifact_repository(run.info.artifact_uri).log_artifacts(str(folder), into)
        else:
            self._client.log_artifacts(run.info.run_id, str(folder), into)

    def _check_place(self, run: StoredRun) -> None:
        if self._target.local and not _beside_store(run.info.artifact_uri):
            cure = f"remove {FOLDER}/mlflow.db: the next run makes a new one"
            raise SendError("the local store has an experiment whose artifacts lie outside of it", cure)

    def end(self, run_id: str, status: str, end_ms: int) -> None:
        """Say how a run ended; it can be written to afterwards."""
        self._client.set_terminated(run_id, status, end_ms)


def log_points(client: MlflowClient, run_id: str, points: Iterable[MetricPoints], tags: Mapping[str, str]) -> None:
    """Write points and tags to a run in one request."""
    from mlflow.entities import Metric, RunTag

    metrics = [
        Metric(name, value, point.time_ms, point.step) for point in points for name, value in point.metrics.items()
    ]
    pairs = [RunTag(name, text) for name, text in tags.items()][:_MOST_TAGS]
    if metrics or pairs:
        client.log_batch(run_id, metrics, (), pairs)


def _is_missing(error: Exception) -> bool:
    return getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST"


def _beside_store(uri: str) -> bool:
    """Whether artifacts are written where the embedded store of a project, now or before it was moved, has them."""
    parts = urlsplit(uri)
    path = unquote(parts.path).replace("\\", "/")
    return (
        parts.scheme == "file" and not parts.netloc and f"/{FOLDER}/artifacts/" in path and ".." not in path.split("/")
    )


def table_tag(tables: Iterable[str]) -> str:
    """The list of tables that MLflow's comparison page offers; as many as a tag can hold."""
    rows, length = [], 2
    for path in tables:
        table = {"path": path, "type": "table"}
        length += len(json.dumps(table)) + 2
        if length > LONGEST_TAG:
            break
        rows.append(table)
    return json.dumps(rows)
