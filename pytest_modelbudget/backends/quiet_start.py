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
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import ModuleType

from pytest_modelbudget.backends.import_hooks import ImportHook

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


def imports() -> AbstractContextManager[None]:
    """Inside, importing TensorFlow (or Keras on it) writes no start-up log; afterwards imports are as before."""
    return _QuietImports().installed()


class _QuietImports(ImportHook):
    """Runs the code of the noisy packages with descriptor 2 filtered."""

    def is_for(self, name: str) -> bool:
        """Whether it is one of the noisy packages."""
        return name in _NOISY

    @contextmanager
    def around(self, module: ModuleType) -> Iterator[None]:
        """Filter what the package writes, and what TensorFlow writes once it looks for drivers."""
        with _filtered():
            yield
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
