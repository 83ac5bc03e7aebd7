"""What this project's own work stands on is there again, whatever the code of a model replaced."""

from __future__ import annotations

import builtins
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType

import pytest

from pytest_modelbudget.system.intact import any_digits, originals_restored


@pytest.fixture(autouse=True)
def _undone() -> Iterator[None]:
    """Nothing of a test stays."""
    path, limit = sys.path[:], sys.getrecursionlimit()
    yield
    sys.path[:] = path
    sys.setrecursionlimit(limit)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (builtins, "open"),
        (builtins, "sorted"),
        (io, "StringIO"),
        (json, "dumps"),
        (os, "replace"),
        (os.path, "realpath"),
    ],
)
@pytest.mark.parametrize("gone", [False, True], ids=["replaced", "deleted"])
def test_what_was_replaced_is_there_inside_and_replaced_after(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, gone: bool
) -> None:
    """The user may have meant it for the next test."""
    true = getattr(module, name)
    monkeypatch.setattr(module, name, None)
    if gone:
        monkeypatch.delattr(module, name)
    with suppress(KeyError), originals_restored():
        assert getattr(module, name) is true
        raise KeyError
    assert getattr(module, name, None) is None


def test_what_was_added_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a translation's `_` among the builtins."""
    monkeypatch.setattr(builtins, "added_by_a_test", 1, raising=False)
    with originals_restored():
        assert vars(builtins)["added_by_a_test"] == 1
    assert vars(builtins)["added_by_a_test"] == 1


def test_an_empty_path_is_full_inside() -> None:
    """Modules can be imported; after it the path is as the user left it."""
    before = sys.path[:]
    sys.path[:] = ["mine"]
    with originals_restored():
        assert sys.path[0] == "mine"
        assert set(before) >= set(sys.path[1:])
        assert os.path.dirname(os.__file__) in sys.path
    assert sys.path == ["mine"]


def test_a_lowered_limit_of_recursion_is_raised_for_good() -> None:
    """Nobody can go on with few frames, and a limit that was raised stays raised."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit // 2)
    with originals_restored():
        pass
    assert sys.getrecursionlimit() == limit
    sys.setrecursionlimit(2 * limit)
    with originals_restored():
        pass
    assert sys.getrecursionlimit() == 2 * limit


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_lowered_limit_of_open_files_is_raised_for_good() -> None:
    """As far as the process may."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    with originals_restored():
        pass
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)


@pytest.mark.skipif(not hasattr(sys, "set_int_max_str_digits"), reason="this Python has no limit")
def test_numbers_of_any_size_become_text() -> None:
    """Inside alone: the limit is the user's."""
    before = sys.get_int_max_str_digits()
    for context in (any_digits(), originals_restored()):
        with context:
            assert len(str(10**5000)) == 5001
        assert sys.get_int_max_str_digits() == before
    with pytest.raises(ValueError, match="4300"):
        str(10**5000)
