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
class Landed:
    """A model that is done: the entry at `index`, with the packed attempt or the error that came instead."""

    index: int
    future: Future[bytes]


Waiting = Callable[[Sequence[ModelEntry]], AbstractContextManager[object]]
"""Entered while there is nothing to do but wait for the models that are being counted."""


def count_all(
    pool: Pool, entries: Sequence[ModelEntry], waiting: Waiting = lambda _: nullcontext()
) -> Iterator[Landed]:
    """Count all entries with the engine, each as soon as it is done.

    Raises:
        Lost: the engine is gone; what did not come has no result.
    """
    queue, in_flight = _Queue(entries), dict[Future[bytes], int]()
    try:
        while queue or in_flight:
            _fill(pool, entries, queue, in_flight)
            with waiting([entries[index] for index in in_flight.values()]):
                done = _wait_for_some(pool, entries, queue, in_flight)
            landed = [Landed(in_flight.pop(future), future) for future in done]
            for item in landed:
                queue.done(item.index)
            _fill(pool, entries, queue, in_flight)  # its workers are busy while each result is looked at
            for item in landed:
                _check_not_lost(item.future)
                yield item
    finally:
        for future in in_flight:
            future.cancel()


def _fill(pool: Pool, entries: Sequence[ModelEntry], queue: _Queue, in_flight: dict[Future[bytes], int]) -> None:
    for _ in range(pool.slots() - len(in_flight)):
        if queue:
            index = queue.next()
            in_flight[pool.executor.submit(count_task, pool.task(entries[index]))] = index


def _wait_for_some(
    pool: Pool, entries: Sequence[ModelEntry], queue: _Queue, in_flight: dict[Future[bytes], int]
) -> set[Future[bytes]]:
    while True:
        if in_flight:
            done, _ = wait(in_flight, _LOOK_SECONDS, FIRST_COMPLETED)
            if done:
                return done
        else:
            time.sleep(_LOOK_SECONDS)
        _fill(pool, entries, queue, in_flight)


def _check_not_lost(future: Future[bytes]) -> None:
    if future.cancelled():
        raise Lost("the executor dropped a model that it had taken")
    if isinstance(error := future.exception(), BrokenExecutor):
        raise error


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


def import_group(entry: ModelEntry) -> str:
    """What the models have in common that are quick to count one after the other: framework, else builder's module."""
    if entry.framework:
        return entry.framework
    build = entry.build.source.reference if isinstance(entry.build, YieldedBuilder) else entry.build
    if not isinstance(build, str):
        return ""
    if names_file(build):
        return "keras"
    module = build.partition(":")[0]
    package = module.partition(".")[0]
    return package if package in FRAMEWORK_MODULES else module
