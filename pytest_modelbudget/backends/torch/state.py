"""The global state of a process that building or running a model may move, put back on leaving."""

from __future__ import annotations

import gc
import random
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from pytest_modelbudget.backends import patching
from pytest_modelbudget.backends.torch.settings import OF_AUTOGRAD, OF_PROCESS, OF_THREAD, force, values

_ROOM = 400
"""Frames beyond the limit of recursion in which state is put back; what failed may have used up all others."""


def preserved() -> AbstractContextManager[None]:
    """On leaving, in whatever way, the process is as before, as far as torch and what it stands on can be set.

    These are the `settings` of this thread and those that all threads share (modes, hooks, defaults, random states,
    flags), what this project patched, and the limit of recursion. While several threads are inside, what they share is
    put back by the last one to leave, to what it was when the first one came. Not undone: names that a model's own code
    patches, variables of the environment, process groups.
    """
    return _Preserved()


class _Preserved:
    """The way out needs no more frames than the way in; whoever comes in near the limit of recursion gets out again."""

    __slots__ = ("_autograd", "_changes", "_limit", "_of_process", "_of_thread")

    def __enter__(self) -> None:
        self._limit = sys.getrecursionlimit()
        self._changes = patching.mark()
        self._of_thread, of_autograd = values(OF_THREAD), values(OF_AUTOGRAD)
        with _LOCK:
            self._of_process = _of_others() or values(OF_PROCESS)
            self._autograd = torch._C._InferenceMode(torch.is_inference_mode_enabled())
            try:
                self._autograd.__enter__()  # it knows the dispatch keys that are on, too
                force(OF_AUTOGRAD, of_autograd)
                me = threading.get_ident()
                _INSIDE[me] = [*_INSIDE.get(me, ()), self]
            except BaseException:
                self._autograd.__exit__(None, None, None)
                raise

    def __exit__(self, *_: object) -> None:
        sys.setrecursionlimit(max(self._limit, sys.getrecursionlimit()) + _ROOM)
        try:
            self._put_back()
        except KeyboardInterrupt:  # pressed right here
            self._put_back()
            raise
        finally:
            sys.setrecursionlimit(self._limit)

    def _put_back(self) -> None:
        with _LOCK:
            self._autograd.__exit__(None, None, None)
            force(OF_THREAD, self._of_thread)
            patching.undo_since(self._changes)
            me = threading.get_ident()
            if _INSIDE.keys() <= {me}:
                force(OF_PROCESS, self._of_process)
            _INSIDE[me] = [other for other in _INSIDE.get(me, ()) if other is not self]
            if not _INSIDE[me]:
                del _INSIDE[me]


_LOCK = threading.RLock()
_INSIDE: dict[int, list[_Preserved]] = {}
"""What each thread is inside of, the outermost first."""


def _of_others() -> list[Any] | None:
    """For the first in its thread: what another thread found, which may have changed it meanwhile."""
    if threading.get_ident() in _INSIDE:
        return None
    return next((inside[0]._of_process for inside in _INSIDE.values()), None)


def unswept() -> AbstractContextManager[None]:
    """Inside, cyclic garbage waits: models are many small objects that stay, and looking through them takes long."""
    return _UNSWEPT.inside()


def _unsweep() -> Callable[[], object]:
    if not gc.isenabled():
        return lambda: None
    gc.disable()
    return gc.enable


_UNSWEPT = patching.Shared(_unsweep)


def seed() -> None:
    """Fix the random states of torch, Python and numpy; call it inside `preserved`."""
    random.seed(0)
    torch.default_generator.manual_seed(0)  # `torch.manual_seed` looks for GPUs, too, which takes a while
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(0)
