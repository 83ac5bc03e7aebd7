"""Imports from deep inside a recursion."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from importlib import import_module

_FRAMES_FOR_IMPORT = 600
"""Calls within each other that the import of a framework is sure to find room for."""


def import_early(module: str) -> None:
    """Import `module`, before somebody else does, when that could run out of frames halfway.

    What was imported halfway cannot be imported again in this process. A thread of its own has all frames. An import
    that fails otherwise fails again for whoever needs it.
    """
    if module in sys.modules or not _is_deeper_than(sys.getrecursionlimit() - _FRAMES_FOR_IMPORT):
        return
    importing = threading.Thread(target=_import_quietly, args=(module,), daemon=True)
    importing.start()
    importing.join()


def _import_quietly(module: str) -> None:
    with suppress(Exception):
        import_module(module)


def _is_deeper_than(frames: int) -> bool:
    """Whether the caller is more than `frames` deep."""
    try:
        return frames <= 0 or sys._getframe(frames) is not None
    except ValueError:
        return False
