"""Which commit the base is, in real repositories as developers and CI services have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_modelbudget.base import NO_BASE, BaseCommit, find_base
from pytest_modelbudget.base.git import Git
from pytest_modelbudget.errors import ModelBudgetError
from tests.gitrepo import Repository, repository

HERE: dict[str, str] = {}


def auto(repo: Repository, *, ci: bool = False, **environment: str) -> BaseCommit:
    """The base that is found without being named."""
    return find_base(repo.path, "auto", environment, ci=ci)


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    """Two commits on `main`."""
    made = repository(tmp_path / "repo")
    made.commit("first", file="1")
    made.commit("second", file="2")
    return made


def pull_request(repo: Repository) -> tuple[str, str]:
    """A branch `feature` of one commit, main one further, and the trial merge checked out: (main, feature)."""
    repo.git("checkout", "--quiet", "-b", "feature")
    feature = repo.commit("feature", feature="1")
    repo.git("checkout", "--quiet", "main")
    main = repo.commit("third", file="3")
    repo.git("checkout", "--quiet", "--detach", "main")
    repo.git("merge", "--quiet", "--no-ff", "--message", "trial", "feature")
    return main, feature


def test_on_a_branch_it_is_where_the_branch_left(repo: Repository) -> None:
    """The merge-base, not the tip of main that went on since."""
    start = repo.git("rev-parse", "HEAD")
    repo.git("checkout", "--quiet", "-b", "feature")
    repo.commit("feature")
    repo.git("checkout", "--quiet", "main")
    repo.commit("third", file="3")
    repo.git("checkout", "--quiet", "feature")
    assert auto(repo) == BaseCommit(start, f"main {start[:7]}", "where this branch left it")


def test_on_the_default_branch_it_is_what_is_committed(repo: Repository) -> None:
    """A developer's growth is that of the work tree."""
    head = repo.git("rev-parse", "HEAD")
    assert auto(repo).commit == head
    assert str(auto(repo)) == f"HEAD {head[:7]} (what is committed on the default branch)"


def test_commits_that_are_not_pushed_are_growth(repo: Repository, tmp_path: Path) -> None:
    """On a local main that is ahead, what the others have is the base."""
    clone = repo.clone(tmp_path / "clone")
    pushed = clone.git("rev-parse", "HEAD")
    clone.commit("mine")
    assert auto(clone).commit == pushed
    assert auto(clone).name == f"origin/main {pushed[:7]}"


@pytest.mark.parametrize("branch", ["main", "master", "trunk"])
def test_the_default_branch_is_that_of_origin(tmp_path: Path, branch: str) -> None:
    """`origin/HEAD` says it, whatever its name."""
    origin = repository(tmp_path / "origin", branch)
    first = origin.commit("first")
    clone = origin.clone(tmp_path / "clone")
    clone.git("checkout", "--quiet", "-b", "feature")
    clone.commit("feature")
    assert auto(clone) == BaseCommit(first, f"origin/{branch} {first[:7]}", "where this branch left it")


def test_in_ci_on_the_default_branch_it_is_the_commit_before(repo: Repository) -> None:
    """Nothing is uncommitted in CI; GitLab says where a push of several commits began."""
    first, second = repo.git("rev-parse", "HEAD^"), repo.git("rev-parse", "HEAD")
    repo.commit("third")
    assert auto(repo, ci=True) == BaseCommit(second, f"HEAD^1 {second[:7]}", "the commit before, on the default branch")
    assert auto(repo, ci=True, CI_COMMIT_BEFORE_SHA=first) == BaseCommit(
        first, first[:7], "the branch before this push"
    )
    assert auto(repo, ci=True, CI_COMMIT_BEFORE_SHA="0" * 40).commit == second


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({}, id="any service"),
        pytest.param({"GITHUB_REF": "refs/pull/7/merge", "GITHUB_BASE_REF": "main"}, id="GitHub"),
        pytest.param({"BUILD_SOURCEBRANCH": "refs/pull/7/merge"}, id="Azure"),
        pytest.param({"CI_MERGE_REQUEST_EVENT_TYPE": "merged_result"}, id="GitLab"),
    ],
)
def test_in_a_trial_merge_it_is_the_first_parent(repo: Repository, variables: dict[str, str]) -> None:
    """Exactly what the request changes, also when its branch is behind."""
    main, _ = pull_request(repo)
    found = auto(repo, ci=True, **variables)
    assert found == BaseCommit(main, f"HEAD^1 {main[:7]}", "the first parent of the pull request's merge commit")


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({}, id="detached"),
        pytest.param({"CI_COMMIT_BRANCH": "feature"}, id="GitLab, branch"),
        pytest.param({"GITHUB_REF": "refs/pull/7/merge", "GITHUB_SHA": "0" * 40, "GITHUB_BASE_REF": "main"}, id="GitHub, head of the request"),
    ],
)  # fmt: skip
def test_a_developers_own_merge_is_none(repo: Repository, variables: dict[str, str]) -> None:
    """Where main was merged into the branch, the base is main, not the branch before that merge."""
    repo.git("checkout", "--quiet", "-b", "feature")
    repo.commit("feature", feature="1")
    repo.git("checkout", "--quiet", "main")
    main = repo.commit("third", file="3")
    repo.git("checkout", "--quiet", "feature")
    repo.git("merge", "--quiet", "--no-ff", "--message", "main into feature", "main")
    repo.git("checkout", "--quiet", "--detach")
    assert auto(repo, ci=True, **variables) == BaseCommit(main, f"main {main[:7]}", "where this branch left it")


