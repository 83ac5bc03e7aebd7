"""The parts of Python that this project's own work stands on, as they were before anybody's code ran."""

from __future__ import annotations

import builtins
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_KEPT: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = tuple(
    (vars(module), dict(vars(module))) for module in (builtins, io, os, os.path, json)
)
"""Each namespace, and what was in it when this was imported."""

_PATH = tuple(sys.path)
_FRAMES = sys.getrecursionlimit()
_MISSING = object()


@contextmanager
def intact() -> Iterator[None]:
    """Inside, what a model's code replaced in these modules or took out of `sys.path` is there again.

    On leaving, its replacements are back, since they may be meant for the code that is run next. A limit of recursion
    that was lowered stays raised.
    """
    sys.setrecursionlimit(max(_FRAMES, sys.getrecursionlimit()))
    replaced = [
        (namespace, name, namespace.get(name, _MISSING), value)
        for namespace, before in _KEPT
        for name, value in before.items()
        if namespace.get(name, _MISSING) is not value
    ]
    path = sys.path[:]
    for namespace, name, _, value in replaced:
        namespace[name] = value
    sys.path += [folder for folder in _PATH if folder not in path]
    try:
        yield
    finally:
        sys.path[:] = path
        for namespace, name, now, _ in replaced:
            if now is _MISSING:
                namespace.pop(name, None)
            else:
                namespace[name] = now
