"""Where a run took place: repository, commit, branch, position in the history. Asks git and the CI's variables."""

from __future__ import annotations

import getpass
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT = 5.0
"""Seconds for one git command; a repository too slow for that is described without what it would have said."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the place; empty where it is not known.

    `step` is the number of commits up to this one, 0 outside git. In a shallow clone that number is not
    known, and `step` is the commit's time in minutes. `folder` is the root inside the repository, "" at its top.
    """

    repository: str
    folder: str = ""
    commit: str = ""
    branch: str = ""
    url: str = ""
    user: str = ""
    ci_url: str = ""
    commit_ms: int | None = None
    step: int = 0
    shallow: bool = False
    dirty: bool = False


def gather(root: Path, environ: Mapping[str, str]) -> Facts:
    """The facts of `root`; never raises for what git does not know."""
    url = without_userinfo(_git(root, "remote", "get-url", "origin") or "")
    where = (_git(root, "rev-parse", "--is-shallow-repository", "--show-prefix", "--show-toplevel") or "").split("\n")
    shallow, folder, top = where if len(where) == 3 else ("", "", "")
    commit, seconds = [*(_git(root, "log", "-1", "--format=%H %ct") or "").split(), "", ""][:2]
    count = None if shallow == "true" or not commit else _git(root, "rev-list", "--count", "HEAD")
    return Facts(
        repository=_repository(url) or Path(top or root.resolve()).name or "repository",
        folder=folder.rstrip("/"),
        commit=commit,
        branch=_branch(root, environ),
        url=url,
        user=_user(),
        ci_url=_ci_url(environ),
        commit_ms=int(seconds) * 1000 if seconds else None,
        step=int(count) if count else int(seconds or 0) // 60,
        shallow=bool(commit) and not count,
        dirty=bool(_git(root, "status", "--porcelain")),
    )


def _git(root: Path, *arguments: str) -> str | None:
    """What a git command prints; None when it fails, takes too long or there is no git."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").removesuffix("\n")


def without_userinfo(url: str) -> str:
    """A repository's address without user, password and query; `git@host:path` stays, since it holds no secret.

    >>> without_userinfo("https://me:secret@example.com/team/nets.git?x=1")
    'https://example.com/team/nets.git'
    """
    if "://" not in url:
        return url
    return re.sub(r"://\S*@", "://", re.split("[?#]", url)[0])


def _repository(url: str) -> str:
    return re.split("[/:]", url.rstrip("/").removesuffix(".git"))[-1]


def _branch(root: Path, environ: Mapping[str, str]) -> str:
    """The branch; CI services check out a bare commit and say the branch in a variable."""
    branch = _git(root, "symbolic-ref", "--quiet", "--short", "HEAD")
    names = ("GITHUB_HEAD_REF", "GITHUB_REF_NAME", "CI_COMMIT_REF_NAME", "BRANCH_NAME")
    return branch or next((environ[name] for name in names if environ.get(name)), "")


def _ci_url(environ: Mapping[str, str]) -> str:
    parts = [environ.get(f"GITHUB_{name}", "") for name in ("SERVER_URL", "REPOSITORY", "RUN_ID")]
    if all(parts):
        return "{}/{}/actions/runs/{}".format(*parts)
    return without_userinfo(environ.get("CI_JOB_URL") or environ.get("BUILD_URL") or "")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container may run as a user without a name
        return ""
