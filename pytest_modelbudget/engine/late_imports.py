"""A framework that a builder imports itself: it is noticed at once, before the builder makes its model for real."""

from __future__ import annotations

import builtins
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import get_ident
from typing import Any

from pytest_modelbudget import backends
from pytest_modelbudget.backends.patching import all_patched


class FrameworkImported(BaseException):
    """A builder has brought a framework into use that was not before: it is to begin anew, now without real memory.

    Not an `Exception`: a builder that copes with a missing library must not take it for one.
    """


@contextmanager
def stopped_at_frameworks() -> Iterator[None]:
    """Inside, this thread is stopped after the import that brings another framework into use.

    It is stopped only when the outermost import is done: a package whose code is left halfway cannot be imported again.

    Raises:
        FrameworkImported: there was such an import, also where the body caught this (`except:`) and went on, or raised
            something else instead.
    """
    before, thread, depth, stopped = backends.in_use(), get_ident(), 0, False

    def watched(import_: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(import_)
        def watched_import(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth, stopped
            if get_ident() != thread:
                return import_(*args, **kwargs)
            depth += 1
            try:
                module = import_(*args, **kwargs)
            finally:
                depth -= 1
            if depth == 0 and backends.in_use() != before:
                stopped = True
                raise FrameworkImported
            return module

        return watched_import

    with all_patched(
        (owner, name, watched(getattr(owner, name)))
        for owner, name in ((builtins, "__import__"), (importlib, "import_module"))
    ):
        try:
            yield
        except Exception:
            if not stopped:
                raise
        if stopped:
            raise FrameworkImported
