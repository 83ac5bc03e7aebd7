"""The isolated workers of one process, for the tasks that an executor has it do, whichever thread does them."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from pytest_modelbudget.isolation import Abandoned, Isolation

_IDLE_SECONDS = 600.0


class IsolatedWorkers:
    """Workers by the run that they are of: as many as tasks of it at a time, the one that was last used first.

    The modules of a run stay imported in its workers, so no other run gets them. Workers of a run of which nothing is
    heard for so many seconds come to their end: whoever asked for it may be gone without a word.
    """

    def __init__(self, idle_seconds: float = _IDLE_SECONDS) -> None:
        self._lock = threading.Lock()
        self._idle_seconds = idle_seconds
        self._timers: dict[str, threading.Timer] = {}
        self._idle: dict[str, list[Isolation]] = defaultdict(list)
        self._busy: dict[str, set[Isolation]] = defaultdict(set)
        self._ended: set[str] = set()

    def lend(self, run: str, isolation: Isolation) -> None:
        """Let the tasks of a run have a worker that is there already; it is ended with the others."""
        with self._lock:
            self._idle[run].append(isolation)

    @contextmanager
    def taken(self, run: str) -> Iterator[Isolation]:
        """A worker for one task.

        Raises:
            Abandoned: the run has ended.
        """
        with self._lock:
            if run in self._ended:
                raise Abandoned
            self._stop_timer(run)
            isolation = self._idle[run].pop() if self._idle[run] else Isolation()
            self._busy[run].add(isolation)
        try:
            yield isolation
        finally:
            with self._lock:
                self._busy[run].discard(isolation)
                ended = run in self._ended
                if not ended:
                    self._idle[run].append(isolation)
                    self._start_timer(run)
            if ended:
                isolation.close()

    def end(self, run: str) -> None:
        """End the workers of a run: those that count are killed, the others come to their end."""
        with self._lock:
            self._ended.add(run)
            self._stop_timer(run)
            idle, busy = self._idle.pop(run, []), tuple(self._busy.pop(run, ()))
        for isolation in busy:
            isolation.abandon()
        for isolation in idle:
            isolation.close()

    def _start_timer(self, run: str) -> None:
        self._stop_timer(run)
        if not self._busy[run]:
            timer = self._timers[run] = threading.Timer(self._idle_seconds, self._end_idle, [run])
            timer.daemon = True
            timer.start()

    def _stop_timer(self, run: str) -> None:
        if timer := self._timers.pop(run, None):
            timer.cancel()

    def _end_idle(self, run: str) -> None:
        with self._lock:
            idle = [] if self._busy[run] else self._idle.pop(run, [])
        for isolation in idle:
            isolation.close()


WORKERS = IsolatedWorkers()
"""Those of this process."""
