"""Models are built and counted in a process of their own, so that what a builder does to its process costs it alone.

One worker serves one model after the other, as long as it stays as it was; whoever asked for a model gets its result,
or one that says how the worker ended. `Isolation` is the face; `process` starts and watches a worker, `worker` is what
runs in it, `process_state` what is put back or found spoiled there after each model, `output` what was printed and
warned of, `ending` puts an end into words.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from pytest_modelbudget.engine.run import NotCounted, entries_from, failure_result, summarize_entry
from pytest_modelbudget.entry import ModelEntry, names_file, resources
from pytest_modelbudget.entry.resources import DEFAULT_SECONDS, ResourceLimits
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.isolation import ending
from pytest_modelbudget.isolation.channel import Answer, EntrySource, Job, Surroundings, UserModule, without_builder
from pytest_modelbudget.isolation.output import Printed, print_here, repeat_warnings
from pytest_modelbudget.isolation.process import Worker, WorkerEnded
from pytest_modelbudget.results import codec
from pytest_modelbudget.summary import Summary

VARIABLE = "MODELBUDGET_ISOLATE"
"""Set to 0, it has all models built in the process that asks for them."""

_TOLERATED_AFTER = 3


def isolation_enabled() -> bool:
    """Whether models are to be isolated: not when the user said so, nor under a debugger, which follows no process."""
    if os.environ.get(VARIABLE, "").lower() in ("0", "false", "off", "no"):
        return False
    return not ("pydevd" in sys.modules or "debugpy" in sys.modules)


class YieldedBuilder(str):
    """Stands for the builder of an entry that a source yielded in the worker: the name of the source."""

    source: EntrySource

    @classmethod
    def by(cls, source: EntrySource) -> YieldedBuilder:
        """The stand-in for the builders of a source."""
        build = cls(source.reference)
        build.source = source
        return build


class NoAnswer(Exception):
    """A function that a worker was to call gave no answer; the message says why, in short."""


class Abandoned(Exception):
    """Nothing more is asked of workers: the run is over."""


class Isolation:
    """Workers for the models of one run, one at a time: a new one comes when the last ended, or was spoiled.

    `conftests` gives the files that were imported before a model was asked for, so that the worker does that too.
    `waiting` is entered while this process does nothing but wait for a worker, with what that does.
    """

    def __init__(
        self,
        conftests: Callable[[], tuple[UserModule, ...]] = tuple,
        waiting: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
    ) -> None:
        self._conftests, self._waiting = conftests, waiting
        self._worker: Worker | None = None
        self._abandoned = False
        self._traces: dict[str, int] = {}
        self._types_of: object = None  # whose imports changed the default types of the worker
        self._yielded: dict[str, dict[str, ModelEntry]] = {}

    def start(self, first: ModelEntry | None = None) -> None:
        """Have a worker come up, and import the module of the `first` model's builder, while something else is done.

        When that model is never asked for, or does not let the worker live, the others come to no harm.
        """
        if self._worker is not None and self._worker.alive:
            return
        self._drop()
        self._worker = Worker()
        if module := _module_of_builder(first):
            job = Job("import", argument=module, conftests=self._conftests(), surroundings=Surroundings.current())
            self._worker.import_ahead(job)

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.end()
            self._worker = None

    def abandon(self) -> None:
        """End the worker whatever it does, for another thread: the one that waits for it gets `Abandoned`."""
        self._abandoned = True
        if (worker := self._worker) is not None:
            worker.interrupt()

    def count(self, entry: ModelEntry, module: UserModule | None = None) -> Summary:
        """Build and count a model in the worker; `module` is where it is found when only its module has its builder.

        Raises:
            NotCounted: it gave no summary; what it carries says why, also that the worker ended or a limit was hit.
            KeyboardInterrupt: its builder raised it.
        """
        if entry.isolate is False:
            return summarize_entry(self._here(entry))
        return self.summary(entry, self.attempt(entry, module))

    def attempt(
        self,
        entry: ModelEntry,
        module: UserModule | None = None,
        pass_on: Callable[[Printed], None] = print_here,
        surroundings: Surroundings | None = None,
    ) -> Answer:
        """How a model came out in the worker, as data, which `summary` reads, here or in another process.

        `pass_on` takes what its code printed; `surroundings` are those of this process where none are given.

        Raises:
            Abandoned: the run is over.
        """
        limits = resources.parse(entry.limits)
        return self._answer(_count_job(entry, module), limits, pass_on, surroundings, once_more=True)

    def summary(self, entry: ModelEntry, answer: Answer) -> Summary:
        """The model's summary by the answer of a worker, which also warned of something.

        Raises: see `count`.
        """
        repeat_warnings(answer.warnings)
        match answer.kind:
            case "result":
                result = codec.unpack(answer.data)
                if result.summary is None:
                    raise NotCounted(result)
                return result.summary
            case "interrupted":
                raise KeyboardInterrupt
            case "ended":
                raise NotCounted(failure_result(entry, ModelBudgetError(answer.text)))
            case "here":  # it wants a debugger, or is not found outside of this process
                return summarize_entry(self._here(entry))
            case _:
                raise ModelBudgetError(f"the worker answered with {answer.kind!r} instead of a result")

    def entries(self, reference: str, holder: ModelEntry) -> tuple[ModelEntry, ...]:
        """What a source yields, with stand-ins for the builders; see `run.entries_from`.

        Raises:
            KeyboardInterrupt: the source raised it.
        """
        if holder.isolate is False:
            return entries_from(reference, holder)
        source = EntrySource(reference, holder)
        answer = self._ask(Job("entries", source=source), resources.parse(holder.limits))
        match answer.kind:
            case "entries":
                builder = YieldedBuilder.by(source)
                return tuple(replace(entry, build=builder) for entry in answer.entries())
            case "interrupted":
                raise KeyboardInterrupt
            case "ended":
                raise ModelBudgetError(f"{holder.place}: the source {reference}: {answer.text}")
            case "failed":
                raise answer.error()
            case _:
                return entries_from(reference, holder)

    def _here(self, entry: ModelEntry) -> ModelEntry:
        """`entry` with what its builder is in this process, where it stands for one that a source yielded."""
        if not isinstance(entry.build, YieldedBuilder):
            return entry
        source = entry.build.source
        if source.reference not in self._yielded:
            self._yielded[source.reference] = {
                original.id: original for original in entries_from(source.reference, source.holder)
            }
        original = self._yielded[source.reference].get(entry.id)
        if original is None:
            raise ModelBudgetError(f"{source.holder.place}: {source.reference} yields {entry.id} only sometimes")
        return replace(entry, build=original.build, args=original.args, kwargs=original.kwargs, inputs=original.inputs)

    def call(self, function: str, argument: Any, *, seconds: float) -> Any:
        """What `module:function` returns in the worker for an argument; both are data.

        Raises:
            NoAnswer: it took longer, or the worker ended.
            KeyboardInterrupt: something in it raised that.
        """
        job = Job("call", function=function, argument=json.dumps(argument))
        answer = self._ask(job, ResourceLimits(seconds=seconds))
        if answer.kind == "interrupted":
            raise KeyboardInterrupt
        if answer.kind != "data":
            raise NoAnswer(answer.short or answer.text or "stops at a breakpoint")
        return json.loads(answer.data)

    def _ask(self, job: Job, limits: ResourceLimits) -> Answer:
        """The worker's answer to a job that is asked once, with what was printed and warned of."""
        answer = self._answer(job, limits, print_here, None, once_more=False)
        repeat_warnings(answer.warnings)
        return answer

    def _answer(
        self,
        job: Job,
        limits: ResourceLimits,
        pass_on: Callable[[Printed], None],
        surroundings: Surroundings | None,
        *,
        once_more: bool,
    ) -> Answer:
        """The worker's answer; a worker that ended may have been another model's doing, so a used one has a second."""
        origin = _origin(job)
        if self._types_of not in (None, origin):
            self._drop()
        self.start()
        assert self._worker is not None
        worker, used = self._worker, self._worker.used
        job = replace(job, conftests=self._conftests(), surroundings=surroundings or Surroundings.current())
        try:
            self._check_wanted()
            with self._waiting(_work(job)):
                seconds, memory = limits.get("seconds", DEFAULT_SECONDS), limits.get("memory")
                answer = worker.ask(job, pass_on, seconds=seconds, memory=memory)
        except WorkerEnded as end:
            self._drop()
            self._check_wanted()
            other_module = worker.imported_ahead not in ("", _module_of_builder(job.entry))
            ahead = worker.imported_ahead and not used and (other_module or end.limit is None)
            if ahead or (once_more and used and end.limit is None):
                return self._answer(job, limits, pass_on, surroundings, once_more=False)
            before = "the model was counted" if job.entry else "it answered"
            text = ending.describe_end(end, before, job.surroundings.folder)
            return Answer("ended", text, short=ending.short_text(end))
        except BaseException:  # an interrupt from the keyboard: the worker is in the middle of a model
            self._drop()
            raise
        if answer.types and self._types_of is None:
            self._types_of = origin
        if answer.spoiled or (answer.trace and self._matters(answer.trace)):
            self._drop()
        return answer

    def _check_wanted(self) -> None:
        if self._abandoned:
            raise Abandoned

    def _matters(self, trace: str) -> bool:
        """Whether a worker is given up for a trace: not for one that libraries leave in each process."""
        self._traces[trace] = self._traces.get(trace, 0) + 1
        return self._traces[trace] <= _TOLERATED_AFTER

    def _drop(self) -> None:
        self._types_of = None
        if self._worker is not None:
            self._worker.kill()
            self._worker = None


