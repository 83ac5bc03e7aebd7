"""Files that are read: regular ones alone, within a bound, as UTF-8."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pytest_modelbudget.loading import UnreadableFile, decode_text, is_file, non_file_kind, read_bytes, read_text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One of everything that can lie in the place of a file."""
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    links = {
        "to a file": "file",
        "to nothing": "nowhere",
        "in a circle": "in a circle",
        "to a device": "/dev/zero",
        "to a pipe": "pipe",
    }
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("folder", "a folder"),
        ("pipe", "a pipe"),
        ("to a pipe", "a pipe"),
        ("to a device", "a device"),
        ("in a circle", "not accessible (Too many levels of symbolic links)"),
    ],
)
def test_what_is_no_file_is_refused_at_once(folder: Path, name: str, kind: str) -> None:
    """Nothing waits for a pipe, and nothing reads a device that never ends."""
    assert non_file_kind(folder / name) == kind
    assert not is_file(folder / name)
    with pytest.raises(UnreadableFile, match=r"where a file should be: remove it|cannot be read \(Too many levels"):
        read_bytes(folder / name)


def test_files_and_links_to_them_are_read(folder: Path) -> None:
    """Where nothing lies, that is another error."""
    for name in ("file", "to a file"):
        assert (non_file_kind(folder / name), is_file(folder / name), read_text(folder / name)) == ("", True, "text")
    for name in ("none", "to nothing"):
        assert not is_file(folder / name)
        with pytest.raises(FileNotFoundError):
            read_bytes(folder / name)
    assert (non_file_kind(folder / "none"), non_file_kind(folder / "to nothing")) == ("", "a link to nothing")


def test_a_socket_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would fail with an error of the system's."""
    monkeypatch.chdir(tmp_path)  # the path of a socket has to be short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("s")
        with pytest.raises(UnreadableFile, match="is a socket"):
            read_bytes(Path("s"))


def test_a_name_that_no_file_can_have_is_refused() -> None:
    """As what cannot be read."""
    with pytest.raises(UnreadableFile, match="cannot be read"):
        read_bytes(Path("a\0b"))


def test_a_file_over_the_bound_is_refused(tmp_path: Path) -> None:
    """Sparse ones too; one byte less is read."""
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with path.open("r+b") as file:
        file.truncate(10**12)
    with pytest.raises(UnreadableFile, match="is too large: it has more than 5 bytes"):
        read_bytes(path, 5)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param(b"\xef\xbb\xbfa\n", "a\n", id="a mark before it"),
        pytest.param(b"a\r\nb\rc\n", "a\nb\nc\n", id="line ends of any kind"),
        pytest.param("ä\n".encode(), "ä\n", id="UTF-8"),
    ],
)
def test_text_as_editors_write_it(data: bytes, text: str) -> None:
    """Is the same text."""
    assert decode_text(data) == text


@pytest.mark.parametrize(
    ("data", "line"),
    [
        pytest.param("a\n".encode("utf-16"), 1, id="UTF-16"),
        pytest.param("a\n".encode("utf-32"), 1, id="UTF-32"),
        pytest.param(b"a\nb\n\xff\n", 3, id="junk"),
        pytest.param("a\nä".encode("latin-1"), 2, id="Latin-1"),
        pytest.param(b"\xed\xa0\x80", 1, id="a surrogate"),
    ],
)
def test_other_encodings_are_told_with_the_line(data: bytes, line: int) -> None:
    """And the cure."""
    with pytest.raises(UnreadableFile, match="save it as UTF-8") as caught:
        decode_text(data)
    assert caught.value.line == line
