"""What is done around the code of modules while it runs for the first time, by a finder that finds what others find."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from pytest_modelbudget.backends.patching import UndoOnExit


class ImportHook(MetaPathFinder):
    """Runs the code of the modules that it is for inside of `around`; imports are as before when it is left."""

    def __init__(self) -> None:
        self._search = threading.local()

    def is_for(self, name: str) -> bool:
        """Whether a module that is about to be imported is one of its modules."""
        raise NotImplementedError

    def around(self, module: ModuleType) -> AbstractContextManager[None]:
        """A context in which the code of `module` runs; what it raises ends the import."""
        raise NotImplementedError

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside, it is the first that is asked for a module."""
        sys.meta_path.insert(0, self)
        with UndoOnExit(self.remove):
            yield

    def remove(self) -> None:
        """Be asked no longer."""
        with suppress(ValueError):
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the other finders find of its modules, but for hooks of its own kind: one of them is enough."""
        if getattr(self._search, "is_on", False) or not self.is_for(fullname):
            return None
        self._search.is_on = True  # another hook asks all finders, too
        try:
            finders = [finder for finder in sys.meta_path if type(finder) is not type(self)]
            specs = (finder.find_spec(fullname, path, target) for finder in finders if hasattr(finder, "find_spec"))
            spec = next(filter(None, specs), None)
        finally:
            self._search.is_on = False
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _HookedLoader(spec.loader, self)
        return spec


class _HookedLoader(Loader):
    """A module's own loader; it is back in its place when the module's code begins."""

    def __init__(self, loader: Any, hook: ImportHook) -> None:
        self.loader, self.hook = loader, hook

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)  # for those who only look a package up

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the loader does."""
        module: ModuleType | None = self.loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """As the loader does, inside of what the hook has around it."""
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        with self.hook.around(module):
            self.loader.exec_module(module)
