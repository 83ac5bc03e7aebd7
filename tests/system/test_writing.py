"""Files are written whole or not at all, into what is no file, and leave nothing of a write that was killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget.system import writing

posix = pytest.mark.skipif(sys.platform == "win32", reason="pipes and links of POSIX")


def names(folder: Path) -> list[str]:
    """What is in a folder."""
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", ["text\n", "é \udc80", b"\x00bytes"], ids=["text", "half a character", "bytes"])
def test_a_file_is_all_that_a_write_leaves(tmp_path: Path, content: str | bytes) -> None:
    """Folders are made; text is UTF-8, with what that cannot hold as an escape."""
    path = tmp_path / "new" / "report.json"
    writing.write(path, content)
    wanted = content if isinstance(content, bytes) else content.replace("\udc80", "\\udc80").encode()
    assert path.read_bytes() == wanted
    assert names(path.parent) == ["report.json"]


@posix
def test_modes_are_the_users(tmp_path: Path) -> None:
    """A new file follows the umask, one that is replaced keeps its mode."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("x")
    old.chmod(0o640)
    before = os.umask(0o027)
    try:
        writing.write(old, "y")
        writing.write(new, "y")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (old, new)] == [0o640, 0o640]


@pytest.mark.parametrize("fails", ["write", "replace"])
def test_a_write_that_fails_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """The disk may be full, or another program hold the file."""
    path = tmp_path / "report.json"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((Path, "write_bytes", full) if fails == "write" else (os, "replace", full)))
    with pytest.raises(OSError, match="No space left"):
        writing.write(path, "new")
    monkeypatch.undo()
    assert (names(tmp_path), path.read_text()) == (["report.json"], "old")


def test_a_mounted_file_is_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As containers have them: it cannot be replaced."""

    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    path = tmp_path / "report.json"
    path.write_text("old and longer")
    monkeypatch.setattr(os, "replace", busy)
    writing.write(path, "new")
    assert (names(tmp_path), path.read_text()) == (["report.json"], "new")


@posix
@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing yet"])
def test_a_link_stays_a_link(tmp_path: Path, there: bool) -> None:
    """What it points at is written, relative to where the link lies."""
    (tmp_path / "far").mkdir()
    target, link, second = tmp_path / "far" / "target", tmp_path / "link", tmp_path / "second"
    if there:
        target.write_text("old")
    link.symlink_to("far/target")
    second.symlink_to("link")
    writing.write(second, "new")
    assert second.is_symlink()
    assert link.is_symlink()
    assert target.read_text() == "new"


@posix
def test_a_hard_link_elsewhere_keeps_what_it_has(tmp_path: Path) -> None:
    """A file is replaced, not written into."""
    (tmp_path / "other").write_text("old")
    os.link(tmp_path / "other", tmp_path / "report")
    writing.write(tmp_path / "report", "new")
    assert (tmp_path / "other").read_text() == "old"


@posix
@pytest.mark.parametrize("size", [10, 300_000], ids=["short", "more than a pipe holds"])
def test_a_pipe_is_written_into(tmp_path: Path, size: int) -> None:
    """Its reader, who may come late, gets all of it, and the pipe stays."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Timer(0.1, lambda: got.append(pipe.read_text()))
    reader.start()
    writing.write(pipe, "x" * size)
    reader.join()
    assert got == ["x" * size]
    assert pipe.is_fifo()


@posix
def test_a_pipe_that_nobody_opens_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run does not hang."""
    monkeypatch.setattr(writing, "SECONDS_TO_OPEN", 0.1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TimeoutError, match="nobody reads this pipe"):
        writing.write(tmp_path / "pipe", "x")


@posix
def test_a_reader_that_stops_reading_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is one who never reads on."""
    monkeypatch.setattr(writing, "SECONDS_TO_READ", 0.1)
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(TimeoutError, match="nobody reads on"):
            writing.write(tmp_path / "pipe", "x" * 1_000_000)
    finally:
        os.close(reader)


@posix
@pytest.mark.parametrize(("device", "error"), [("/dev/null", None), ("/dev/full", errno.ENOSPC)])
def test_a_device_is_written_into(device: str, error: int | None) -> None:
    """It is never replaced; what it cannot take is an error."""
    if not Path(device).exists():
        pytest.skip(f"there is no {device} here")
    before = os.stat(device)
    if error is None:
        writing.write(Path(device), "x" * 100_000)
    else:
        with pytest.raises(OSError, match="No space") as failed:
            writing.write(Path(device), "x")
        assert failed.value.errno == error
    assert os.stat(device).st_ino == before.st_ino


