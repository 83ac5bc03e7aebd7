"""Which state of the project a run is of: the commit that is checked out, and what the work tree changed of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pytest_modelbudget.base.git import Git, NoGit


@dataclass(frozen=True, slots=True)
class Checkout:
    """`commit` in full, empty where there is no repository; `changes` is a digest of the tracked files that differ.

    `changes` is empty where none does. Files that git does not track are not looked at.
    """

    commit: str = ""
    changes: str = ""


def checkout_of(root: Path) -> Checkout:
    """The checkout that `root` lies in."""
    try:
        git = Git(root)
        commit = git.commit("HEAD") or ""
        changes = git.changes() if commit else ""
    except NoGit:
        return Checkout()
    return Checkout(commit, hashlib.sha256(changes.encode("utf-8", "surrogateescape")).hexdigest() if changes else "")