def _work(job: Job) -> str:
    """What a worker does, in words."""
    if job.entry is not None:
        return f"{job.entry.id}: building and counting"
    return f"{job.function or (job.source.reference if job.source else '')}: running"


def _module_of_builder(entry: ModelEntry | None) -> str:
    """The module that `module:callable` names; empty for another kind of builder, and where no worker builds it."""
    if entry is None or entry.isolate is False or not isinstance(entry.build, str) or names_file(entry.build):
        return ""
    return entry.build.partition(":")[0]


def _origin(job: Job) -> object:
    """Whose imports a job brings into its worker: the module of a builder, a test module, or that of a source."""
    return _module_of_builder(job.entry) or job.module or (job.source.reference if job.source else "")


def _count_job(entry: ModelEntry, module: UserModule | None) -> Job:
    """What the worker is told."""
    if module is not None:
        return Job("count", entry=without_builder(entry), module=module)
    if isinstance(entry.build, YieldedBuilder):
        return Job("count", entry=without_builder(entry), source=entry.build.source)
    return Job("count", entry=entry)


__all__ = [
    "Abandoned",
    "Answer",
    "Isolation",
    "NoAnswer",
    "Printed",
    "Surroundings",
    "UserModule",
    "YieldedBuilder",
    "isolation_enabled",
    "print_here",
]
