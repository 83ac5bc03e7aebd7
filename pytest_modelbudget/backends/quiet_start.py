"""TensorFlow's start-up log lines, kept from the terminal; everything else it says is passed on.

Its C++ libraries write to file descriptor 2 before any of its settings can silence them, so the descriptor itself
is filtered while the packages that bring them are imported. The filter is a process of its own: what was written
just before a crash still comes through.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NOISE = (
    r"(?:WARNING: All log messages before absl::Init"
    r"|[IW]\d{4} [\d:.]+ +\d+ \S+\.cc:\d+\] |E\d{4} [\d:.]+ +\d+ \S*cuda\S*\.cc:\d+\] "
    r"|\d{4}-\d\d-\d\d [\d:.]+: (?:[IW] \S+|E \S*cuda\S*)\.cc:\d+\] "
    r"|To enable the following instructions: )"
)
"""How a line of start-up log begins: hints, and that there is no GPU; none says anything of a model."""

_NOISY = ("tensorflow", "keras", "tf_keras")
_FILTER = """
import re, sys
noise = re.compile(sys.argv[1].encode())
for line in sys.stdin.buffer:
    if not noise.match(line):
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
"""
_SECONDS_TO_DRAIN = 5


def without_noise(text: str) -> str:
    """`text` without its lines of start-up log."""
    return re.sub(rf"^{NOISE}.*\n?", "", text, flags=re.MULTILINE)


@contextmanager
def imports() -> Iterator[None]:
    """Inside, importing TensorFlow (or Keras on it) writes no start-up log; afterwards imports are as before."""
    finder = _QuietFinder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.meta_path.remove(finder)


class _QuietFinder(MetaPathFinder):
    """Finds what the others find, and has it executed quietly."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find one of the noisy packages, else nothing."""
        if fullname not in _NOISY:
            return None
        finders = [
            finder for finder in sys.meta_path if not isinstance(finder, _QuietFinder) and hasattr(finder, "find_spec")
        ]
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in finders)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _QuietLoader(spec.loader)
        return spec


class _QuietLoader(Loader):
    """A module's own loader; it is back in its place when the module's code begins."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)  # for those who only look a package up

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the loader does."""
        module: ModuleType | None = self.loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """As the loader does, with descriptor 2 filtered."""
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        with _filtered():
            self.loader.exec_module(module)
            if module.__name__ == "tensorflow":
                with suppress(Exception):
                    module.config.list_physical_devices()  # its drivers are looked up, and missed, only now


@contextmanager
def _filtered() -> Iterator[None]:
    """Inside, descriptor 2 leads through the filter to where it led before."""
    try:
        stderr_copy = os.dup(2)
    except OSError:  # no standard error at all
        yield
        return
    try:
        filtering = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _FILTER, NOISE],
            stdin=subprocess.PIPE,
            stdout=stderr_copy,
            stderr=stderr_copy,
        )
    except OSError:  # no process to be had: noise is better than no import
        os.close(stderr_copy)
        yield
        return
    assert filtering.stdin is not None
    _flush()
    os.dup2(filtering.stdin.fileno(), 2)
    filtering.stdin.close()
    try:
        yield
    finally:
        _flush()
        os.dup2(stderr_copy, 2)
        os.close(stderr_copy)
        with suppress(subprocess.TimeoutExpired):  # a process that the import started may hold its end of the pipe
            filtering.wait(_SECONDS_TO_DRAIN)


def _flush() -> None:
    with suppress(Exception):
        sys.stderr.flush()
