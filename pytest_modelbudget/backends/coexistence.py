"""Two frameworks in one process."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from pytest_modelbudget.backends import quiet_start
from pytest_modelbudget.backends.patching import UndoOnExit, patched


class _NoTritonAfterTensorFlow(MetaPathFinder):
    """Both bring an LLVM of their own: importing triton after TensorFlow aborts the process (triton first is fine).

    torch imports triton as an optional part, and nothing that is counted needs it.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find nothing, or refuse."""
        if fullname == "triton" and "tensorflow" in sys.modules:
            raise ModuleNotFoundError("triton cannot be imported after tensorflow", name="triton")
        return None


@contextmanager
def coexisting() -> Iterator[None]:
    """Inside, torch and TensorFlow can be used in either order, and come up quietly; the import system is as before
    on leaving."""
    finder = _NoTritonAfterTensorFlow()
    log = logging.getLogger("torch.utils.flop_counter")  # would warn that triton is not there
    with patched(log, "disabled", True), UndoOnExit(partial(sys.meta_path.remove, finder)):
        sys.meta_path.insert(0, finder)
        with quiet_start.imports():
            yield
