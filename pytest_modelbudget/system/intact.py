"""The parts of Python that this project's own work stands on, as they were before anybody's code ran."""

from __future__ import annotations

import builtins
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from operator import is_
from typing import Any

_ORIGINALS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = tuple(
    (vars(module), dict(vars(module))) for module in (builtins, io, os, os.path, json)
)
"""Each namespace, and what was in it when this was imported."""

_all, _map = all, map
"""As they were: whether something was replaced is asked several times for each model, so in C, and of these two too."""

_inside: list[None] = []
"""As long as nothing is replaced because a context of `originals_restored` is open."""

_PATH = tuple(sys.path)
_RECURSION_LIMIT = sys.getrecursionlimit()
_MISSING = object()

if sys.platform == "win32":

    def _restore_file_limit() -> None:
        """There is no limit that could be lowered."""
else:
    import resource

    _FILE_LIMIT = resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def _restore_file_limit() -> None:
        """As many files may be open as before, where that can be."""
        now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        if now < _FILE_LIMIT:
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (min(_FILE_LIMIT, most), most))


@contextmanager
def any_digits() -> Iterator[None]:
    """Inside, ints of any number of digits become text and back; Python stops at 4,300."""
    if not hasattr(sys, "set_int_max_str_digits"):  # before 3.10.7 it did not
        yield
        return
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(limit)


@contextmanager
def originals_restored() -> Iterator[None]:
    """Inside, what a model's code replaced in these modules or took out of `sys.path` is there again; see `any_digits`.

    On leaving, its replacements are back, since they may be meant for the code that is run next. Limits of recursion
    and of open files that were lowered stay raised. Inside of another one it does nothing.
    """
    if _inside:
        yield
        return
    _restore_file_limit()
    sys.setrecursionlimit(max(_RECURSION_LIMIT, sys.getrecursionlimit()))
    replaced = [
        (namespace, name, namespace.get(name, _MISSING), value)
        for namespace, originals in _ORIGINALS
        if not _all(_map(is_, _map(namespace.get, originals), originals.values()))
        for name, value in originals.items()
        if namespace.get(name, _MISSING) is not value
    ]
    path = sys.path[:]
    for namespace, name, _, value in replaced:
        namespace[name] = value
    sys.path += [folder for folder in _PATH if folder not in path]
    _inside.append(None)
    try:
        with any_digits():
            yield
    finally:
        _inside.pop()
        sys.path[:] = path
        for namespace, name, replacement, _ in replaced:
            if replacement is _MISSING:
                namespace.pop(name, None)
            else:
                namespace[name] = replacement
