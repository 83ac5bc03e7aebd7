"""What a model's code may do to its worker: what of it is put back, and what makes the worker unfit for the next one.

Some of it no library does, so it is the model's fault: it fails. Other things libraries do as well, once they are
imported (they start helpers): then another worker takes the next model, and that is all. What code patches in modules,
its own project's or the standard library's, stays, as in any process; answers are written past it (`intact`).
"""

from __future__ import annotations

import builtins
import gc
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from pytest_modelbudget.system.frames import is_installed_file

if sys.platform != "win32":
    import resource

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP") if hasattr(signal, name))
_WORKER_MODULES = ("builtins", "os", "sys", "io", "json", "re", "threading", "pickle", "importlib", "zlib", "struct")
"""Modules that the worker itself stands on."""

_SECONDS_FOR_COPIES = 2.0
_MOST_LEFT = 1 << 30
"""Bytes that a model may leave allocated in its worker beyond what was there before it."""


@dataclass(frozen=True, slots=True)
class ProcessState:
    """The process before a model's code runs in it."""

    builtin: Mapping[str, Any]
    modules: Mapping[str, ModuleType]
    streams: tuple[Any, Any, Any]
    finders: tuple[Any, ...]
    environment: Mapping[str, str]
    handlers: Mapping[int, Any]
    limits: tuple[tuple[int, int], ...]
    threads: frozenset[int]
    recursion: int
    memory: int
    path: tuple[str, ...]
    tracing: Any

    @classmethod
    def now(cls) -> ProcessState:
        """As they are."""
        return cls(
            dict(vars(builtins)),
            {name: sys.modules[name] for name in _WORKER_MODULES if name in sys.modules},
            (sys.stdin, sys.stdout, sys.stderr),
            tuple(sys.meta_path),
            dict(os.environ),
            {number: signal.getsignal(number) for number in _SIGNALS},
            _resource_limits(),
            frozenset(thread.ident or 0 for thread in threading.enumerate()),
            sys.getrecursionlimit(),
            _resident_bytes(),
            tuple(sys.path),
            sys.gettrace(),
        )

    def restore(self) -> Leftovers:
        """Put back what can be put back; returns what makes the process unfit for another model."""
        faults = [reason for check in _FAULTS for reason in check(self)]
        traces = [reason for check in _TRACES for reason in check(self)]
        sys.stdin, sys.stdout, sys.stderr = self.streams
        sys.meta_path[:0] = [finder for finder in self.finders if finder not in sys.meta_path]
        sys.setrecursionlimit(self.recursion)
        sys.settrace(self.tracing)
        sys.setprofile(None)
        gc.enable()
        for name in self.environment.keys() - os.environ.keys():
            os.environ[name] = self.environment[name]
        for number, handler in self.handlers.items():
            with suppress(OSError, ValueError, TypeError):
                signal.signal(number, handler)
        if hasattr(signal, "setitimer"):
            for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
                signal.setitimer(timer, 0)
        return Leftovers("; ".join(faults[:_MOST_FAULTS]), traces[0] if traces else "")


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What a model's code left: a `fault` that is its own, or a `trace` such as libraries leave; empty for none."""

    fault: str = ""
    trace: str = ""


_MOST_FAULTS = 3


def _patched_builtins(before: ProcessState) -> Iterator[str]:
    current = vars(builtins)
    changed = [name for name, value in before.builtin.items() if name != "_" and current.get(name) is not value]
    current.update(before.builtin)  # first of all: what follows, and whatever answers, stands on them
    yield from (f"builtins.{name} was replaced" for name in changed)


def _lost_modules(before: ProcessState) -> Iterator[str]:
    for name, module in before.modules.items():
        if sys.modules.get(name) is not module:
            sys.modules[name] = module
            yield f"the module {name} was replaced in sys.modules"


def _closed_streams(before: ProcessState) -> Iterator[str]:
    if any(getattr(stream, "closed", False) for stream in before.streams[1:]):
        yield "it closed its output"


def _lost_paths(before: ProcessState) -> Iterator[str]:
    if before.path and not set(before.path) & set(map(str, sys.path)):
        yield "sys.path was emptied"


def _user_threads(before: ProcessState) -> Iterator[str]:
    """Threads of the user's own that would keep a process from ending."""
    for thread in _new_threads(before):
        if not thread.daemon and not _of_library(getattr(thread, "_target", None) or thread.run):
            yield f"its thread {thread.name} goes on"


def _library_threads(before: ProcessState) -> Iterator[str]:
    yield from (f"the thread {re.sub('[0-9]+', 'N', thread.name)} goes on" for thread in _new_threads(before))


def _new_threads(before: ProcessState) -> Iterator[threading.Thread]:
    return (thread for thread in threading.enumerate() if (thread.ident or 0) not in before.threads)


def _of_library(value: Any) -> bool:
    """Whether a function is one of an installed package, or of Python itself."""
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    if module is None:
        return False
    file = getattr(module, "__file__", None)
    return file is None or is_installed_file(file)


def _running_children(before: ProcessState) -> Iterator[str]:
    if hasattr(os, "waitid"):
        with suppress(ChildProcessError, OSError):
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            yield "a process that it started goes on"


def _lower_limits(before: ProcessState) -> Iterator[str]:
    if any(
        _is_lower(limit, earlier_limit)
        for (limit, _), (earlier_limit, _) in zip(_resource_limits(), before.limits, strict=True)
    ):
        yield "the limits of its process were lowered (resource.setrlimit)"


def _left_memory(before: ProcessState) -> Iterator[str]:
    if _resident_bytes() - before.memory > _MOST_LEFT:
        yield "memory is still allocated"


_Check = Callable[[ProcessState], Iterator[str]]
_FAULTS: tuple[_Check, ...] = (
    _patched_builtins, _lost_modules, _lost_paths, _closed_streams, _user_threads, _lower_limits,
)  # fmt: skip
_TRACES: tuple[_Check, ...] = (_library_threads, _running_children, _left_memory)


class Forks:
    """Copies of the process that code makes with `os.fork` and lets come back from it, one of them with a model.

    A copy leaves its mark in a file, since it shares nothing else with the process it was made from.
    """

    def __init__(self, mark: str) -> None:
        self._mark = Path(mark)
        self._forked = 0
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_parent=self._count)

    def _count(self) -> None:
        self._forked += 1

    def begin(self) -> None:
        """From here on."""
        self._forked = 0
        self._mark.unlink(missing_ok=True)

    def came_back(self) -> NoReturn:
        """This is a copy, and it came back: say so, and be gone."""
        self._mark.touch()
        os._exit(0)

    def returned(self) -> bool:
        """Whether a copy came back; waits a moment for those that still run."""
        deadline = time.monotonic() + _SECONDS_FOR_COPIES
        while self._forked and not self._mark.exists() and time.monotonic() < deadline and _runs_child():
            time.sleep(0.02)
        return self._forked > 0 and self._mark.exists()


def _runs_child() -> bool:
    with suppress(ChildProcessError, OSError):
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    return False


def _is_lower(limit: int, other_limit: int) -> bool:
    """Whether a limit of a process is below another; -1 is none."""
    return limit >= 0 and (other_limit < 0 or limit < other_limit)


def _resource_limits() -> tuple[tuple[int, int], ...]:
    if sys.platform == "win32":
        return ()
    names = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))
    return tuple(resource.getrlimit(getattr(resource, name)) for name in names)


def _resident_bytes() -> int:
    """Bytes of this process in memory; 0 where that is not read cheaply."""
    with suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    return 0
