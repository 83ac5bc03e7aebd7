"""The process that builds and counts; `process` starts it, with a file for what it prints.

It does one job after the other until no more come, and answers each. What the user's code prints cannot get into the
answers: standard output is another file by the time it runs.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import io
import json
import os
import pdb
import pickle
import queue
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from pytest_modelbudget.backends import quiet_start
from pytest_modelbudget.backends.patching import all_patched
from pytest_modelbudget.engine.run import NotCounted, attempt, entries_from, failure_result, summarize_entry
from pytest_modelbudget.engine.tracebacks import user_traceback
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import FrameworkMissing, ModelBudgetError
from pytest_modelbudget.isolation.channel import (
    DEBUG,
    Answer,
    EntrySource,
    Job,
    UserModule,
    read_job,
    without_builder,
    write_answer,
)
from pytest_modelbudget.isolation.default_types import changed_types, default_types
from pytest_modelbudget.isolation.measuring import measuring_coverage
from pytest_modelbudget.isolation.process_state import Forks, ProcessState
from pytest_modelbudget.results import Result, State, codec
from pytest_modelbudget.system import debug
from pytest_modelbudget.system.intact import originals_restored

_MOST_WARNINGS = 200
_IMPORTING_MODULE = "pytest_modelbudget.plugin.importing"
"""What imports test modules; only a run of pytest asks for that."""


_IMPORTED = Answer("imported")
"""How an import ahead came out that nobody waits for."""

_IMPORTED_CONFTESTS: set[UserModule] = set()


class _WantsDebugger(KeyboardInterrupt):
    """The code stopped at a breakpoint, and here is nobody to talk to."""


class _Unreachable(Exception):
    """What a job is about is not found in this process."""


class _Jobs:
    """The jobs as they come, read by a thread, so that the end of whoever gives them ends this process too."""

    def __init__(self, stream: BinaryIO) -> None:
        self._queue: queue.SimpleQueue[tuple[int, Job] | None] = queue.SimpleQueue()
        self._stream = stream
        self._busy = False
        threading.Thread(target=self._read, name="modelbudget-jobs", daemon=True).start()

    def __iter__(self) -> Iterator[tuple[int, Job]]:
        while (job := self._queue.get()) is not None:
            self._busy = True
            yield job

    def done(self) -> None:
        """The job is done, but for its answer: whoever has that may end the jobs at once."""
        self._busy = False

    def _read(self) -> None:
        job: tuple[int, Job] | None
        while True:
            try:
                job = read_job(self._stream)
            except Exception:  # cut off in the middle, with whoever sent it
                job = None
            if job is None and self._busy:
                os._exit(1)
            self._queue.put(job)
            if job is None:
                return


class _Sources:
    """What sources yielded, so that each is called once for all of its models."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[ModelEntry, ...]] = {}
        self._by_id: dict[str, dict[str, ModelEntry]] = {}

    def entries(self, source: EntrySource) -> tuple[ModelEntry, ...]:
        """Its entries, as they came."""
        if source.reference not in self._entries:
            self._entries[source.reference] = entries_from(source.reference, source.holder)
        return self._entries[source.reference]

    def entry(self, source: EntrySource, name: str) -> ModelEntry | None:
        """Its first entry of that id."""
        if source.reference not in self._by_id:
            self._by_id[source.reference] = {entry.id: entry for entry in reversed(self.entries(source))}
        return self._by_id[source.reference].get(name)


