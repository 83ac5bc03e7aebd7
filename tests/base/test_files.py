"""The files of the base: which are there, their text, and how few processes it takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_modelbudget.base import Base, BaseCommit, find_base
from pytest_modelbudget.base.git import Blobs
from pytest_modelbudget.errors import ModelBudgetError
from tests.gitrepo import Repository, repository


def base_of(repo: Repository, root: Path | None = None) -> Base:
    """What HEAD has, seen from `root`."""
    return Base(root or repo.path, find_base(repo.path, "HEAD", {}, ci=False))


def test_files_as_they_were_committed(tmp_path: Path) -> None:
    """Whatever the work tree has now; paths and line ends of any kind."""
    repo = repository(tmp_path / "repo")
    names = {"a.yaml": "one\n", "with space.yaml": "two\n", "ü.toml": "ö\n", "crlf.yml": "x\r\ny\r\n", "empty.yaml": ""}
    repo.git("config", "core.autocrlf", "false")
    for name, text in names.items():
        (repo.path / name).write_bytes(text.encode())
    (repo.path / "code.py").write_text("1")
    (repo.path / "link.yaml").symlink_to("a.yaml")
    repo.commit()
    (repo.path / "a.yaml").write_text("changed\n")
    (repo.path / "new.yaml").write_text("new\n")
    base = base_of(repo)
    assert {path: base.text(path) for path in base.files} == {**names, "crlf.yml": "x\ny\n"}
    assert base.text("new.yaml") is None
    assert base.text("link.yaml") is None
    base.close()


def test_a_root_below_that_of_the_repository(tmp_path: Path) -> None:
    """Paths are relative to the root of the tests, in both directions of depth."""
    repo = repository(tmp_path / "repo")
    (repo.path / "py" / "conf").mkdir(parents=True)
    (repo.path / "py" / "conf" / "m.yaml").write_text("inner\n")
    (repo.path / "m.yaml").write_text("outer\n")
    repo.commit()
    base = base_of(repo, repo.path / "py")
    assert (base.text("conf/m.yaml"), base.text("m.yaml")) == ("inner\n", None)
    assert base.named("m.yaml") == ["conf/m.yaml"]
    base.close()


def test_many_snapshots_take_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One lists all files and one gives their contents, after the base was found."""
    repo = repository(tmp_path / "repo")
    for number in range(1300):
        (repo.path / f"{number}.yaml").write_text(f"{number}\n" * 400)
    repo.commit()
    base = base_of(repo)
    started: list[str] = []
    real = subprocess.Popen.__init__

    def counting(self: subprocess.Popen[bytes], command: list[str], *more: object, **options: object) -> None:
        started.append(next(word for word in command[1:] if word in ("ls-tree", "cat-file")))
        real(self, command, *more, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess.Popen, "__init__", counting)
    assert all(base.text(f"{number}.yaml") == f"{number}\n" * 400 for number in range(1300))
    base.close()
    assert started == ["ls-tree", "cat-file"]


def test_a_git_that_dies_gives_no_half_of_a_file(tmp_path: Path) -> None:
    """What it has begun to give is not taken for the whole content."""
    program = "import sys; sys.stdin.readline(); sys.stdout.write('x blob 9\\nhalf'); sys.stdout.flush()"
    blobs = Blobs([sys.executable, "-c", program], tmp_path, dict(os.environ))
    assert blobs.read("x") is None
    blobs.close()


def test_a_partial_clone(tmp_path: Path) -> None:
    """A file that is listed but was left out is neither fetched nor taken for missing."""
    origin = repository(tmp_path / "origin")
    origin.git("config", "uploadpack.allowFilter", "true")
    first = origin.commit(**{"m.yaml": "old\n", "n.yaml": "same\n"})
    origin.commit(**{"m.yaml": "new\n"})
    clone = origin.clone(tmp_path / "clone", "--filter=blob:none")
    base = Base(clone.path, BaseCommit(first, "old"))
    assert "m.yaml" in base.files
    with pytest.raises(ModelBudgetError, match=r"m\.yaml of old is not in this clone \(a partial one\)"):
        base.text("m.yaml")
    assert base.text("n.yaml") == "same\n"
    base.close()


def test_without_a_base_there_are_no_files(tmp_path: Path) -> None:
    """And git is not asked."""
    assert Base(tmp_path, BaseCommit(reason="none")).files == {}


def test_a_file_of_the_base_is_bounded_and_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is too large is named and not read, and the next one is there; a mark before a text is no part of it."""
    monkeypatch.setattr("pytest_modelbudget.base.files.MOST_BYTES", 1000)
    repo = repository(tmp_path / "repo")
    contents = {"mark.yaml": b"\xef\xbb\xbfa\r\nb\r\n", "junk.yaml": b"a\n\xff\n", "large.yaml": b"x" * 300_000}
    for name, content in contents.items():
        (repo.path / name).write_bytes(content)
    repo.commit()
    base = base_of(repo)
    with pytest.raises(
        ModelBudgetError, match=r"large\.yaml of HEAD .* is too large: 300,000 bytes, and at most 1,000"
    ):
        base.text("large.yaml")
    with pytest.raises(ModelBudgetError, match=r"junk\.yaml of HEAD .*, line 2: not UTF-8 text"):
        base.text("junk.yaml")
    assert base.text("mark.yaml") == "a\nb\n"
    base.close()
