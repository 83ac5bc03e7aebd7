"""A framework that a builder imports itself: it is noticed at once, before the builder makes its model for real."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from types import ModuleType

from pytest_modelbudget import backends
from pytest_modelbudget.backends.import_hooks import ImportHook


class FrameworkImported(BaseException):
    """A builder has brought a framework into use that was not before: it is to begin anew, now without real memory.

    Not an `Exception`: a builder that copes with a missing library must not take it for one.
    """


@contextmanager
def stopped_at_frameworks() -> Iterator[None]:
    """Inside, this thread is stopped after the import that brings another framework into use.

    It is stopped only when the outermost module is complete, which stays imported: a package whose code is left halfway
    cannot be imported again.

    Raises:
        FrameworkImported: there was such an import, also where the body caught this (`except:`) and went on, or raised
            something else instead.
    """
    watch = _Watch()
    with watch.installed():
        try:
            yield
        except Exception:
            if watch.stopped_by is None:
                raise
    if watch.stopped_by is not None:
        raise FrameworkImported


class _Watch(ImportHook):
    """Looks at what is in use whenever an outermost module is complete.

    `builtins.__import__` stays as it is: code in C calls it where the stack is nearly full, and bears no frame more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.before, self.thread = backends.in_use(), get_ident()
        self.is_inside = False
        self.stopped_by: ModuleType | None = None

    def remove(self) -> None:
        """Watch no longer; what was complete when the builder was stopped is imported."""
        super().remove()
        if (module := self.stopped_by) is not None:  # importlib takes a module away whose loader raises
            sys.modules.setdefault(module.__name__, module)
            parent, _, name = module.__name__.rpartition(".")
            if parent in sys.modules:
                vars(sys.modules[parent]).setdefault(name, module)

    def is_for(self, name: str) -> bool:
        """Whether the builder's own thread imports it, inside of no other module."""
        return not self.is_inside and self.stopped_by is None and get_ident() == self.thread

    @contextmanager
    def around(self, module: ModuleType) -> Iterator[None]:
        """Stop the builder where the code of `module` has brought a framework."""
        if self.is_inside:  # whoever looked it up has it executed within another one
            yield
            return
        self.is_inside = True
        try:
            yield
        finally:
            self.is_inside = False
        if self.stopped_by is None and backends.in_use() != self.before:
            self.stopped_by = sys.modules.get(module.__name__, module)
            raise FrameworkImported
