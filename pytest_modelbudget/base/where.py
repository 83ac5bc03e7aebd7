"""Which commit is the base.

`auto` takes, in this order:

1. In a pull request's merge commit, as CI services check it out, its first parent: the target branch, and so exactly
   what the request changes.
2. On a branch, the merge-base with the branch that the request goes to (CI variables say which), else with the default
   branch: `origin/HEAD`, `CI_DEFAULT_BRANCH`, `main`, `master`, those of `origin` first.
3. On the default branch itself, what is committed: locally `HEAD`, so that growth is what the work tree adds; in CI,
   where nothing is uncommitted, the commit before (GitLab says which one the push began at, else `HEAD^1`).

A ref that the user names is taken as it is: its own commit, not a merge-base.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_modelbudget.base.git import Git, NoGit
from pytest_modelbudget.errors import ModelBudgetError

_TARGETS = (
    "GITHUB_BASE_REF",
    "CI_MERGE_REQUEST_TARGET_BRANCH_NAME",
    "SYSTEM_PULLREQUEST_TARGETBRANCH",
    "BITBUCKET_PR_DESTINATION_BRANCH",
    "BUILDKITE_PULL_REQUEST_BASE_BRANCH",
    "CHANGE_TARGET",
)
"""Where CI services name the branch that a pull request goes to."""

_MERGES = (
    ("GITHUB_REF", r"refs/pull/\d+/merge", "GITHUB_SHA"),
    ("BUILD_SOURCEBRANCH", r"refs/pull/\d+/merge", "BUILD_SOURCEVERSION"),
    ("CI_MERGE_REQUEST_EVENT_TYPE", "merged_result|merge_train", "CI_COMMIT_SHA"),
)
"""Where CI services say that what they checked out is a pull request merged for trial, and as which commit."""

DEEPER = "fetch more of it (actions/checkout: fetch-depth: 0, GitLab: GIT_DEPTH: 0, else git fetch --unshallow)"


@dataclass(frozen=True, slots=True)
class Where:
    """The base: `commit` in full, its `name` for people (`HEAD^1 4f1c2d9`), and `how` it was found.

    Without a base `commit` is empty, and `reason` says why.
    """

    commit: str = ""
    name: str = ""
    how: str = ""
    reason: str = ""

    def __str__(self) -> str:
        if not self.commit:
            return f"none: {self.reason}"
        return f"{self.name} ({self.how})" if self.how else self.name


OFF = Where(reason="--model-budget-base is off")


def locate(root: Path, wanted: str, environment: Mapping[str, str], *, ci: bool) -> Where:
    """The base that `wanted` (`auto`, `off` or a ref) stands for; `ci` says that this is a CI job.

    Raises:
        ModelBudgetError: a ref that the user named is not there.
    """
    if wanted == "off":
        return OFF
    try:
        git = Git(root)
        if wanted == "auto":
            return _auto(git, environment, ci)
    except NoGit as problem:
        if wanted == "auto":
            return Where(reason=str(problem))
        raise ModelBudgetError(f"the base {wanted!r} cannot be read: {problem}") from None
    commit = git.commit(wanted)
    if commit is None:
        shallow = f"; this clone is shallow: {DEEPER}" if git.shallow else ""
        raise ModelBudgetError(
            f"the base {wanted!r} is no commit of this clone: write auto, off, or a branch, tag or commit{shallow}"
        )
    return _at(commit, wanted)


def _at(commit: str, name: str, how: str = "") -> Where:
    short = commit[:7]
    return Where(commit, short if commit.startswith(name) else f"{name} {short}", how)


def _auto(git: Git, environment: Mapping[str, str], ci: bool) -> Where:
    head = git.commit("HEAD")
    if head is None:
        return Where(reason="there is no commit yet")
    parents = git.parents(head)
    name, problem = _target(git, environment)
    target = git.commit(name)
    if len(parents) == 2 and _is_trial_merge(git, environment, head, parents, target):
        return _first_parent(git, parents[0], "the first parent of the pull request's merge commit")
    if target is None:
        return Where(reason=problem)
    fork = git.merge_base(head, target)
    branch = _short(name)
    if fork is None:
        cure = f"this clone is shallow: {DEEPER}" if git.shallow else "their histories have nothing in common"
        return Where(reason=f"no commit is common to HEAD and {branch}; {cure}")
    if fork != head:
        return _at(fork, branch, "where this branch left it")
    if not ci:
        return _at(head, "HEAD", "what is committed on the default branch")
    return _before_push(git, environment, parents)


def _short(ref: str) -> str:
    return ref.removeprefix("refs/heads/").removeprefix("refs/remotes/")


def _before_push(git: Git, environment: Mapping[str, str], parents: list[str]) -> Where:
    """On the default branch in CI."""
    if before := git.commit(environment.get("CI_COMMIT_BEFORE_SHA", "")):
        return _at(before, before, "the branch before this push")
    if not parents:
        return Where(reason="this is the first commit")
    return _first_parent(git, parents[0], "the commit before, on the default branch")


def _first_parent(git: Git, parent: str, how: str) -> Where:
    if git.commit(parent) is None:
        return Where(
            reason=f"HEAD^1 ({parent[:7]}) is not in this shallow clone: fetch two commits "
            "(actions/checkout: fetch-depth: 2, GitLab: GIT_DEPTH: 2)"
        )
    return _at(parent, "HEAD^1", how)


def _is_trial_merge(
    git: Git, environment: Mapping[str, str], head: str, parents: list[str], target: str | None
) -> bool:
    """Whether HEAD was made by a CI service, by merging a request into its target, rather than by a developer."""
    for variable, pattern, commit in _MERGES:
        if re.fullmatch(pattern, environment.get(variable, "")):
            return environment.get(commit, head) == head
    if git.branch() is not None or environment.get("CI_COMMIT_BRANCH"):  # GitLab detaches HEAD on branches too
        return False
    if target is None:
        return True
    return git.is_ancestor(parents[0], target) and not git.is_ancestor(parents[1], target)


def _target(git: Git, environment: Mapping[str, str]) -> tuple[str, str]:
    """The full ref of the branch to compare with, or an empty one with what is missing."""
    for variable in _TARGETS:
        if branch := environment.get(variable, "").removeprefix("refs/heads/"):
            found = _first(git, (f"refs/remotes/origin/{branch}", f"refs/heads/{branch}"))
            return found, f"the target branch {branch!r} is not in this clone: git fetch origin {branch} brings it"
    default = git.points_at("refs/remotes/origin/HEAD")
    names = dict.fromkeys(filter(None, (environment.get("CI_DEFAULT_BRANCH"), "main", "master")))
    candidates = [f"refs/{place}/{name}" for place in ("remotes/origin", "heads") for name in names]
    found = _first(git, [default, *candidates] if default else candidates)
    return found, (
        "no default branch is in this clone (origin/HEAD, main or master): fetch it, or name a base with "
        "--model-budget-base=REF"
    )


def _first(git: Git, refs: list[str] | tuple[str, ...]) -> str:
    return next((ref for ref in refs if git.commit(ref)), "")