def main(stdout: str) -> None:
    """Take over the standard streams, and do the jobs that come."""
    stream, answers = _channel(stdout)
    faulthandler.enable()
    if hasattr(signal, "SIGUSR2"):
        faulthandler.register(signal.SIGUSR2, all_threads=True)
    write_answer(answers, 0, Answer("ready"))
    lines = open(Path(stdout).with_suffix(DEBUG), "a", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115  # as long as the process
    no_debuggers = all_patched([(sys, "breakpointhook", _no_debugger), (pdb, "set_trace", _no_debugger)])
    with no_debuggers, measuring_coverage(), quiet_start.imports(), debug.lines_to(lines):
        _serve(_Jobs(stream), answers, Forks(f"{stdout}.forked"))
    _leave()


def _serve(jobs: _Jobs, answers: BinaryIO, forks: Forks) -> None:
    """Do the jobs that come, and answer each; what was warned of in an import ahead goes with the next answer."""
    pid, sources, ahead = os.getpid(), _Sources(), _IMPORTED
    for number, job in jobs:
        forks.begin()
        answer = _do_job(job, sources)
        if os.getpid() != pid:
            forks.came_back()
        returned = forks.returned()
        if job.kind == "import":
            if returned or answer.spoiled or answer.kind != _IMPORTED.kind:
                os._exit(0)  # the models get another worker, and the one whose module it is gets the blame
            ahead = answer
            jobs.done()
            continue
        if returned:
            answer = _blame(job, "it forked it, and the copy came back from its code as well", None)
        answer = replace(answer, trace=answer.trace or ahead.trace, warnings=ahead.warnings + answer.warnings)
        ahead = _IMPORTED
        jobs.done()
        with originals_restored():
            write_answer(answers, number, answer)


def _leave() -> NoReturn:
    """End with all exit functions, as Python does, but without taking modules apart: a second for frameworks."""
    try:
        atexit._run_exitfuncs()
        _flush_files()
    finally:
        os._exit(0)


def _flush_files() -> None:
    """Write out what open files hold back, as Python does when it takes their modules apart."""
    for item in gc.get_objects():
        if issubclass(type(item), (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)):  # asks no object
            with suppress(Exception):
                item.flush()


def _channel(stdout: str) -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output as they were; in their place nothing to read, and the file for what is printed."""
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing, printed = os.open(os.devnull, os.O_RDONLY), os.open(stdout, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(nothing, 0)
    os.dup2(printed, 1)
    os.close(nothing)
    os.close(printed)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    return jobs, answers


def _no_debugger(*args: Any, **options: Any) -> NoReturn:
    raise _WantsDebugger


def _do_job(job: Job, sources: _Sources) -> Answer:
    sys.path[:] = job.surroundings.path
    os.environ.update(job.surroundings.environment)
    with suppress(OSError):
        os.chdir(job.surroundings.folder)
    with _recorded_warnings() as recorded:
        state, crash = ProcessState.now(), None
        try:
            answer = _run_job(job, sources)
        except (_Unreachable, _WantsDebugger):
            answer = Answer("here")
        except KeyboardInterrupt:
            answer = Answer("interrupted")
        except BaseException as error:  # what the user's code did has made this project's own fail
            crash = error
        leftovers = state.restore()
    if crash is not None or (leftovers.fault and answer.kind in ("result", "entries")):
        answer = _blame(job, leftovers.fault or "it failed outside of its own code", crash)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    return replace(
        answer,
        spoiled=leftovers.fault,
        trace=leftovers.trace,
        warnings=tuple(_warning_rows(recorded)),
        types=changed_types(_types_at_start()),
    )


def _blame(job: Job, fault: str, crash: BaseException | None) -> Answer:
    """The failure of a model, or source, whose code did something to its process."""
    error = ModelBudgetError(f"its code left its process unfit for other models: {fault}")
    error.__cause__ = crash
    if job.entry is None:
        return Answer("failed", f"{error}" if crash is None else f"{error}\n{user_traceback(crash)}")
    return Answer("result", data=_pack(failure_result(job.entry, error)), spoiled=fault)


def _run_job(job: Job, sources: _Sources) -> Answer:
    for conftest in job.conftests:
        if conftest not in _IMPORTED_CONFTESTS:
            _IMPORTED_CONFTESTS.add(conftest)
            with suppress(Exception):  # pytest imported it; what is not here is missed by the model that needs it
                _importing_module().load(conftest)
    _types_at_start()
    if job.kind == "import":
        import_module(job.argument)
        return _IMPORTED
    if job.kind == "entries":
        return _entries_answer(job, sources)
    if job.kind == "call":
        module, _, function = job.function.partition(":")
        returned = getattr(import_module(module), function)(json.loads(job.argument))
        return Answer("data", data=json.dumps(returned).encode())
    assert job.entry is not None
    try:
        entry = _with_builder(job, sources)
    except Exception as error:
        if job.module is not None:  # pytest imported it; whatever is missing here is there
            raise _Unreachable from error
        return Answer("result", data=_pack(failure_result(job.entry, error)))
    try:
        summary = attempt(entry, summarize_entry)
    except NotCounted as end:
        return Answer("result", data=_pack(end.result))
    return Answer("result", data=_pack(Result(id=entry.id, state=State.OK, summary=summary)))


@cache
def _types_at_start() -> tuple[str, ...]:
    """The default types when the first job came; what conftest files set is there for every model."""
    return default_types()


def _pack(result: Result) -> bytes:
    """A result as it travels, whatever the model's code made of what that takes."""
    with originals_restored():
        return codec.pack(result)


def _with_builder(job: Job, sources: _Sources) -> ModelEntry:
    """The job's entry with its builder and what it is called with."""
    assert job.entry is not None
    if job.source is not None:
        original = sources.entry(job.source, job.entry.id)
        if original is None:
            raise ModelBudgetError(f"the source {job.source.reference} yields {job.entry.id} only sometimes")
    elif job.module is not None:
        original = _importing_module().entry_in(job.module, job.entry.id)
        if original is None:
            raise _Unreachable
    else:
        return job.entry
    return replace(job.entry, build=original.build, args=original.args, kwargs=original.kwargs, inputs=original.inputs)


def _entries_answer(job: Job, sources: _Sources) -> Answer:
    assert job.source is not None
    try:
        entries = sources.entries(job.source)
        return Answer("entries", data=pickle.dumps(tuple(map(without_builder, entries))))
    except FrameworkMissing as missing:
        return Answer("failed", str(missing), missing=missing.framework)
    except ModelBudgetError as mistake:
        return Answer("failed", str(mistake))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise _Unreachable from error
    except (Exception, SystemExit) as error:
        return Answer("failed", f"the source {job.source.reference} failed:\n{user_traceback(error)}")


def _importing_module() -> Any:
    return import_module(_IMPORTING_MODULE)


@contextmanager
def _recorded_warnings() -> Iterator[Sequence[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("default")
        yield recorded


def _warning_rows(recorded: Sequence[warnings.WarningMessage]) -> Iterator[tuple[str, str, str, int]]:
    for warning in recorded[:_MOST_WARNINGS]:
        with suppress(Exception):
            yield warning.category.__name__, str(warning.message), warning.filename, warning.lineno


if __name__ == "__main__":
    main(sys.argv[1])