@pytest.mark.parametrize(
    "variable",
    ["GITHUB_BASE_REF", "CI_MERGE_REQUEST_TARGET_BRANCH_NAME", "SYSTEM_PULLREQUEST_TARGETBRANCH", "CHANGE_TARGET"],
)
def test_a_request_to_another_branch(repo: Repository, variable: str) -> None:
    """What the service names as target comes before the default branch; what is not here is said, and not guessed."""
    repo.git("checkout", "--quiet", "-b", "release")
    release = repo.commit("release")
    repo.git("checkout", "--quiet", "-b", "feature")
    repo.commit("feature")
    assert auto(repo, ci=True, **{variable: "refs/heads/release"}).commit == release
    absent = auto(repo, ci=True, **{variable: "v2"})
    assert str(absent) == "none: the target branch 'v2' is not in this clone: git fetch origin v2 brings it"


def test_a_shallow_clone_of_a_trial_merge(repo: Repository, tmp_path: Path) -> None:
    """With one commit there is no base, with two there is."""
    main, _ = pull_request(repo)
    repo.git("branch", "trial", "HEAD")
    for depth, expected in (("1", ""), ("2", main)):
        clone = repo.clone(tmp_path / depth, "--depth", depth, "--branch", "trial")
        clone.git("checkout", "--quiet", "--detach")
        found = auto(clone, ci=True, GITHUB_REF="refs/pull/7/merge", GITHUB_BASE_REF="main")
        assert found.commit == expected
    assert auto(Repository(tmp_path / "1"), ci=True, GITHUB_REF="refs/pull/7/merge").reason == (
        f"HEAD^1 ({main[:7]}) is not in this shallow clone: fetch two commits "
        "(actions/checkout: fetch-depth: 2, GitLab: GIT_DEPTH: 2)"
    )


def test_a_shallow_clone_of_a_branch(repo: Repository, tmp_path: Path) -> None:
    """Where the histories meet is cut off: that is said, with the cure."""
    repo.git("checkout", "--quiet", "-b", "feature")
    repo.commit("feature")
    repo.git("checkout", "--quiet", "main")
    repo.commit("third")
    clone = repo.clone(tmp_path / "clone", "--depth", "1", "--no-single-branch", "--branch", "feature")
    assert auto(clone).reason.startswith("no commit is common to HEAD and origin/main; this clone is shallow: fetch")
    with pytest.raises(ModelBudgetError, match=r"is no commit of this clone.*this clone is shallow"):
        find_base(clone.path, "HEAD~1", HERE, ci=False)


def test_the_first_commit(tmp_path: Path) -> None:
    """Before it, at it, and in CI at it."""
    repo = repository(tmp_path / "repo")
    assert str(auto(repo)) == "none: there is no commit yet"
    first = repo.commit("first")
    assert auto(repo).commit == first
    assert str(auto(repo, ci=True)) == "none: this is the first commit"


def test_no_default_branch(tmp_path: Path) -> None:
    """A lone branch of another name is not taken for it."""
    repo = repository(tmp_path / "repo", "work")
    repo.commit("first")
    assert auto(repo).reason.startswith("no default branch is in this clone (origin/HEAD, main or master)")


