"""The calls of modules in a thread, shown to whoever watches them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import nn

from pytest_modelbudget.backends.patching import ProcessChange, SharedChange, patch_all


class CallObserver(Protocol):
    """What is called in place of a module."""

    def call(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Call `module` through `original` and return what it gives."""
        ...


_OBSERVERS: dict[int, CallObserver] = {}
"""Who watches the calls of modules in each thread."""


class CallsObserved(ProcessChange):
    """Inside, calls of modules of this thread go through `observer`, where they are shown."""

    def __init__(self, observer: CallObserver) -> None:
        self._observer, self._before = observer, _OBSERVERS.get(threading.get_ident())

    def __enter__(self) -> None:
        super().__enter__()
        _set_observer(self._observer)

    def undo(self) -> None:
        """Let them go through who watched before."""
        _set_observer(self._before)


def _set_observer(observer: CallObserver | None) -> None:
    if observer is None:
        _OBSERVERS.pop(threading.get_ident(), None)
    else:
        _OBSERVERS[threading.get_ident()] = observer


def module_calls_patched() -> AbstractContextManager[None]:
    """Inside, calls of modules can be watched.

    To enter it around several passes saves time: python forgets what it knew of every class of modules each time.
    """
    return _MODULE_CALL_PATCH.inside()


def _patch_module_call() -> Callable[[], object]:
    original = nn.Module.__call__

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        observer = _OBSERVERS.get(threading.get_ident())
        return original(module, *args, **kwargs) if observer is None else observer.call(original, module, args, kwargs)

    return patch_all([(nn.Module, "__call__", call)])


_MODULE_CALL_PATCH = SharedChange(_patch_module_call)
