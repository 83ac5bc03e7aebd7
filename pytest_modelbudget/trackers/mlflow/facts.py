"""Where a run took place: repository, commit, branch, position in the history. Asks git and the CI's variables."""

from __future__ import annotations

import getpass
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_modelbudget.trackers.mlflow.ci import Build, read_build

_DEFAULT_BRANCHES = ("main", "master", "trunk")
"""Names of default branches, where neither CI nor a clone says which one it is."""

_NO_BUILD = Build()
_TIMEOUT = 5.0
"""Seconds for one git command; a repository too slow for that is described without what it would have said."""


@dataclass(frozen=True, slots=True)
class RepositoryFacts:
    """What is known of the place; empty where it is not known.

    `step` is the number of commits up to this one, 0 outside git. In a shallow clone that number is not
    known, and `step` is the commit's time in minutes. `folder` is the root inside the repository, "" at its top.
    `default_branch` is the one whose history is kept.
    """

    repository: str
    folder: str = ""
    commit: str = ""
    branch: str = ""
    url: str = ""
    user: str = ""
    ci: Build = _NO_BUILD
    default_branch: str = ""
    commit_ms: int | None = None
    step: int = 0
    shallow: bool = False
    dirty: bool = False

    def no_history(self, wish: str, *, shared: bool) -> str:
        """Why this run adds nothing to the histories of its models; empty when it does.

        `wish` is `auto`, `on` or `off`. Of a machine outside CI, what is not committed stays out of a `shared` store.
        """
        if wish in ("on", "off"):
            return "" if wish == "on" else "it is switched off"
        if self.ci.is_pull_request:
            return f"this is pull request {self.ci.pull_request}".removesuffix(" ?")
        if not self.commit:
            return "" if not shared else "there is no commit"
        if not self.branch:
            return "no branch is checked out"
        if self.branch not in ([self.default_branch] if self.default_branch else _DEFAULT_BRANCHES):
            default = f", which is {self.default_branch}" if self.default_branch else ""
            return f"{self.branch} is not the default branch{default}"
        return "there are changes that are not committed" if self.dirty and shared and not self.ci.service else ""


def gather(root: Path, environ: Mapping[str, str]) -> RepositoryFacts:
    """The facts of `root`; never raises for what git does not know."""
    url = without_userinfo(_git(root, "remote", "get-url", "origin") or "")
    lines = (_git(root, "rev-parse", "--is-shallow-repository", "--show-prefix", "--show-toplevel") or "").split("\n")
    shallow, folder, top = lines if len(lines) == 3 else ("", "", "")
    commit, seconds = [*(_git(root, "log", "-1", "--no-show-signature", "--format=%H %ct") or "").split(), "", ""][:2]
    build = read_build(environ)
    count = None if shallow == "true" or not commit else _git(root, "rev-list", "--count", "HEAD")
    return RepositoryFacts(
        repository=_repository(url) or Path(top or root.resolve()).name or "repository",
        folder=folder.rstrip("/"),
        commit=commit,
        branch=build.branch or _git(root, "symbolic-ref", "--quiet", "--short", "HEAD") or "",
        url=url,
        user=_user(),
        ci=replace(build, job_url=without_userinfo(build.job_url)),
        default_branch=build.default_branch or _origin_head(root),
        commit_ms=int(seconds) * 1000 if seconds else None,
        step=int(count) if count else int(seconds or 0) // 60,
        shallow=bool(commit) and not count,
        dirty=bool(_git(root, "status", "--porcelain", "--ignore-submodules=dirty")),
    )


def _git(root: Path, *arguments: str) -> str | None:
    """What a git command prints; None when it fails, takes too long or there is no git."""
    try:
        completed = subprocess.run(
            ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *arguments],
            cwd=root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return completed.stdout.decode(errors="replace").removesuffix("\n")


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


def _origin_head(root: Path) -> str:
    """The default branch as a clone remembers it."""
    head = _git(root, "symbolic-ref", "--quiet", "--short", "refs/remotes/origin/HEAD") or ""
    return head.removeprefix("origin/")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container may run as a user without a name
        return ""
