"""One model to count, as it travels to where that is done, and how it came out, as it travels back."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_modelbudget.engine.run import with_file_path
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.executors import shipping
from pytest_modelbudget.executors.workers import WORKERS
from pytest_modelbudget.isolation import Answer, Printed, Surroundings
from pytest_modelbudget.isolation.channel import pack_answer, split_head, unpack_answer, with_head


@dataclass(frozen=True, slots=True)
class Task:
    """A model of a run, the root that its files are below, and the surroundings of its code.

    With `shipped` the project was sent there: its root, and the folders of `surroundings`, are paths below the folder
    that it was unpacked to.
    """

    run: str
    entry: ModelEntry
    root: str
    surroundings: Surroundings
    shipped: bool = False

    @classmethod
    def here(cls, run: str, root: Path, entry: ModelEntry) -> Task:
        """A task for a process that sees the files of this one, in the surroundings of this one."""
        return cls(run, entry, str(root), Surroundings.current())


@dataclass(frozen=True, slots=True)
class Attempt:
    """The answer of an isolated worker, what the model's code printed, and the seconds that it took."""

    answer: Answer
    printed: tuple[Printed, ...] = ()
    seconds: float = 0.0

    def pack(self) -> bytes:
        """As bytes, which `unpack` reads without running anything."""
        printed = [(item.stdout, item.stderr, item.debug) for item in self.printed]
        return with_head([self.seconds, printed], pack_answer(self.answer))

    @classmethod
    def unpack(cls, body: bytes) -> Attempt:
        """Read back what `pack` gave.

        Raises:
            ModelBudgetError: it is something else.
        """
        try:
            (seconds, printed), rest = split_head(body)
            return cls(unpack_answer(rest), tuple(Printed(*map(str, texts)) for texts in printed), float(seconds))
        except (ValueError, TypeError) as error:
            raise ModelBudgetError(f"the worker answered with something else than a result ({error})") from None


def count_task(task: Task) -> bytes:
    """Build and count a model in an isolated worker of this process; returns a packed `Attempt`.

    Raises:
        Abandoned: the run was ended meanwhile.
        ModelBudgetError: the project of the run is not here.
    """
    start = time.perf_counter()
    if task.shipped:
        task = _located(task, shipping.unpacked_folder(task.run))
    printed: list[Printed] = []
    with WORKERS.taken(task.run) as isolation:
        entry = with_file_path(task.entry, Path(task.root))
        answer = isolation.attempt(entry, pass_on=printed.append, surroundings=task.surroundings)
    return Attempt(answer, tuple(printed), time.perf_counter() - start).pack()


def _located(task: Task, folder: Path) -> Task:
    """The task with its paths below `folder`; this process's own path and variables stand behind those of the run."""
    here, there = Surroundings.current(), task.surroundings
    path = (*(str(folder / part) for part in there.path), *here.path)
    surroundings = Surroundings(path, str(folder / there.folder), {**here.environment, **there.environment})
    return replace(task, root=str(folder / task.root), surroundings=surroundings)