@posix
def test_an_output_of_the_process_goes_on_where_it_is(tmp_path: Path) -> None:
    """A file that standard output was redirected to is neither replaced nor cut, also by way of links to it."""
    out = tmp_path / "out"
    (tmp_path / "link").symlink_to("/dev/stdout")
    code = (
        "import sys; from pathlib import Path; from pytest_modelbudget.system import writing\n"
        "print('first'); writing.write(Path('/dev/stdout'), 'second\\n'); print('third')\n"
        "writing.write(Path('link'), 'fourth\\n'); writing.append(Path('/dev/fd/1'), 'fifth\\n'); print('sixth')\n"
    )
    with out.open("wb") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True, cwd=tmp_path, env=environment())
    assert out.read_text().split() == ["first", "second", "third", "fourth", "fifth", "sixth"]


def environment() -> dict[str, str]:
    """Where a process of its own finds this project."""
    root = str(Path(writing.__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


def test_what_is_no_file_of_its_own(tmp_path: Path) -> None:
    """A plain path names no descriptor, whatever it is called."""
    (tmp_path / "stdout").write_text("")
    assert writing.descriptor_of(tmp_path / "stdout") is None
    assert writing.is_file(tmp_path / "stdout")
    assert not writing.is_file(tmp_path)
    assert not writing.is_file(tmp_path / "missing")


@posix
def test_a_link_that_must_not_be_read_names_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the open files of another user's process: that is told when it is written."""

    def refuse(path: str) -> str:
        raise PermissionError(13, "Permission denied", path)

    (tmp_path / "link").symlink_to("elsewhere")
    monkeypatch.setattr(os, "readlink", refuse)
    assert writing.descriptor_of(tmp_path / "link") is None


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    """They are an error, not a search without end."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert writing.descriptor_of(tmp_path / "a") is None
    with pytest.raises(OSError, match="symbolic links"):
        writing.write(tmp_path / "a", "x")


KILLED = """
import os, signal, sys
from pathlib import Path
from pytest_modelbudget.system import writing
def killed(*_): os.kill(os.getpid(), signal.SIGKILL)
os.replace = killed
writing.write(Path(sys.argv[1]), "half")
"""


@posix
def test_a_killed_write_is_ignored_by_git_and_removed_by_the_next_run(tmp_path: Path) -> None:
    """What was there stays whole; `git add` would add nothing."""
    path = tmp_path / "report.json"
    path.write_text("old")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=environment(), check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 3
    shown = subprocess.run(["git", "status", "--porcelain", "-uall"], cwd=tmp_path, check=True, capture_output=True)
    assert shown.stdout == b"?? report.json\n"
    assert path.read_text() == "old"
    writing.remove_drafts(tmp_path)
    assert names(tmp_path) == [".git", "report.json"]


@posix
def test_a_sweep_leaves_what_others_write(tmp_path: Path) -> None:
    """A draft that is being written, and folders of other names."""
    (tmp_path / ".modelbudget").mkdir()
    with writing.draft_folder(tmp_path) as draft:
        writing.remove_drafts(tmp_path)
        assert draft.is_dir()
    assert names(tmp_path) == [".modelbudget"]
    writing.remove_drafts(tmp_path / "missing")


def test_a_folder_that_another_process_removes_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever deletes its last file takes an empty folder away, also when somebody is about to write there."""
    home, made = tmp_path / "__model_budget__", []

    def mkdtemp(**options: Any) -> str:
        made.append(options)
        if len(made) == 1:
            home.rmdir()
        return original(**options)

    original = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    writing.write(home / "net.yaml", "text\n")
    assert names(home) == ["net.yaml"]
    assert len(made) == 2


def test_one_draft_serves_many_files(tmp_path: Path) -> None:
    """And is gone in the end."""
    with writing.DraftFolders() as drafts:
        for number in range(3):
            writing.write(tmp_path / f"{number}.yaml", "x", made_in=drafts.of(tmp_path))
        assert sum(name.startswith(".modelbudget-") for name in names(tmp_path)) == 1
    assert names(tmp_path) == ["0.yaml", "1.yaml", "2.yaml"]