def test_histories_without_a_common_commit(repo: Repository) -> None:
    """An orphan branch has no base."""
    repo.git("checkout", "--quiet", "--orphan", "other")
    repo.commit("alone")
    assert auto(repo).reason == "no commit is common to HEAD and main; their histories have nothing in common"


def test_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of git, and without git."""
    assert str(find_base(tmp_path, "auto", HERE, ci=False)) == "none: not a git repository"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert str(find_base(tmp_path, "auto", HERE, ci=False)) == "none: git is not installed"
    with pytest.raises(ModelBudgetError, match="the base 'main' cannot be read: git is not installed"):
        find_base(tmp_path, "main", HERE, ci=False)


def test_a_repository_of_another_user(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Git refuses it, as in many containers: the message has the command that allows it."""
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own switch for this test
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    assert auto(repo).reason.startswith("git refuses a repository of another user: git config --global --add safe.dir")


@pytest.mark.parametrize("name", ["main~1", "v1", "full", "short"])
def test_a_named_base_is_taken_as_it_is(repo: Repository, name: str) -> None:
    """Its own commit, not a merge-base."""
    first = repo.git("rev-parse", "HEAD^")
    repo.git("tag", "--annotate", "v1", first, "--message", "v1")
    wanted = {"full": first, "short": first[:10]}.get(name, name)
    found = find_base(repo.path, wanted, HERE, ci=True)
    assert found.commit == first
    assert found.name == (first[:7] if name in ("full", "short") else f"{name} {first[:7]}")


@pytest.mark.parametrize("name", ["nope", "--output=x", "HEAD:file", "", "v1..main", "main; touch x"])
def test_a_named_base_that_is_not_there(repo: Repository, name: str) -> None:
    """A mistake of the user's, with what to write; nothing is run for it."""
    with pytest.raises(
        ModelBudgetError, match="is no commit of this clone: write auto, off, or a branch, tag or commit"
    ):
        find_base(repo.path, name, HERE, ci=False)


def test_off(tmp_path: Path) -> None:
    """Git is not even asked."""
    assert find_base(tmp_path / "nowhere", "off", HERE, ci=False) is NO_BASE


def test_a_worktree_and_a_submodule(repo: Repository, tmp_path: Path) -> None:
    """Each is a repository of its own kind."""
    start = repo.git("rev-parse", "HEAD")
    repo.git("worktree", "add", "--quiet", "-b", "feature", str(tmp_path / "tree"))
    tree = Repository(tmp_path / "tree")
    tree.commit("feature")
    assert auto(tree).commit == start
    outer = repository(tmp_path / "outer")
    outer.git("submodule", "--quiet", "add", f"file://{repo.path.as_posix()}", "inner")
    outer.commit("with a submodule")
    inner = Repository(outer.path / "inner")
    inner.commit("in the submodule")
    assert auto(inner).commit == start


def test_inside_a_hook_of_another_repository(repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What git tells its hooks is about that repository."""
    other = repository(tmp_path / "other")
    other.commit("elsewhere")
    monkeypatch.setenv("GIT_DIR", str(other.path / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other.path / ".git" / "index"))
    head = (repo.path / ".git" / "refs" / "heads" / "main").read_text().strip()
    assert auto(repo).commit == head


def test_nothing_of_the_repository_is_run(repo: Repository, tmp_path: Path) -> None:
    """Neither hooks nor programs that its configuration names."""
    ran = tmp_path / "ran"
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {ran}\n")
    hook.chmod(0o755)
    for name in ("core.fsmonitor", "core.sshCommand", "core.pager", "diff.external", "filter.x.smudge", "core.editor"):
        repo.git("config", name, str(hook))
    for name in ("post-checkout", "post-index-change", "reference-transaction"):
        (repo.path / ".git" / "hooks").mkdir(exist_ok=True)
        (repo.path / ".git" / "hooks" / name).symlink_to(hook)
    where = auto(repo)
    git = Git(repo.path)
    assert git.files(where.commit)
    assert (git.tracked("file"), git.tracked("none")) == (True, False)
    blobs = git.blobs()
    assert blobs.read(git.files(where.commit)["file"]) == b"2"  # type: ignore[index]
    blobs.close()
    assert not ran.exists()
