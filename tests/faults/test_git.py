"""A run while the repository is in the middle of something: the models are judged, and what the base lacks is said."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_modelbudget import backends
from pytest_modelbudget.cli import main
from tests.gitrepo import CI_VARIABLES, Repository
from tests.project import Project

MANIFEST = """
    models:
      small:
        build: zoo:small
        inputs: "float32[B, 32]"
        budgets: {params: {max: 9k, growth: +1%}}
"""
WIDER = "from fakenet import Model\ndef small(): return Model(dense=(32, 65))\n"
SWITCHING = """
import subprocess
from fakenet import Model


def small():
    subprocess.run(["git", "checkout", "--quiet", "--force", "other"], check=True)
    return Model(dense=(32, 64))
"""

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`modelbudget ...` with the modules of the project as they are now: the code, and all that was said."""
    for name in CI_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(backends.BACKENDS, "fakenet", "fakenet")

    def act(*words: str) -> tuple[int, str]:
        sys.modules.pop("zoo", None)
        capsys.readouterr()
        code = main(words)
        return code, "".join(capsys.readouterr())

    return act


@pytest.fixture
def repo(project: Project, run: Run) -> Repository:
    """`main` with a model and its snapshot, and `other` where the model is wider; `feature` is checked out."""
    made = Repository(project.path)
    made.git("init", "--quiet", "--initial-branch", "main")
    project.manifest(MANIFEST)
    assert run("update")[0] == 0
    made.commit("small")
    made.git("checkout", "--quiet", "-b", "other")
    (project.path / "zoo.py").write_text(WIDER)
    assert run("update", "--base", "off")[0] == 0
    made.commit("wider")
    made.git("checkout", "--quiet", "-b", "feature", "main")
    made.commit("feature", **{"notes.txt": "x"})
    return made


def index_lock(repo: Repository) -> None:
    """Another git is at work, or was killed."""
    (repo.path / ".git" / "index.lock").touch()


def detached(repo: Repository) -> None:
    """As CI services check a commit out."""
    repo.git("checkout", "--quiet", "--detach")


def rebasing(repo: Repository) -> None:
    """A rebase that stopped at a conflict, of which the files are settled."""
    repo.commit("mine", **{"zoo.py": WIDER.replace("65", "66")})
    with pytest.raises(AssertionError):
        repo.git("rebase", "other")
    repo.git("checkout", "--quiet", "main", "--", "zoo.py", "__model_budget__")


def unborn(repo: Repository) -> None:
    """Nothing is committed yet."""
    repo.git("checkout", "--quiet", "--orphan", "fresh")


def no_main(repo: Repository) -> None:
    """The default branch was never fetched."""
    repo.git("branch", "--quiet", "-D", "main")


def broken_ref(repo: Repository) -> None:
    """The commit of `main` is not there."""
    (repo.path / ".git" / "refs" / "heads" / "main").write_text("0" * 39 + "1\n")


def torn_ref(repo: Repository) -> None:
    """The power failed while git wrote it."""
    (repo.path / ".git" / "refs" / "heads" / "main").write_bytes(b"")


def torn_head(repo: Repository) -> None:
    """The same for HEAD, without which it is no repository."""
    (repo.path / ".git" / "HEAD").write_bytes(b"")


def lost_objects(repo: Repository) -> None:
    """As in a partial clone that may not fetch."""
    for blob in ("main:__model_budget__/small.yaml", "main:modelbudget.yaml"):
        name = repo.git("rev-parse", blob)
        (repo.path / ".git" / "objects" / name[:2] / name[2:]).unlink()


def half_object(repo: Repository) -> None:
    """The snapshot of the base is damaged in git's own store."""
    name = repo.git("rev-parse", "main:__model_budget__/small.yaml")
    file = repo.path / ".git" / "objects" / name[:2] / name[2:]
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:20])


STATES = [
    pytest.param(index_lock, "base: main ", id="another git holds the index"),
    pytest.param(detached, "base: main ", marks=pytest.mark.slow, id="detached head"),
    pytest.param(rebasing, "base: main ", id="in the middle of a rebase"),
    pytest.param(unborn, "base: none: there is no commit yet", marks=pytest.mark.slow, id="a branch without a commit"),
    pytest.param(no_main, "name a base with --model-budget-base=REF", marks=pytest.mark.slow, id="no default branch"),
    pytest.param(
        broken_ref,
        "name a base with --model-budget-base=REF",
        marks=pytest.mark.slow,
        id="a ref to an object that is not there",
    ),
    pytest.param(torn_ref, "name a base with --model-budget-base=REF", marks=pytest.mark.slow, id="an empty ref"),
    pytest.param(torn_head, "base: none: not a git repository", marks=pytest.mark.slow, id="an empty HEAD"),
    pytest.param(lost_objects, "is not in this clone", id="objects that are gone"),
    pytest.param(half_object, "is not in this clone", marks=pytest.mark.slow, id="half an object"),
]


@pytest.mark.parametrize(("state", "words"), STATES)
def test_the_models_are_judged_whatever_git_is_doing(
    repo: Repository, run: Run, state: Callable[[Repository], None], words: str
) -> None:
    """The snapshot in the work tree counts; of the base it is said which it is, or why there is none and what helps."""
    state(repo)
    code, said = run("check")
    assert code == 0, said
    assert words in said
    assert "Traceback" not in said
    (repo.path / "zoo.py").write_text(WIDER)
    code, said = run("check")
    assert code == 1
    assert "CHANGED" in said or "OVER BUDGET" in said
    code, said = run("check", "--base", "nowhere")
    assert code == 2
    assert "the base 'nowhere'" in said


@pytest.mark.slow
def test_a_shallow_clone_says_what_to_fetch(
    repo: Repository, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cure is in the line of the base, and in the error where a base was named."""
    clone = repo.clone(tmp_path / "shallow", "--depth", "1", "--no-single-branch")
    clone.git("remote", "set-head", "origin", "main")
    monkeypatch.chdir(clone.path)
    code, said = run("check")
    assert code == 0
    assert "this clone is shallow: fetch more of it (actions/checkout: fetch-depth: 0" in said
    code, said = run("check", "--base", "HEAD~1")
    assert code == 2
    assert "this clone is shallow: fetch more of it" in said


@pytest.mark.slow
@pytest.mark.parametrize("command", ["check", "update"])
def test_another_branch_is_checked_out_in_the_middle(repo: Repository, run: Run, command: str) -> None:
    """What is built is held against what lies there then, whole; the base stays; back again all is as before."""
    (repo.path / "zoo.py").write_text(SWITCHING)
    code, said = run(command)
    assert repo.git("branch", "--show-current") == "other"
    assert "base: main " in said
    assert "Traceback" not in said
    if command == "check":
        assert code == 1
        assert "params 2,080 -> 2,048" in said
        assert not repo.git("status", "--porcelain")
    repo.git("checkout", "--quiet", "--force", "feature")
    assert run("check")[0] == 0
