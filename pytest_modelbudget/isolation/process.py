"""A worker from the outside: started, given jobs, watched, and ended with all that it started."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psutil

from pytest_modelbudget.isolation import measuring
from pytest_modelbudget.isolation.channel import DEBUG, Answer, Job, read_answer, write_job
from pytest_modelbudget.isolation.output import OutputFile, Printed
from pytest_modelbudget.system import processes

_WORKER = "pytest_modelbudget.isolation.worker"
_POLL_SECONDS = 0.05
"""Seconds between two looks at a worker that has not answered."""

_TREE_EVERY = 4
"""At so many looks the memory of what a worker started is read too, which is dearer than reading its own."""

_SECONDS_TO_START = 120.0
_SECONDS_TO_END = 10.0
_SECONDS_TO_TELL = 0.5
_MOST_OUTPUT = 256 << 20
_MOST_DEBUG = 64 << 20

_GUARD = 'read _; kill -9 "-$1"; rm -rf -- "$2"'
"""Shell code that ends a group of processes when its input ends, as it does with whoever started it; also a folder."""

LimitKind = Literal["seconds", "memory", "output"]


@dataclass(frozen=True, slots=True)
class WorkerEnd:
    """How a worker ended: its exit code (negative for a signal), or the limit that it hit, and what it wrote last."""

    code: int | None
    limit: LimitKind | None = None
    amount: float = 0
    stderr: str = ""
    nonsense: bool = False


class WorkerEnded(Exception):
    """The worker ended before it answered."""

    def __init__(self, end: WorkerEnd) -> None:
        super().__init__(end)
        self.end = end
        self.limit = end.limit


class Worker:
    """One process that does one job at a time.

    Its standard input and output are the channel; what its code prints goes to files, and is passed on after each job.
    It leads a session of its own, so that it can be ended with what it started.
    """

    def __init__(self) -> None:
        self._files = tempfile.TemporaryDirectory(prefix="modelbudget-", ignore_cleanup_errors=True)
        self._printed = [OutputFile(Path(self._files.name) / name) for name in ("stdout", "stderr")]
        self._debug = OutputFile(self._printed[0].path.with_suffix(DEBUG), _MOST_DEBUG)
        self._measured = Path(self._files.name) / "coverage"
        with self._printed[1].path.open("ab") as stderr:
            self._process = subprocess.Popen(
                [*processes.module_command(_WORKER), str(self._printed[0].path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**processes.child_environment(), **measuring.environment(self._measured)},
                start_new_session=True,
            )
        self._guard = _start_guard(self._process.pid, self._files.name)
        self._answers: queue.SimpleQueue[tuple[int, Answer] | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="modelbudget-listener", daemon=True).start()
        self._number = 0
        self._ready = False
        self.used = False
        self.imported_ahead = ""

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def ask(
        self, job: Job, pass_on: Callable[[Printed], None], *, seconds: float | None, memory: float | None
    ) -> Answer:
        """Its answer to a job, within limits of time and of memory (bytes, of it and all that it started).

        `pass_on` takes what was printed meanwhile, however the job comes out.

        Raises:
            WorkerEnded: it ended, or was ended for a limit.
        """
        if not self._ready:
            self._wait(0, _SECONDS_TO_START, None)  # it says so when it is there
            self._ready = True
        self._send(job)
        try:
            answer = self._wait(self._number, seconds, memory)
        finally:
            pass_on(self._fresh_output())
        self.used = True
        return answer

    def import_ahead(self, job: Job) -> None:
        """Give it an import to do while nobody asks; a worker that this ended, or spoiled, is found to have ended."""
        self.imported_ahead = job.argument
        self._send(job)

    def _send(self, job: Job) -> None:
        self._number += 1
        with suppress(OSError):  # whoever waits for its answer finds out that it is gone
            assert self._process.stdin is not None
            write_job(self._process.stdin, self._number, job)

    def end(self) -> None:
        """Let it end by itself; a worker that does not is killed."""
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS_TO_END)
            measuring.add_to_current(self._measured)
        self.kill()

    def interrupt(self) -> None:
        """End it and all that it started, at once; for another thread than the one that waits for its answer."""
        processes.kill_tree(self._process)

    def kill(self) -> None:
        """End it and all that it started, at once, and remove its files."""
        processes.kill_tree(self._process)
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
        if self._process.stdin is not None:
            with suppress(OSError, ValueError):
                self._process.stdin.close()
        self._files.cleanup()

    def _listen(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        try:
            while (answer := read_answer(stream)) is not None:
                self._answers.put(answer)
        except (OSError, ValueError, TypeError):
            self._answers.put((-1, Answer("nonsense")))
        self._answers.put(None)
        with suppress(OSError):
            stream.close()

    def _wait(self, number: int, seconds: float | None, memory: float | None) -> Answer:
        start, looks = time.monotonic(), 0
        while True:
            with suppress(queue.Empty):
                received = self._answers.get(timeout=_POLL_SECONDS)
                if received is None or received[0] == -1:
                    raise WorkerEnded(self._end(nonsense=received is not None))
                if received[0] == number:
                    return received[1]
                continue
            looks += 1
            if not self.alive and self._answers.empty():
                raise WorkerEnded(self._end())
            if seconds is not None and time.monotonic() - start > seconds:
                raise WorkerEnded(self._stopped("seconds", seconds))
            if memory is not None and self._memory(tree=looks % _TREE_EVERY == 0) > memory:
                raise WorkerEnded(self._stopped("memory", memory))
            if any(printed.size() > _MOST_OUTPUT for printed in self._printed):
                raise WorkerEnded(self._stopped("output", _MOST_OUTPUT))

    def _memory(self, *, tree: bool) -> int:
        total, pid = 0, self._process.pid
        for process in ([psutil.Process(pid)] if self.alive else []) + (processes.descendants(pid) if tree else []):
            with suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def _stopped(self, limit: LimitKind, amount: float) -> WorkerEnd:
        """End it for a limit; before that it says where it is, if it still can."""
        if hasattr(signal, "SIGUSR2"):
            size_before, deadline = self._printed[1].size(), time.monotonic() + _SECONDS_TO_TELL
            with suppress(OSError):
                self._process.send_signal(signal.SIGUSR2)
            while self._printed[1].size() == size_before and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(0.02)
        return replace(self._end(), code=None, limit=limit, amount=amount)

    def _end(self, *, nonsense: bool = False) -> WorkerEnd:
        with suppress(subprocess.TimeoutExpired):
            if self.alive:
                self._process.wait(0.5 if not nonsense else 0)
        code = self._process.poll()
        return WorkerEnd(code, stderr=self._printed[1].tail(), nonsense=nonsense)

    def _fresh_output(self) -> Printed:
        stdout, stderr = (printed.fresh() for printed in self._printed)
        return Printed(stdout, stderr, self._debug.fresh())


def _start_guard(group: int, folder: str) -> subprocess.Popen[bytes] | None:
    """Something that ends the worker and what it started once this process is gone, in whichever way it goes.

    The worker may be in C code that never gives way, and what it started does not notice.
    """
    if sys.platform != "win32":
        with suppress(OSError):
            command = ["/bin/sh", "-c", _GUARD, "sh", str(group), folder]
            return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    return None
