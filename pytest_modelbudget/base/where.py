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

_TARGET_BRANCH_VARIABLES = (
    "GITHUB_BASE_REF",
    "CI_MERGE_REQUEST_TARGET_BRANCH_NAME",
    "SYSTEM_PULLREQUEST_TARGETBRANCH",
    "BITBUCKET_PR_DESTINATION_BRANCH",
    "BUILDKITE_PULL_REQUEST_BASE_BRANCH",
    "CHANGE_TARGET",
)
"""Where CI services name the branch that a pull request goes to."""

_TRIAL_MERGE_VARIABLES = (
    ("GITHUB_REF", r"refs/pull/\d+/merge", "GITHUB_SHA"),
    ("BUILD_SOURCEBRANCH", r"refs/pull/\d+/merge", "BUILD_SOURCEVERSION"),
    ("CI_MERGE_REQUEST_EVENT_TYPE", "merged_result|merge_train", "CI_COMMIT_SHA"),
)
"""Where CI services say that what they checked out is a pull request merged for trial, and as which commit."""

DEEPEN_HINT = "fetch more of it (actions/checkout: fetch-depth: 0, GitLab: GIT_DEPTH: 0, else git fetch --unshallow)"


@dataclass(frozen=True, slots=True)
class BaseCommit:
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


NO_BASE = BaseCommit(reason="--model-budget-base is off")


def find_base(root: Path, choice: str, environment: Mapping[str, str], *, ci: bool) -> BaseCommit:
    """The base that `choice` (`auto`, `off` or a ref) stands for; `ci` says that this is a CI job.

    Raises:
        ModelBudgetError: a ref that the user named is not there.
    """
    if choice == "off":
        return NO_BASE
    try:
        git = Git(root)
        if choice == "auto":
            return _auto_base(git, environment, ci)
    except NoGit as problem:
        if choice == "auto":
            return BaseCommit(reason=str(problem))
        raise ModelBudgetError(f"the base {choice!r} cannot be read: {problem}") from None
    commit = git.commit(choice)
    if commit is None:
        shallow = f"; this clone is shallow: {DEEPEN_HINT}" if git.shallow else ""
        raise ModelBudgetError(
            f"the base {choice!r} is no commit of this clone: write auto, off, or a branch, tag or commit{shallow}"
        )
    return _base_at(commit, choice)


def _base_at(commit: str, name: str, how: str = "") -> BaseCommit:
    short = commit[:7]
    return BaseCommit(commit, short if commit.startswith(name) else f"{name} {short}", how)


def _auto_base(git: Git, environment: Mapping[str, str], ci: bool) -> BaseCommit:
    head = git.commit("HEAD")
    if head is None:
        return BaseCommit(reason="there is no commit yet")
    parents = git.parents(head)
    name, problem = _target_branch(git, environment)
    target = git.commit(name)
    if len(parents) == 2 and _is_trial_merge(git, environment, head, parents, target):
        return _first_parent(git, parents[0], "the first parent of the pull request's merge commit")
    if target is None:
        return BaseCommit(reason=problem)
    fork = git.merge_base(head, target)
    branch = _short_ref(name)
    if fork is None:
        cure = f"this clone is shallow: {DEEPEN_HINT}" if git.shallow else "their histories have nothing in common"
        return BaseCommit(reason=f"no commit is common to HEAD and {branch}; {cure}")
    if fork != head:
        return _base_at(fork, branch, "where this branch left it")
    if not ci:
        return _base_at(head, "HEAD", "what is committed on the default branch")
    return _commit_before_push(git, environment, parents)


def _short_ref(ref: str) -> str:
    return ref.removeprefix("refs/heads/").removeprefix("refs/remotes/")


def _commit_before_push(git: Git, environment: Mapping[str, str], parents: list[str]) -> BaseCommit:
    """On the default branch in CI."""
    if commit := git.commit(environment.get("CI_COMMIT_BEFORE_SHA", "")):
        return _base_at(commit, commit, "the branch before this push")
    if not parents:
        return BaseCommit(reason="this is the first commit")
    return _first_parent(git, parents[0], "the commit before, on the default branch")


def _first_parent(git: Git, parent: str, how: str) -> BaseCommit:
    if git.commit(parent) is None:
        return BaseCommit(
            reason=f"HEAD^1 ({parent[:7]}) is not in this shallow clone: fetch two commits "
            "(actions/checkout: fetch-depth: 2, GitLab: GIT_DEPTH: 2)"
        )
    return _base_at(parent, "HEAD^1", how)


def _is_trial_merge(
    git: Git, environment: Mapping[str, str], head: str, parents: list[str], target: str | None
) -> bool:
    """Whether HEAD was made by a CI service, by merging a request into its target, rather than by a developer."""
    for variable, pattern, commit in _TRIAL_MERGE_VARIABLES:
        if re.fullmatch(pattern, environment.get(variable, "")):
            return environment.get(commit, head) == head
    if git.branch() is not None or environment.get("CI_COMMIT_BRANCH"):  # GitLab detaches HEAD on branches too
        return False
    if target is None:
        return True
    return git.is_ancestor(parents[0], target) and not git.is_ancestor(parents[1], target)


def _target_branch(git: Git, environment: Mapping[str, str]) -> tuple[str, str]:
    """The full ref of the branch to compare with, or an empty one with what is missing."""
    for variable in _TARGET_BRANCH_VARIABLES:
        if branch := environment.get(variable, "").removeprefix("refs/heads/"):
            ref = _first_known_ref(git, (f"refs/remotes/origin/{branch}", f"refs/heads/{branch}"))
            return ref, f"the target branch {branch!r} is not in this clone: git fetch origin {branch} brings it"
    default = git.points_at("refs/remotes/origin/HEAD")
    names = dict.fromkeys(filter(None, (environment.get("CI_DEFAULT_BRANCH"), "main", "master")))
    candidates = [f"refs/{namespace}/{name}" for namespace in ("remotes/origin", "heads") for name in names]
    ref = _first_known_ref(git, [default, *candidates] if default else candidates)
    return ref, (
        "no default branch is in this clone (origin/HEAD, main or master): fetch it, or name a base with "
        "--model-budget-base=REF"
    )


def _first_known_ref(git: Git, refs: list[str] | tuple[str, ...]) -> str:
    return next((ref for ref in refs if git.commit(ref)), "")
