"""MLflow: each run of pytest becomes a run there, and each model a history.

The pytest process writes an outbox entry of plain files and starts the sender; it never imports mlflow. An
entry that could not be delivered stays and is sent by the next run.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pytest_modelbudget.check import Result
from pytest_modelbudget.reports.text import harmless
from pytest_modelbudget.trackers import Delivery
from pytest_modelbudget.trackers.mlflow import content, facts, outbox
from pytest_modelbudget.trackers.mlflow.target import Target, resolve

_SENDER = "pytest_modelbudget.trackers.mlflow.sender"

_LOCAL_PAGE = "http://127.0.0.1:5000"
"""Where `mlflow ui` serves its pages."""

_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # its own retry makes runs twice
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""What the sender's mlflow is told, unless the user says otherwise."""

_FIXED = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true", "MLFLOW_ENABLE_ASYNC_LOGGING": "false"}

Event = Mapping[str, str]


def log(results: Sequence[Result], root: Path, *, exit_failed: bool, deadline: float = 60.0) -> Delivery:
    """Send `results` to `MLFLOW_TRACKING_URI`, or to the embedded store in `root`, within `deadline` seconds.

    Failures of tracking come back as lines, never as exceptions; what was not delivered is kept in the outbox.
    """
    target: Target | None = None
    try:
        target = resolve(Path.cwd(), os.environ)
        delivery = _deliver(results, root, target, exit_failed, deadline)
    except Exception as error:  # a failure of tracking must not change what a run of tests decided
        why = f": {next(iter(str(error).splitlines()), '')}" if target else ""
        delivery = Delivery(False, (f"mlflow: nothing was logged ({type(error).__name__}{why})",))
    scrub = target.scrub if target else str
    return Delivery(delivery.ok, tuple(harmless(scrub(line)) for line in delivery.lines))


def _deliver(results: Sequence[Result], root: Path, target: Target, exit_failed: bool, deadline: float) -> Delivery:
    folder = outbox.home(root) / "outbox"
    place = facts.gather(root, os.environ)
    now_ms, key = int(time.time() * 1000), uuid.uuid4().hex
    entry, files = content.make(results, place, target=target.shown, key=key, now_ms=now_ms, exit_failed=exit_failed)
    path = outbox.write(folder, entry, files)
    dropped = outbox.trim(folder)
    events, ended = _run_sender(root, folder, target, deadline)
    lines = [
        *_outcome(events, ended, path, root, target),
        *_remarks(events, dropped, path.name, place),
        *_waiting(*outbox.waiting(folder, target.shown)),
    ]
    return Delivery(not path.exists(), tuple(lines))


def _run_sender(root: Path, folder: Path, target: Target, deadline: float) -> tuple[list[Event], str]:
    """Run the sender to its end or to the deadline; returns its events, and how it ended.

    Its output goes to files: a pipe would be held open by any process it leaves behind.
    """
    command = [sys.executable, "-m", _SENDER, str(root.resolve()), str(folder.resolve()), str(deadline + 5)]
    with tempfile.TemporaryFile() as report, tempfile.TemporaryFile() as noise:
        process = subprocess.Popen(
            command,
            cwd=outbox.home(root),  # "-m" puts this folder first on the path, and it holds no modules
            env=_environment(target),
            stdin=subprocess.DEVNULL,
            stdout=report,
            stderr=noise,
            start_new_session=True,
        )
        status: int | None = None
        try:
            status = process.wait(deadline)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _kill(process)
        report.seek(0)
        noise.seek(0)
        events = list(_events(report.read().decode("utf-8", "replace")))
        if status is None:
            return events, f"no answer within {deadline:g} s"
        last = noise.read()[-2000:].decode("utf-8", "replace").strip().splitlines()[-1:]
        return events, ": ".join([f"the sender ended with status {status}", *last])


def _environment(target: Target) -> dict[str, str]:
    environment = {**_SETTINGS, **os.environ, **_FIXED}
    if not target.local:
        environment["MLFLOW_TRACKING_URI"] = target.uri
    package = Path(__file__).resolve().parents[3]
    paths = [str(Path(path).resolve()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if package.name not in ("site-packages", "dist-packages"):  # run from its sources
        paths.append(str(package))
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the sender and whatever it started."""
    if sys.platform == "win32":
        process.kill()
    else:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _events(report: str) -> Iterator[Event]:
    for line in report.splitlines():
        with suppress(ValueError):  # a sender that was killed may have written half a line
            yield json.loads(line)


def _sent(events: Sequence[Event], name: str) -> Event | None:
    return next((event for event in events if event["event"] == "sent" and event["entry"] == name), None)


def _outcome(events: Sequence[Event], ended: str, path: Path, root: Path, target: Target) -> Iterator[str]:
    """What became of this run's entry: where to look at it, or why it was not sent."""
    if not path.exists():  # it was sent, perhaps by the sender of another run of pytest at the same time
        yield f"mlflow: logged to {target.shown}"
        yield from _where_to_look(_sent(events, path.name), root, target)
        return
    troubles = [event for event in events if event["event"] == "stopped" or event.get("entry") == path.name]
    if troubles:
        yield f"mlflow: not sent: {troubles[0]['reason']}"
        if cure := troubles[0].get("cure"):
            yield f"  {cure}"
    else:
        yield f"mlflow: not sent: {ended}"


def _where_to_look(sent: Event | None, root: Path, target: Target) -> Iterator[str]:
    page = target.shown if target.is_server else _LOCAL_PAGE
    if target.is_database:
        yield f"  look at it with: {_ui_command(root, target)}"
    if sent is None or not (target.is_server or target.is_database):
        return
    yield f"  this run: {page}/#/experiments/{sent['experiment']}/runs/{sent['run']}?workflowType=machine_learning"
    history = f"{page}/#/experiments/{sent['history']}/runs"
    yield f"  all models over time: {history}?workflowType=machine_learning&compareRunsMode=CHART"


def _ui_command(root: Path, target: Target) -> str:
    if not target.local:
        return 'mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"'
    go = "" if Path.cwd() == root.resolve() else f"cd {shlex.quote(str(root.resolve()))} && "
    return f"{go}mlflow ui --backend-store-uri sqlite:///{target.shown}"


def _waiting(here: int, elsewhere: int) -> Iterator[str]:
    if here:
        yield f"  kept in {outbox.FOLDER}/outbox: {here}; the next run with --model-budget-mlflow sends them"
    if elsewhere:
        yield f"  kept for other values of MLFLOW_TRACKING_URI: {elsewhere}"


def _remarks(events: Sequence[Event], dropped: Sequence[str], name: str, place: facts.Facts) -> Iterator[str]:
    if place.shallow:
        yield "  the clone is shallow, so steps are commit times in minutes; fetch-depth: 0 gives commit counts"
    others = sum(event["event"] == "sent" and event["entry"] != name for event in events)
    if others:
        yield f"  also sent what was waiting from {others} earlier {'run' if others == 1 else 'runs'}"
    for event in events:
        if event["event"] == "damaged":
            yield f"  removed from the outbox: {event['reason']}"
    if dropped:
        yield f"  the outbox was full: dropped the oldest {len(dropped)}"
