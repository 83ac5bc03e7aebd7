"""Delivers the outbox: `python -m pytest_modelbudget.trackers.mlflow.sender ROOT OUTBOX [SECONDS]`.

The only place where mlflow is imported, in a process that can be killed, because no setting of mlflow's client
bounds the time it takes. Everything here can be repeated: a run is found by its key before it is made, a
metric is the same point when it is sent again, and an entry is removed only when all of it has arrived.
It begins when its stdin ends, so that it can start up while the entry is being written; SECONDS count from then.
What happened is printed as one JSON object a line: `event` is `job` (the run of pytest is complete), `sent` (so are
the histories of its models), `failed`, `damaged` or `stopped`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pytest_modelbudget.trackers.mlflow import artifacts, history, lock, outbox, views
from pytest_modelbudget.trackers.mlflow.history import Points
from pytest_modelbudget.trackers.mlflow.outbox import OUTCOME, Entry, Model
from pytest_modelbudget.trackers.mlflow.store import Store
from pytest_modelbudget.trackers.mlflow.target import Target, resolve, unreachable
from pytest_modelbudget.trackers.mlflow.trouble import Trouble, explained, is_transient

if TYPE_CHECKING:
    from mlflow.entities import Run as StoredRun

    from pytest_modelbudget.summary import Summary

_STATE = "modelbudget.state"
_TABLES = "mlflow.loggedArtifacts"
_NOTE = "mlflow.note.content"
_LATEST = "latest"

_LONGEST_TAG = 5000
_TRIES = 3
_FAILURES = 2
"""After so many failed entries the rest waits for another time: the fault is rarely in the entries."""


def main(arguments: list[str]) -> int:
    """Send what is in the outbox; 0 when all was sent."""
    root, folder = Path(arguments[0]).resolve(), Path(arguments[1]).resolve()
    seconds = float(arguments[2]) if len(arguments) > 2 else 60.0
    target = resolve(Path.cwd(), os.environ)
    report = Report(_own_stdout(), target)
    try:
        _prepare(target)
        sys.stdin.read()
        _end_after(seconds)
        os.chdir(outbox.home(root) if target.local else root)  # where mlflow opens a store, it makes a folder for runs
        with lock.held(outbox.home(root) / "sender.lock"):  # two processes that open a new store at once destroy it
            return _send_all(Store(target), folder, target, report)
    except Exception as error:
        report.trouble("stopped", error)
        return 1


class Report:
    """Says what happened, without credentials, to whoever started this process."""

    def __init__(self, sink: IO[str], target: Target) -> None:
        self._sink, self._target = sink, target

    def tell(self, event: str, **facts: str) -> None:
        """One event."""
        scrubbed = {name: self._target.scrub(text) for name, text in facts.items()}
        self._sink.write(json.dumps({"event": event, **scrubbed}) + "\n")
        self._sink.flush()

    def trouble(self, event: str, error: Exception, **facts: str) -> None:
        """One event that has a reason and a cure."""
        found = explained(error, self._target)
        self.tell(event, reason=found.reason, cure=found.cure, **facts)


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


def _send_all(store: Store, folder: Path, target: Target, report: Report) -> int:
    """The newest run of pytest first, since someone waits for its link; then the histories in their own order."""
    failures = 0
    jobs: list[tuple[Path, Entry, str, str]] = []
    for path in outbox.entries(folder):
        try:
            entry = outbox.read(path)
            if entry.target != target.shown:
                continue
            experiment = _retried(partial(store.experiment, entry.experiment))
            run = _retried(partial(_send_job, store, experiment, path, entry))
            report.tell("job", entry=path.name, experiment=experiment, run=run)
            jobs.append((path, entry, experiment, run))
        except outbox.NotReadable as error:
            outbox.remove(path)
            report.tell("damaged", entry=path.name, reason=str(error))
        except Exception as error:
            report.trouble("failed", error, entry=path.name)
            failures += 1
            if failures == _FAILURES:
                return 1
    for path, entry, experiment, run in reversed(jobs):
        try:
            models = _retried(partial(_send_models, store, experiment, path, entry))
        except Exception as error:
            report.trouble("failed", error, entry=path.name)
            failures += 1
            if failures == _FAILURES:
                return 1
            continue
        outbox.remove(path)
        report.tell("sent", entry=path.name, experiment=experiment, run=run, history=models)
    return int(failures > 0)


def _retried(act: Callable[[], str]) -> str:
    """What `act` returns; a fault that may pass is tried again, which is safe."""
    for attempt in range(1, _TRIES):
        try:
            return act()
        except Exception as error:
            if not is_transient(error):
                raise
            time.sleep(attempt)
    return act()


def _send_job(store: Store, experiment: str, path: Path, entry: Entry) -> str:
    """Write the run of one run of pytest; returns its id."""
    run = entry.job
    stored = store.one(experiment, run.key)
    if stored is None:
        store.create(experiment, run.key, run.name, entry.created_ms, run.tags)
        stored = store.one(experiment, run.key)
        if stored is None:
            raise Trouble("MLflow does not find a run that it has just made")
    run_id = str(stored.info.run_id)
    if stored.data.tags.get(_STATE) != "complete":
        tags = {**run.tags, _STATE: "sending", _TABLES: _table_tag(run.tables)}
        store.log(run_id, [Points(entry.step, entry.created_ms, run.metrics)], tags)
        store.upload(run_id, path / run.folder)
        store.log(run_id, tags={_STATE: "complete"})
    store.end(run_id, run.status, entry.created_ms)
    return run_id


def _send_models(store: Store, jobs: str, path: Path, entry: Entry) -> str:
    """Append to the histories of those models that changed; returns the experiment that holds them, if any does."""
    if not entry.history:
        return ""
    experiment = store.experiment(entry.history_experiment)
    mark = history.mark_in(store.experiment_tag(experiment, history.MARK))
    is_newest = mark.is_before(entry)
    if is_newest and mark.fingerprint == entry.fingerprint:
        return experiment
    if is_newest and mark.fingerprint:
        store.set_experiment_tag(experiment, history.MARK, replace(mark, fingerprint="").text())
    stored, done = _stored(store, jobs, experiment, entry), outbox.done(path)
    with ThreadPoolExecutor(store.parallel) as pool:
        models = [model for model in entry.history if model.key not in done]
        list(pool.map(lambda model: _send_model(store, path, entry, model, stored[model.key]), models))
    if is_newest:
        after = history.Mark(entry.step, entry.created_ms, entry.fingerprint)
        store.set_experiment_tag(experiment, history.MARK, after.text())
    return experiment


def _stored(store: Store, jobs: str, experiment: str, entry: Entry) -> dict[str, StoredRun]:
    """The history run of every model by key; those that are not there are made."""
    condition = "tags.`modelbudget.kind` = 'history'"
    stored = store.by_key(experiment, condition)
    new = [model for model in entry.history if model.key not in stored]
    if not new:
        return stored
    with ThreadPoolExecutor(store.parallel) as pool:
        list(pool.map(lambda one: store.create(experiment, one.key, one.name, entry.created_ms, one.tags), new))
    if not stored:
        store.set_experiment_tag(experiment, _NOTE, views.described(experiment, jobs, history=True))
        store.set_experiment_tag(jobs, _NOTE, views.described(jobs, experiment, history=False))
    return store.by_key(experiment, condition)


def _send_model(store: Store, path: Path, entry: Entry, model: Model, stored: StoredRun) -> None:
    """Append to the history of one model; its tags and latest tables follow when the point is the newest."""
    state = history.read(stored.data.tags)
    points, after = history.plan(state, entry, model)
    run_id = str(stored.info.run_id)
    if not points:
        if state is not None and entry.step >= state.step:
            _touch(store, run_id, entry, model, stored)
        return
    store.log(run_id, points)
    if after is not None:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in artifacts.latest(_summary(path, model)).items():
                (Path(folder) / name).write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
            store.upload(run_id, Path(folder), _LATEST)
        tables = _table_tag((f"{_LATEST}/layers.json",))
        store.log(run_id, tags={**model.tags, _TABLES: tables, history.STATE: after.text()})
        store.end(run_id, model.status, entry.created_ms)
    outbox.note_done(path, model.key)


def _touch(store: Store, run_id: str, entry: Entry, model: Model, stored: StoredRun) -> None:
    """A model that is as it was may have come out differently: its snapshot was accepted, say."""
    if stored.data.tags.get(OUTCOME) != model.tags[OUTCOME]:
        store.log(run_id, tags={name: model.tags[name] for name in (OUTCOME, _NOTE)})
        store.end(run_id, model.status, entry.created_ms)


def _summary(path: Path, model: Model) -> Summary:
    """A model's summary, from its own artifacts or from the archive."""
    own = path / "job" / "models" / model.slug / artifacts.RESULT
    if own.exists():
        return artifacts.summary_in(own.read_text(encoding="utf-8"))
    with zipfile.ZipFile(path / "job" / artifacts.ARCHIVE) as archive:
        return artifacts.summary_in(archive.read(f"{model.slug}/{artifacts.RESULT}").decode())


def _table_tag(tables: tuple[str, ...]) -> str:
    """The list of tables that MLflow's comparison page offers; as many as a tag can hold."""
    listed, length = [], 2
    for path in tables:
        one = {"path": path, "type": "table"}
        length += len(json.dumps(one)) + 2
        if length > _LONGEST_TAG:
            break
        listed.append(one)
    return json.dumps(listed)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # mlflow may leave threads that would keep the process waiting
