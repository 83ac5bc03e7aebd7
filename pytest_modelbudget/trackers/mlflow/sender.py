"""Delivers the outbox: `python -m pytest_modelbudget.trackers.mlflow.sender ROOT OUTBOX [SECONDS]`.

The only place that imports mlflow, in a process that can be killed, because no setting of mlflow's client
bounds the time it takes. Everything here can be repeated: a run is found by its key before it is made, a
metric is the same point when it is sent again, and an entry is removed only when all of it has arrived.
What happened is printed as one JSON object a line: `event` is `sent`, `failed`, `damaged` or `stopped`.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pytest_modelbudget.trackers.mlflow import lock, outbox
from pytest_modelbudget.trackers.mlflow.outbox import Entry, Run
from pytest_modelbudget.trackers.mlflow.target import Target, resolve, unreachable

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as StoredRun

_KEY = "modelbudget.key"
_KIND = "modelbudget.kind"
_STATE = "modelbudget.state"
_STEP = "modelbudget.step"
_LOGGED = "modelbudget.logged_ms"
_DIGEST = "modelbudget.digest"
_TABLES = "mlflow.loggedArtifacts"

_LONGEST_TAG = 5000
_FAILURES = 2
"""After so many failed entries the rest waits for another time: the fault is rarely in the entries."""


class Trouble(Exception):
    """Why nothing or not all could be sent, with the cure."""

    def __init__(self, reason: str, cure: str = "") -> None:
        super().__init__(reason)
        self.reason, self.cure = reason, cure


def main(arguments: list[str]) -> int:
    """Send what is in the outbox; 0 when all was sent."""
    root, folder = Path(arguments[0]).resolve(), Path(arguments[1]).resolve()
    seconds = float(arguments[2]) if len(arguments) > 2 else 60.0
    report = _own_stdout()
    _end_after(seconds)
    target = resolve(Path.cwd(), os.environ)
    try:
        _prepare(target)
        os.chdir(outbox.home(root) if target.local else root)  # where mlflow opens a store, it makes a folder for runs
        with lock.held(outbox.home(root) / "sender.lock"):  # two processes that open a new store at once destroy it
            return _send_all(_client(target), folder, target, report)
    except Exception as error:
        trouble = explained(error, target)
        _tell(report, target, event="stopped", reason=trouble.reason, cure=trouble.cure)
        return 1


def _own_stdout() -> IO[str]:
    """Keep stdout for reports alone; what mlflow prints goes to stderr."""
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return report


def _end_after(seconds: float) -> None:
    """End this process in any case, also when the one that started it and would kill it is gone."""
    timer = threading.Timer(seconds, lambda: os._exit(3))
    timer.daemon = True
    timer.start()


def _tell(report: IO[str], target: Target, **event: str) -> None:
    scrubbed = {name: target.scrub(text) for name, text in event.items()}
    report.write(json.dumps(scrubbed) + "\n")
    report.flush()


def _prepare(target: Target) -> None:
    """The quick checks: somebody answers, and mlflow can be imported."""
    if reason := unreachable(target):
        raise Trouble(reason, "start the server, or correct MLFLOW_TRACKING_URI")
    try:
        import mlflow  # noqa: F401  # seconds, so not while holding the lock
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "mlflow"
        reason = "mlflow is not installed" if missing else f"mlflow cannot be imported ({error})"
        raise Trouble(reason, "pip install 'pytest-modelbudget[mlflow]'") from None


def _client(target: Target) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=target.uri)


def _send_all(client: MlflowClient, folder: Path, target: Target, report: IO[str]) -> int:
    failures = 0
    for path in outbox.entries(folder):
        try:
            entry = outbox.read(path)
            if entry.target != target.shown:
                continue
            experiment, run, history = _send(client, path, entry, target)
        except outbox.NotReadable as error:
            outbox.remove(path)
            _tell(report, target, event="damaged", entry=path.name, reason=str(error))
            continue
        except Exception as error:
            trouble = explained(error, target)
            _tell(report, target, event="failed", entry=path.name, reason=trouble.reason, cure=trouble.cure)
            failures += 1
            if failures == _FAILURES:
                break
            continue
        outbox.remove(path)
        _tell(report, target, event="sent", entry=path.name, experiment=experiment, run=run, history=history)
    return int(failures > 0)


def _send(client: MlflowClient, path: Path, entry: Entry, target: Target) -> tuple[str, str, str]:
    """Send one entry; returns the ids of the experiment, the run and the history experiment."""
    experiment = _experiment(client, entry.experiment, target)
    run_id = _send_job(client, experiment, path, entry)
    history = _experiment(client, entry.history_experiment, target)
    stored = _by_key(client, history, f"tags.`{_KIND}` = 'history'") if entry.history else {}
    for model in entry.history:
        _send_history(client, history, path, entry, model, stored.get(model.key))
    client.set_tag(run_id, _STATE, "complete")
    client.set_terminated(run_id, entry.job.status, entry.created_ms)
    return experiment, run_id, history


def _experiment(client: MlflowClient, name: str, target: Target) -> str:
    """The id of an experiment, made when it is not there.

    Raises:
        Trouble: it was deleted, and its name is still taken.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, _artifacts(name, target), _experiment_tags(name)))
        except Exception:  # another machine may have made it in between
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        cure = f"mlflow experiments restore --experiment-id {found.experiment_id}"
        raise Trouble(f"the experiment {name} was deleted in MLflow", cure)
    return str(found.experiment_id)


