"""Which state of the project a run is of: the commit that is checked out, and what the work tree changed of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_modelbudget.base.git import Git, NoGit

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Checkout:
    """`commit` in full, empty where there is no repository; `changes` are the tracked files that differ from it.

    `folder` is the root's place in the repository, with a slash at its end unless it is the top. `changes` has a
    digest of each such file by its path in the repository, empty for one that is gone or no file. Files that git does
    not track are not looked at.
    """

    commit: str = ""
    folder: str = ""
    changes: Mapping[str, str] = field(default_factory=dict)


def checkout_of(root: Path) -> Checkout:
    """The checkout that `root` lies in."""
    try:
        git = Git(root)
        commit = git.commit("HEAD") or ""
        top, folder = git.position()
        paths = git.changed_files() if commit else []
    except NoGit:
        return Checkout()
    return Checkout(commit, folder, {path: _digest(top / path) for path in sorted(paths)})


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        if path.is_symlink():
            digest.update(os.fsencode(os.readlink(path)))
        elif path.is_file():
            with open(path, "rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        else:
            return ""
    except OSError:
        return ""
    return digest.hexdigest()
