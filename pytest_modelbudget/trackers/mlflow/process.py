"""The sender as a process of pytest's: started early, told to begin, and ended at the deadline."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from pytest_modelbudget.system import processes
from pytest_modelbudget.trackers.mlflow import outbox
from pytest_modelbudget.trackers.mlflow.target import Target

_SENDER = "pytest_modelbudget.trackers.mlflow.sender"

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

OVER = "over"
"""The event that the deadline ended the sender."""


class Sender:
    """A process that starts up at once and sends what is in `folder` when `finish` is called.

    Its output goes to files: a pipe would be held open by any process it leaves behind.
    """

    def __init__(self, root: Path, folder: Path, target: Target, deadline: float) -> None:
        self._deadline = deadline
        self._report = tempfile.TemporaryFile()  # noqa: SIM115  # `end` closes it
        self._noise = tempfile.TemporaryFile()  # noqa: SIM115
        command = [*processes.module_command(_SENDER), str(root.resolve()), str(folder.resolve()), str(deadline)]
        self._process = subprocess.Popen(
            command,
            cwd=outbox.project_folder(root),
            env=_environment(target),
            stdin=subprocess.PIPE,
            stdout=self._report,
            stderr=self._noise,
            start_new_session=True,
        )

    def finish(self) -> tuple[list[Event], str]:
        """Let it send, until it ends or the deadline is over; returns its events, perhaps `OVER`, and how it ended."""
        status: int | None = None
        try:
            assert self._process.stdin is not None
            with suppress(OSError):  # it has ended already
                self._process.stdin.write(f"{time.time()}".encode())
                self._process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                status = self._process.wait(self._deadline)
            events = [*self._events(), *([{"event": OVER}] if status is None else [])]
            return events, self._ended(status)
        finally:
            self.end()

    def end(self) -> None:
        """End it and whatever it started; the second time nothing happens."""
        if self._report.closed:
            return
        processes.kill_tree(self._process)
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._report.close()
        self._noise.close()

    def _events(self) -> Iterator[Event]:
        self._report.seek(0)
        for line in self._report.read().decode("utf-8", "replace").splitlines():
            with suppress(ValueError):  # a sender that was killed may have written half a line
                yield json.loads(line)

    def _ended(self, status: int | None) -> str:
        if status is None:
            return f"no answer within {self._deadline:g} s"
        self._noise.seek(0)
        last_line = self._noise.read()[-2000:].decode("utf-8", "replace").strip().splitlines()[-1:]
        return ": ".join([f"the sender ended with status {status}", *last_line])


def _environment(target: Target) -> dict[str, str]:
    environment = {**_SETTINGS, **processes.child_environment(), **_FIXED}
    if not target.local:
        environment["MLFLOW_TRACKING_URI"] = target.uri
    return environment
