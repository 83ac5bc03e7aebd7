"""Any executor in the sense of `concurrent.futures` counts the models of a run."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.executors import Attempt, Lost, Pool, Task, count_all
from pytest_modelbudget.executors.dispatch import import_group
from pytest_modelbudget.executors.workers import WORKERS, IsolatedWorkers
from pytest_modelbudget.isolation import Abandoned, Answer, Printed, YieldedBuilder
from pytest_modelbudget.isolation.channel import EntrySource
from pytest_modelbudget.results import codec
from tests.cli.conftest import Command

ENGINES: dict[str, Callable[[], Executor]] = {
    "threads": lambda: ThreadPoolExecutor(2),
    "processes": lambda: ProcessPoolExecutor(2, multiprocessing.get_context("spawn")),
}


@pytest.mark.parametrize("engine", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_an_engine_needs_no_more_than_submit(isolated: Command, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    """Threads and processes of the standard library bring 32 * width params of each model, and what it printed."""
    entries = [ModelEntry(f"w{n}", "speakers:of_width", (n,), inputs="float32[B, 32]") for n in range(1, 4)]
    entries.append(ModelEntry("broken", "speakers:fails", ("broken",)))
    root = isolated.project.path
    monkeypatch.syspath_prepend(str(root))
    with ENGINES[engine]() as executor:
        completed = list(count_all(Pool(executor, lambda: 2, partial(Task.here, str(root), root)), entries))
        attempts = {entries[item.index].id: Attempt.unpack(item.future.result()) for item in completed}
        WORKERS.end(str(root))
    results = {name: codec.unpack(attempt.answer.data) for name, attempt in attempts.items()}
    assert {name: result.summary and result.summary.params for name, result in results.items()} == {
        "w1": 32, "w2": 64, "w3": 96, "broken": None,
    }  # fmt: skip
    assert "".join(part.stdout for part in attempts["broken"].printed) == "broken to the one\nbroken by a child\n"


class Recorder(Executor):
    """Counts nothing: notes what it is given, and is done with the oldest when it has as many as it takes."""

    def __init__(self, slots: int) -> None:
        self.names: list[str] = []
        self.most = 0
        self._slots = slots
        self._running: list[Future[Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Note the model."""
        self.names.append(args[0].entry.id)
        future: Future[Any] = Future()
        self._running.append(future)
        self.most = max(self.most, len(self._running))
        if len(self._running) == self._slots:
            self._running.pop(0).set_result(b"")
        return future

    def slots(self) -> int:
        """How many it takes; what is left over is done at the end."""
        if len(self.names) == 6:
            for future in self._running:
                future.set_result(b"")
            self._running.clear()
        return self._slots


def test_a_worker_goes_on_with_what_it_has_imported() -> None:
    """Two workers begin with one framework each; the one that has no more of its own takes the other's."""
    entries = [
        ModelEntry(f"{kind}{n}", f"{kind}.nets:net") for kind, count in (("a", 4), ("b", 2)) for n in range(count)
    ]
    recorder = Recorder(2)
    assert len(list(count_all(Pool(recorder, recorder.slots, partial(Task.here, "run", Path())), entries))) == 6
    assert (recorder.names, recorder.most) == (["a0", "b0", "a1", "b1", "a2", "a3"], 2)


SOURCE = YieldedBuilder.by(EntrySource("zoo.all:entries", ModelEntry("sources", "zoo.all:entries")))


@pytest.mark.parametrize(
    ("build", "framework", "group"),
    [
        pytest.param("nets:small", "keras", "keras", id="the framework that is named"),
        pytest.param("torchvision.models:resnet18", None, "torchvision", id="a framework's own models"),
        pytest.param("nets.vision:small", None, "nets.vision", id="a module"),
        pytest.param(SOURCE, None, "zoo.all", id="of a source"),
        pytest.param("./saved/net.keras", None, "keras", id="a file"),
    ],
)
def test_what_models_import_alike(build: str, framework: str | None, group: str) -> None:
    """By what is known before they are built."""
    assert import_group(ModelEntry("net", build, framework=framework)) == group


class Breaks(Executor):
    """Is done with every other model, and gone with the next."""

    def __init__(self) -> None:
        self._taken = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Take it."""
        future: Future[Any] = Future()
        self._taken += 1
        if self._taken % 2:
            future.set_result(b"")
        else:
            future.set_exception(BrokenExecutor("gone"))
        return future


def test_what_was_done_before_an_executor_broke_is_kept() -> None:
    """Also what came together with that; the others have no result."""
    entries = [ModelEntry(f"n{n}", "nets:net") for n in range(4)]
    completions = count_all(Pool(Breaks(), lambda: 2, partial(Task.here, "run", Path())), entries)
    assert next(completions).index == 0
    with pytest.raises(Lost, match="gone"):
        next(completions)


def test_workers_of_a_run_that_is_heard_of_no_more_end() -> None:
    """After a while without a task; a task that comes then has another one."""
    workers = IsolatedWorkers(idle_seconds=0.01)
    with workers.taken("run") as isolation:
        isolation.close = (ended := threading.Event()).set  # type: ignore[method-assign]
    assert ended.wait(10)
    with workers.taken("run") as other:
        assert other is not isolation
    workers.end("run")
    with pytest.raises(Abandoned), workers.taken("run"):
        pass


def test_an_attempt_travels_as_data() -> None:
    """All of it comes back, and nothing else is taken for one."""
    attempt = Attempt(
        Answer("result", data=b"\x00packed", warnings=(("UserWarning", "w", "f.py", 3),)), (Printed("a"),), 2.5
    )
    assert Attempt.unpack(attempt.pack()) == attempt
    for body in (b"", b"\x00\x00\x00\x04null", attempt.pack()[:9], b"\x80\x04N."):
        with pytest.raises(ModelBudgetError, match="something else than a result"):
            Attempt.unpack(body)
