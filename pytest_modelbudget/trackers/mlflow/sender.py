"""Delivers the outbox: `python -m pytest_modelbudget.trackers.mlflow.sender ROOT OUTBOX [SECONDS]`.

The only place where mlflow is imported, in a process that can be killed, because no setting of mlflow's client
bounds the time it takes. Everything here can be repeated: a run is found by its key before it is made, a
metric is the same point when it is sent again, and an entry is removed only when all of it has arrived.
It begins when its stdin ends, so that it can start up while the entry is being written; SECONDS count from the Unix
time that stdin gives, since starting up may take longer than that.
What happened is printed as one JSON object a line: `event` is `job` (the run of pytest is complete), `short` (for the
histories that there are the time did not suffice) or `begun` (they are complete), `later` (for some that begin with it
the time did not suffice) or `sent` (they are complete, too), `failed`, `damaged` or `stopped`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from filelock import FileLock

from pytest_modelbudget.trackers.mlflow import outbox, tables, views
from pytest_modelbudget.trackers.mlflow.appending import Appender, Progress
from pytest_modelbudget.trackers.mlflow.history import MetricPoints
from pytest_modelbudget.trackers.mlflow.outbox import NOTE, OutboxEntry
from pytest_modelbudget.trackers.mlflow.store import TABLES, Store, table_tag
from pytest_modelbudget.trackers.mlflow.target import Target, target_from, unreachable
from pytest_modelbudget.trackers.mlflow.trouble import SendError, explain_error, is_transient

_T = TypeVar("_T")
_STATE = "modelbudget.state"
_TRIES = 3
_GRACE = 5.0
"""Seconds after the deadline at which the sender ends itself, should the one that would kill it be gone."""

_SHARE_TO_BEGIN = 0.9
"""Of the time until the deadline; afterwards no new history begins, so that none is left half written."""

_FAILURES = 2
"""After so many failed entries the rest waits for another time: the fault is rarely in the entries."""


def main(arguments: list[str]) -> int:
    """Send what is in the outbox; 0 when all was sent."""
    root, folder = Path(arguments[0]).resolve(), Path(arguments[1]).resolve()
    seconds = float(arguments[2]) if len(arguments) > 2 else 60.0
    target = target_from(Path.cwd(), os.environ)
    report = EventReport(_own_stdout(), target)
    try:
        _prepare(target)
        late = _seconds_since(sys.stdin.read())
        until = time.monotonic() + _SHARE_TO_BEGIN * seconds - late
        _end_after(max(seconds - late, 0) + _GRACE)
        os.chdir(
            outbox.project_folder(root) if target.local else root
        )  # where mlflow opens a store, it makes a folder for runs
        with FileLock(
            outbox.project_folder(root) / "sender.lock"
        ):  # two processes that open a new store at once destroy it
            return _OutboxDelivery(Store(target), target, report).of(folder, until)
    except Exception as error:
        report.trouble("stopped", error)
        return 1


class EventReport:
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
        trouble = explain_error(error, self._target)
        self.tell(event, reason=trouble.reason, cure=trouble.cure, **facts)


def _seconds_since(text: str) -> float:
    """Seconds since a time in Unix time; none where there is no such time."""
    try:
        return max(time.time() - float(text), 0.0)
    except ValueError:
        return 0.0


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
        raise SendError(reason, "start the server, or correct MLFLOW_TRACKING_URI")
    try:
        import mlflow  # noqa: F401  # seconds, so not while somebody waits, nor while holding the lock
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "mlflow"
        reason = "mlflow is not installed" if missing else f"mlflow cannot be imported ({error})"
        raise SendError(reason, "pip install 'pytest-modelbudget[mlflow]'") from None
    if target.is_database:
        with suppress(ImportError):  # mlflow-skinny, which says so when it is asked to open it
            importlib.import_module("mlflow.store.tracking.sqlalchemy_store")


@dataclass(frozen=True, slots=True)
class _SentRun:
    """An entry whose run is complete, in an experiment; what is left are the histories of its models."""

    path: Path
    entry: OutboxEntry
    experiment: str
    run: str


class _OutboxDelivery:
    """Sends all entries; failures are counted over all of them."""

    def __init__(self, store: Store, target: Target, report: EventReport) -> None:
        self._store, self._target, self._report, self._failures = store, target, report, 0
        self._begun: set[str] = set()

    def of(self, folder: Path, until: float) -> int:
        """The newest run of pytest first, since someone waits for its link; then the histories in their own order.

        Those that have begun come first; no new one begins after `until`. Returns an exit status, 0 when all was sent.
        """
        sent = [job for path in outbox.entries(folder) if (job := self._job(path)) is not None]
        waiting: list[tuple[_SentRun, Appender, Progress]] = []
        finished = []
        for job in reversed(sent):
            if (work := self._existing(job, until)) is None:
                finished.append(False)
            elif job.entry.totals is not None:  # the next one is held against what this one leaves
                finished.append(self._rest(job, *work, until))
            else:
                waiting.append((job, *work))
        finished += [self._rest(*work, until) for work in waiting]
        return int(not all(finished) or self._failures > 0)

    def _tried(self, act: Callable[[], _T], path: Path) -> _T | None:
        """What `act` returns; None when it failed, or when others failed so often that it is not tried."""
        if self._failures >= _FAILURES:
            return None
        try:
            return _with_retries(act)
        except outbox.UnreadableEntry as error:
            outbox.remove(path)
            self._report.tell("damaged", entry=path.name, reason=str(error))
        except Exception as error:
            self._report.trouble("failed", error, entry=path.name)
            self._failures += 1
        return None

    def _job(self, path: Path) -> _SentRun | None:
        """Send the run of one entry; None when it is for another target, or when it failed."""

        def send() -> _SentRun | None:
            entry = outbox.read(path)
            if entry.target != self._target.shown:
                return None
            outbox.check_files(path)
            experiment = self._store.experiment(entry.experiment)
            return _SentRun(path, entry, experiment, _send_job(self._store, experiment, path, entry))

        sent = self._tried(send, path)
        if sent is not None:
            self._report.tell("job", entry=path.name, experiment=sent.experiment, run=sent.run)
        return sent

    def _existing(self, sent: _SentRun, until: float) -> tuple[Appender, Progress] | None:
        """Append to the histories that there are; None when that failed or the time did not suffice."""
        appender = Appender(self._store, sent.experiment, sent.run, sent.path, sent.entry, self._begun)
        progress = self._tried(lambda: appender.existing(until), sent.path)
        if progress is None:
            return None
        self._tell("begun" if progress.begun else "short", sent, progress)
        return (appender, progress) if progress.begun else None

    def _tell(self, event: str, sent: _SentRun, progress: Progress) -> None:
        context = {"experiment": sent.experiment, "run": sent.run, "history": progress.experiment}
        if progress.moved is not None:
            context["moved"] = str(progress.moved)
        self._report.tell(event, entry=sent.path.name, **context)

    def _rest(self, sent: _SentRun, appender: Appender, progress: Progress, until: float) -> bool:
        """Whether nothing of an entry is left."""

        def finish() -> bool:
            if not appender.new(progress, until):
                return False
            appender.settle(progress)
            return True

        finished = self._tried(finish, sent.path)
        if finished:
            outbox.remove(sent.path)
        if finished is not None:
            self._tell("sent" if finished else "later", sent, progress)
        return bool(finished)


def _with_retries(act: Callable[[], _T]) -> _T:
    """What `act` returns; a fault that may pass is tried again, which is safe."""
    for attempt in range(1, _TRIES):
        try:
            return act()
        except Exception as error:
            if not is_transient(error):
                raise
            time.sleep(attempt)
    return act()


def _send_job(store: Store, experiment: str, path: Path, entry: OutboxEntry) -> str:
    """Write the run of one run of pytest; returns its id."""
    run = entry.job
    stored = store.run_of_key(experiment, run.key)
    if stored is None:
        store.create(experiment, run.key, run.name, entry.created_ms - run.took_ms, run.tags)
        stored = store.run_of_key(experiment, run.key)
        if stored is None:
            raise SendError("MLflow does not find a run that it has just made")
    run_id = str(stored.info.run_id)
    if stored.data.tags.get(_STATE) != "complete":
        note = views.run_note(run.tags.get(NOTE, ""), experiment, run_id)
        tags = {**run.tags, NOTE: note, _STATE: "sending", TABLES: table_tag(run.tables)}
        store.log(run_id, [MetricPoints(entry.step, entry.created_ms, run.metrics)], tags)
        store.upload(stored, path / run.folder)
        table_tags = {}
        if entry.totals is not None:
            published = tables.publish(store, stored, path, entry, entry.totals)
            note = views.run_note(run.tags.get(NOTE, ""), experiment, run_id, published.note)
            table_tags = {**published.tags, NOTE: note}
        store.log(run_id, tags={**table_tags, _STATE: "complete"})
    store.end(run_id, run.status, entry.created_ms)
    return run_id


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # mlflow may leave threads that would keep the process waiting