def _artifacts(name: str, target: Target) -> str | None:
    """Where artifacts go: beside the embedded store; a server knows by itself."""
    if not target.local:
        return None
    return (Path.cwd() / "artifacts" / name).as_uri()


def _experiment_tags(name: str) -> dict[str, str]:
    what = "One run for each model, a point for each commit."
    if not name.endswith("/history"):
        what = "One run for each run of pytest --model-budget."
    return {"mlflow.experimentKind": "custom_model_development", "mlflow.note.content": what}


def _by_key(client: MlflowClient, experiment: str, condition: str) -> dict[str, StoredRun]:
    """The stored runs of one kind by key; of runs that were made twice, the oldest stays and the others are deleted."""
    runs: list[StoredRun] = []
    token: str | None = None
    while True:
        page = client.search_runs([experiment], condition, max_results=1000, page_token=token)
        runs += page
        if not (token := page.token):
            break
    kept: dict[str, StoredRun] = {}
    for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id)):
        key = run.data.tags.get(_KEY, "")
        if key in kept:
            client.delete_run(run.info.run_id)
        elif key:
            kept[key] = run
    return kept


def _made(client: MlflowClient, experiment: str, entry: Entry, run: Run) -> StoredRun:
    """A new run; looks again afterwards, because another machine, or a lost answer, may have made it twice."""
    tags = {_KEY: run.key, **run.tags}
    tags.pop(_DIGEST, None)  # it says that the tables have arrived
    client.create_run(experiment, entry.created_ms, tags, run.name)
    return _by_key(client, experiment, f"tags.`{_KEY}` = '{run.key}'")[run.key]


def _send_job(client: MlflowClient, experiment: str, path: Path, entry: Entry) -> str:
    run = entry.job
    stored = _by_key(client, experiment, f"tags.`{_KEY}` = '{run.key}'").get(run.key)
    stored = stored or _made(client, experiment, entry, run)
    run_id = str(stored.info.run_id)
    if stored.data.tags.get(_STATE) != "complete":
        tags = {**run.tags, _STATE: "sending", _TABLES: _table_tag(run)}
        _log(client, run_id, run.metrics, tags, entry.created_ms, entry.step)
        client.log_artifacts(run_id, str(path / run.folder))
    return run_id


