"""Regular files, read within a bound; nothing that is opened here can block, or go on for ever."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from pytest_modelbudget.errors import ModelBudgetError

MOST_BYTES = 32 * 10**6
"""Bytes of a file of ours (a manifest, a snapshot) beyond which it is not read; the largest known have a tenth."""

_NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class UnreadableFile(ModelBudgetError):
    """A file that is not read; the message says why and what to do about it, `line` where in it, when that is known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def non_file_kind(path: Path) -> str:
    """What lies at `path` in place of a file (`a pipe`, `a folder`, ...); empty for a file, and where nothing is."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "a link to nothing" if path.is_symlink() else ""
    except (OSError, ValueError) as error:
        return f"not accessible ({getattr(error, 'strerror', None) or error})"
    return _non_file_kind(mode)


def _non_file_kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return ""
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "no file")


def is_file(path: Path) -> bool:
    """Whether a regular file lies there; False too where that cannot be told."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file, or of one that a link leads to.

    Raises:
        FileNotFoundError: there is none.
        Unreadable: something else lies there, it has more than `most` bytes, or the system refuses it.
    """
    too_large = is_file(path) and os.stat(path).st_size > most
    data = b"" if too_large else read_head(path, most + 1)  # some files of the system say that they have 0 bytes
    if too_large or len(data) > most:
        raise UnreadableFile(f"is too large: it has more than {most:,} bytes, the most that is read of such a file")
    return data


def read_head(path: Path, most: int) -> bytes:
    """The first `most` bytes of a file, or all where it has fewer; see `read_bytes`."""
    with open_file(path) as file:
        try:
            return file.read(most)
        except OSError as error:
            raise _refused(error) from None


def open_file(path: Path) -> BinaryIO:
    """A regular file, or one that a link leads to, opened to be read; see `read_bytes` for what is raised."""
    try:
        _refuse_non_file(os.stat(path).st_mode)  # before it is opened: to open a device may do something
        file = os.fdopen(os.open(path, os.O_RDONLY | _NO_WAITING), "rb")
        try:
            _refuse_non_file(os.fstat(file.fileno()).st_mode)
        except BaseException:
            file.close()
            raise
        return file
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise _refused(error) from None


def _refused(error: Exception) -> UnreadableFile:
    return UnreadableFile(f"cannot be read ({getattr(error, 'strerror', None) or error})")


def _refuse_non_file(mode: int) -> None:
    if kind := _non_file_kind(mode):
        raise UnreadableFile(f"is {kind}, where a file should be: remove it")


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a regular file as `decode_text` gives it; see `read_bytes`."""
    return decode_text(read_bytes(path, most))


def decode_text(data: bytes) -> str:
    """Text of UTF-8 with line ends LF and without the mark that some editors put before it (BOM).

    Raises:
        Unreadable: it is in another encoding, or no text, with the line.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        reason = "not UTF-8 text (binary junk, or another encoding such as UTF-16): save it as UTF-8"
        raise UnreadableFile(reason, line) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
