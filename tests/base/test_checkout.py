"""Which state of a project a run is of."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from pytest_modelbudget.base import Checkout, checkout_of
from tests.gitrepo import repository


def test_a_checkout(tmp_path: Path) -> None:
    """The commit, the folder, and what tracked files of the whole repository have become; others do not count."""
    made = repository(tmp_path / "repo")
    (made.path / "nets").mkdir()
    assert checkout_of(made.path) == Checkout()
    commit = made.commit(**{"nets/zoo.py": "a", "gone.py": "b"})
    assert checkout_of(made.path) == Checkout(commit)
    (made.path / "new.py").write_text("not tracked")
    (made.path / "nets/zoo.py").write_text("changed")
    (made.path / "gone.py").unlink()
    changes = {"gone.py": "", "nets/zoo.py": sha256(b"changed").hexdigest()}
    assert checkout_of(made.path / "nets") == Checkout(commit, "nets/", changes)


def test_no_repository(tmp_path: Path) -> None:
    """Nothing is known there."""
    assert checkout_of(tmp_path) == Checkout()