def _send_history(
    client: MlflowClient, experiment: str, path: Path, entry: Entry, run: Run, stored: StoredRun | None
) -> None:
    """Append one point to a model's history; its tags and its latest tables follow when the point is the newest."""
    stored = stored or _made(client, experiment, entry, run)
    run_id, tags = str(stored.info.run_id), stored.data.tags
    last = int(tags.get(_STEP, -1)), int(tags.get(_LOGGED, -1))
    now = entry.step, entry.created_ms
    if last[0] == entry.step and now < last:
        return  # the same commit was measured again since
    if now < last:
        _log(client, run_id, run.metrics, {}, entry.point_ms, entry.step)
        return
    # The step is noted first: whoever finds it knows that points of this step may be there.
    _log(client, run_id, {}, {_STEP: str(entry.step), _LOGGED: str(entry.created_ms)}, 0, 0)
    metrics, time_ms = run.metrics, entry.point_ms
    if last[0] == entry.step:
        # A page shows the highest of the values with one step and time, so another value needs a later time.
        metrics = {name: value for name, value in metrics.items() if stored.data.metrics.get(name) != value}
        time_ms = entry.created_ms
    _log(client, run_id, metrics, {}, time_ms, entry.step)
    if tags.get(_DIGEST) != run.tags.get(_DIGEST):
        client.log_artifacts(run_id, str(path / run.folder))
    _log(client, run_id, {}, {**run.tags, _TABLES: _table_tag(run)}, 0, 0)
    client.set_terminated(run_id, run.status, entry.created_ms)


def _log(
    client: MlflowClient, run_id: str, metrics: Mapping[str, float], tags: Mapping[str, str], time_ms: int, step: int
) -> None:
    from mlflow.entities import Metric, RunTag

    points = [Metric(name, value, time_ms, step) for name, value in metrics.items()]
    if points or tags:
        client.log_batch(run_id, points, (), [RunTag(name, text) for name, text in tags.items()])


def _table_tag(run: Run) -> str:
    """The list of tables that MLflow's comparison page offers; as many as a tag can hold."""
    return json.dumps(list(_until_full({"path": path, "type": "table"} for path in run.tables)))


def _until_full(tables: Iterable[dict[str, str]]) -> Iterable[dict[str, str]]:
    length = 2
    for table in tables:
        length += len(json.dumps(table)) + 2
        if length > _LONGEST_TAG:
            return
        yield table


def explained(error: Exception, target: Target) -> Trouble:
    """Any failure as a reason and a cure."""
    if isinstance(error, Trouble):
        return error
    kind, message = type(error).__name__, next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, ModuleNotFoundError):
        return Trouble(f"mlflow needs the module {error.name} for {target.shown}", "install the package that has it")
    if kind == "UnsupportedModelRegistryStoreURIException" and target.is_database:
        cure = "pip install mlflow, or set MLFLOW_TRACKING_URI to a server"
        return Trouble(f"mlflow-skinny cannot open a database such as {target.shown}", cure)
    if kind == "UnsupportedModelRegistryStoreURIException":
        return Trouble(f"mlflow does not know how to open {target.shown}", "correct MLFLOW_TRACKING_URI")
    if "maintenance mode" in message:
        cure = "set MLFLOW_TRACKING_URI to a server or to sqlite:///mlflow.db, or unset it"
        return Trouble(f"mlflow no longer writes to folders such as {target.shown}", cure)
    if _refused(error, message):
        cure = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        return Trouble(f"{target.shown} does not let this user in", cure)
    if code := re.search(r"too many (\d+) error responses", message):
        return Trouble(f"{target.shown} answers with error {code[1]}")
    return Trouble(f"{kind}: {message}"[:500])


def _refused(error: Exception, message: str) -> bool:
    if getattr(error, "error_code", "") in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return True
    return any(f"error code {number}" in message for number in (401, 403))


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # mlflow may leave threads that would keep the process waiting
