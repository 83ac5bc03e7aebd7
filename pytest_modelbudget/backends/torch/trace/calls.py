"""The calls of modules in a thread, shown to whoever watches them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import nn

from pytest_modelbudget.backends.patching import Change, Shared, patch_all


class CallWatcher(Protocol):
    """What is called in place of a module."""

    def call(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Call `module` through `original` and return what it gives."""
        ...


_WATCHERS: dict[int, CallWatcher] = {}
"""Who watches the calls of modules in each thread."""


class CallsNoted(Change):
    """Inside, calls of modules of this thread go through `watcher`, where they are shown."""

    def __init__(self, watcher: CallWatcher) -> None:
        self._watcher, self._before = watcher, _WATCHERS.get(threading.get_ident())

    def __enter__(self) -> None:
        super().__enter__()
        _watch(self._watcher)

    def undo(self) -> None:
        """Let them go through who watched before."""
        _watch(self._before)


def _watch(watcher: CallWatcher | None) -> None:
    if watcher is None:
        _WATCHERS.pop(threading.get_ident(), None)
    else:
        _WATCHERS[threading.get_ident()] = watcher


def calls_shown() -> AbstractContextManager[None]:
    """Inside, calls of modules can be watched.

    To enter it around several passes saves time: python forgets what it knew of every class of modules each time.
    """
    return _CALLS_SHOWN.inside()


def _show_calls() -> Callable[[], object]:
    original = nn.Module.__call__

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        watcher = _WATCHERS.get(threading.get_ident())
        return original(module, *args, **kwargs) if watcher is None else watcher.call(original, module, args, kwargs)

    return patch_all([(nn.Module, "__call__", call)])


_CALLS_SHOWN = Shared(_show_calls)
