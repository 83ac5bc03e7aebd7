"""A framework that a builder imports itself: it is noticed at once, before the builder makes its model for real."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from threading import get_ident
from types import ModuleType
from typing import Any

from pytest_modelbudget import backends
from pytest_modelbudget.backends.patching import UndoOnExit


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
    finder = _Watch()
    sys.meta_path.insert(0, finder)
    with UndoOnExit(finder.leave):
        try:
            yield
        except Exception:
            if finder.stopped_by is None:
                raise
    if finder.stopped_by is not None:
        raise FrameworkImported


class _Watch(MetaPathFinder):
    """Finds what the others find, and looks at what is in use whenever an outermost module is complete.

    `builtins.__import__` stays as it is: code in C calls it where the stack is nearly full, and bears no frame more.
    """

    def __init__(self) -> None:
        self.before, self.thread = backends.in_use(), get_ident()
        self.is_inside = False
        self.stopped_by: ModuleType | None = None

    def leave(self) -> None:
        """Watch no longer; what was complete when the builder was stopped is imported."""
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
        if (module := self.stopped_by) is not None:  # importlib takes a module away whose loader raises
            sys.modules.setdefault(module.__name__, module)
            parent, _, name = module.__name__.rpartition(".")
            if parent in sys.modules:
                vars(sys.modules[parent]).setdefault(name, module)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the other finders find, with a loader that is watched; nothing inside of a module that is imported."""
        if self.is_inside or self.stopped_by is not None or get_ident() != self.thread:
            return None
        self.is_inside = True  # of the other finders, which may ask all that there are
        try:
            finders = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
            spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in finders)), None)
        finally:
            self.is_inside = False
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _WatchedLoader(spec.loader, self)
        return spec


class _WatchedLoader(Loader):
    """A module's own loader; it is back in its place when the module's code begins."""

    def __init__(self, loader: Any, watch: _Watch) -> None:
        self.loader, self.watch = loader, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)  # for those who only look a package up

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the loader does."""
        module: ModuleType | None = self.loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """As the loader does, and stop the builder where that has brought a framework."""
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        if self.watch.is_inside:  # whoever looked it up has it executed within another one
            self.loader.exec_module(module)
            return
        self.watch.is_inside = True
        try:
            self.loader.exec_module(module)
        finally:
            self.watch.is_inside = False
        if self.watch.stopped_by is None and backends.in_use() != self.watch.before:
            self.watch.stopped_by = sys.modules.get(module.__name__, module)
            raise FrameworkImported
