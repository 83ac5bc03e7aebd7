"""Keeps an executor busy with the models of a run, and takes what is done as it comes."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from pytest_modelbudget.engine.naming import FRAMEWORK_MODULES
from pytest_modelbudget.entry import ModelEntry, names_file
from pytest_modelbudget.executors.task import Task, count_task
from pytest_modelbudget.isolation import YieldedBuilder

_LOOK_SECONDS = 0.5
"""Between two looks at how many models the executor takes, while none is done."""

Lost = BrokenExecutor
"""An executor that takes no more, and gives no results of what it took; the message says why."""


@dataclass(frozen=True, slots=True)
class Pool:
    """An engine for one run.

    `slots` says how many models it takes at a time, each time it is asked: more would only wait there, and be lost with
    a worker that dies. It raises `Lost` when the engine is gone for good. `task` is an entry as the engine needs it.
    """

    executor: Executor
    slots: Callable[[], int]
    task: Callable[[ModelEntry], Task]


@dataclass(frozen=True, slots=True)
class Completed:
    """A model that is done: the entry at `index`, with the packed attempt or the error that came instead."""

    index: int
    future: Future[bytes]


Waiting = Callable[[Sequence[ModelEntry]], AbstractContextManager[object]]
"""Entered while there is nothing to do but wait for the models that are being counted."""


def count_all(
    pool: Pool, entries: Sequence[ModelEntry], waiting: Waiting = lambda _: nullcontext()
) -> Iterator[Completed]:
    """Count all entries with the engine, each as soon as it is done.

    Raises:
        Lost: the engine is gone; what did not come has no result.
    """
    dispatcher = _Dispatcher(pool, entries)
    lost: BrokenExecutor | None = None
    try:
        dispatcher.fill()
        while lost is None and dispatcher.goes_on:
            with waiting(dispatcher.entries):
                completed = dispatcher.wait()
            try:
                dispatcher.fill()  # its workers are busy while each result is looked at
            except Lost as gone:
                lost = gone
            yield from (item for item in completed if _loss(item.future) is None)
            lost = next(filter(None, (_loss(item.future) for item in completed)), lost)
        if lost is not None:
            raise lost
    finally:
        dispatcher.cancel()


class _Dispatcher:
    """The models that the executor has, and those that wait for it."""

    def __init__(self, pool: Pool, entries: Sequence[ModelEntry]) -> None:
        self._pool, self._all = pool, entries
        self._queue = _Queue(entries)
        self._in_flight: dict[Future[bytes], int] = {}

    @property
    def goes_on(self) -> bool:
        """Whether a model is to come."""
        return bool(self._queue or self._in_flight)

    @property
    def entries(self) -> list[ModelEntry]:
        """Those that the executor has."""
        return [self._all[index] for index in self._in_flight.values()]

    def fill(self) -> None:
        """Give the executor as many as it takes."""
        for _ in range(self._pool.slots() - len(self._in_flight)):
            if self._queue:
                index = self._queue.next()
                self._in_flight[self._pool.executor.submit(count_task, self._pool.task(self._all[index]))] = index

    def wait(self) -> list[Completed]:
        """Those that are done, once there is one."""
        while not (done := self._done()):
            self.fill()  # it may take more by now
        completed = [Completed(self._in_flight.pop(future), future) for future in done]
        for item in completed:
            self._queue.done(item.index)
        return completed

    def _done(self) -> set[Future[bytes]]:
        if not self._in_flight:
            time.sleep(_LOOK_SECONDS)
        return wait(self._in_flight, _LOOK_SECONDS, FIRST_COMPLETED).done

    def cancel(self) -> None:
        """Have no more of them."""
        for future in self._in_flight:
            future.cancel()


def _loss(future: Future[bytes]) -> BrokenExecutor | None:
    """That the executor is gone, where that is what became of a model."""
    if future.cancelled():
        return Lost("the executor dropped a model that it had taken")
    error = future.exception()
    return error if isinstance(error, BrokenExecutor) else None


class _Queue:
    """Entries that wait, by what they import: a worker goes on with what it has imported.

    The worker that is done is the one that is free, so the next model is like the one that it had; without more of
    these it is like those that fewest workers have for what is left of them. In each group the order is that of the
    entries.
    """

    def __init__(self, entries: Sequence[ModelEntry]) -> None:
        self._groups = [import_group(entry) for entry in entries]
        self._waiting: dict[str, deque[int]] = defaultdict(deque)
        for index, group in enumerate(self._groups):
            self._waiting[group].append(index)
        self._busy: Counter[str] = Counter()
        self._freed: deque[str] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def next(self) -> int:
        group = self._freed.popleft() if self._freed else ""
        if group not in self._waiting:
            group = max(self._waiting, key=lambda name: len(self._waiting[name]) / (self._busy[name] + 1))
        self._busy[group] += 1
        index = self._waiting[group].popleft()
        if not self._waiting[group]:
            del self._waiting[group]
        return index

    def done(self, index: int) -> None:
        group = self._groups[index]
        self._busy[group] -= 1
        self._freed.append(group)


_KERAS_FILES = (".keras", ".h5", ".hdf5")


def import_group(entry: ModelEntry) -> str:
    """What the models have in common that are quick to count one after the other: framework, else builder's module."""
    if entry.framework:
        return entry.framework
    build = entry.build.source.reference if isinstance(entry.build, YieldedBuilder) else entry.build
    if not isinstance(build, str):
        return ""
    if names_file(build):
        return "keras" if build.lower().endswith(_KERAS_FILES) else "exported"
    module = build.partition(":")[0]
    package = module.partition(".")[0]
    return package if package in FRAMEWORK_MODULES else module
