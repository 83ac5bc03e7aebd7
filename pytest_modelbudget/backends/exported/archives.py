"""Zip archives of strangers: what is in them, by name, and nothing that takes more memory than it may."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pytest_modelbudget.backends import zip_directory
from pytest_modelbudget.backends.model_files import DamagedFile

FETCH_AGAIN = "fetch it again, or save the model again"

_LOCAL_HEADER = 30
"""Bytes ahead of the name of a member; the last four are the sizes of this and of what follows it."""

_ENCRYPTED = 1
_KNOWN_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True, slots=True)
class Archive:
    """An open archive; `members` are by their names below its one folder."""

    zip: zipfile.ZipFile
    file: BinaryIO
    file_bytes: int
    members: Mapping[str, zipfile.ZipInfo]

    def read(self, name: str, most: int) -> bytes:
        """The content of a member of up to `most` bytes, as it was declared."""
        member = self.members[name]
        if member.flag_bits & _ENCRYPTED or member.compress_type not in _KNOWN_COMPRESSIONS:
            raise DamagedFile(f"is no file of torch: {name} in it is encrypted or compressed: save the model again")
        if member.file_size > most:
            raise DamagedFile(
                f"is not read: {name} in it would take {member.file_size:,} bytes, more than the {most:,} that are "
                "read of such a part: save the model in smaller files"
            )
        try:
            with self.zip.open(member) as content:
                raw = content.read(most + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError):
            raise DamagedFile(f"is damaged: {name} in it cannot be read: {FETCH_AGAIN}") from None
        if len(raw) != member.file_size:
            raise DamagedFile(f"is damaged: {name} in it has not the size that is declared: {FETCH_AGAIN}")
        return raw

    def stored_bytes(self, name: str) -> int | None:
        """The size of a member that is stored as it is, without reading it; None where there is none of that name."""
        member = self.members.get(name)
        if member is None:
            return None
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
            raise DamagedFile(f"is no file of torch: {name} in it is compressed or encrypted: save the model again")
        return member.file_size

    @contextmanager
    def nested(self, name: str) -> Iterator[Archive]:
        """Open an archive that is stored as a member of this one."""
        size = self.stored_bytes(name) or 0
        place = self.members[name].header_offset
        self.file.seek(place)
        names = struct.unpack("<HH", self.file.read(_LOCAL_HEADER)[-4:].ljust(4, b"\0"))
        start = place + _LOCAL_HEADER + sum(names)
        if start + size > self.file_bytes:
            raise DamagedFile(f"is damaged: {name} in it ends after the file: {FETCH_AGAIN}")
        with _archive(io.BufferedReader(_Window(self.file, start, size)), size) as archive:
            yield archive


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Open the archive at `path`.

    Raises:
        DamagedFile: it is none, or its members are more than the file can hold.
    """
    with path.open("rb") as file, _archive(file, os.fstat(file.fileno()).st_size) as archive:
        yield archive


@contextmanager
def _archive(file: BinaryIO, size: int) -> Iterator[Archive]:
    _check_directory(file, size)
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, OSError, struct.error, NotImplementedError):
        raise DamagedFile(f"is damaged: its zip directory cannot be read: {FETCH_AGAIN}") from None
    with archive:
        yield Archive(archive, file, size, _members(archive, size))


class _Window(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._place = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = max(base + offset, 0)
        return self._place

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._place)
        part = self._file.read(max(0, min(len(buffer), self._size - self._place)))
        buffer[: len(part)] = part
        self._place += len(part)
        return len(part)


def _check_directory(file: BinaryIO, size: int) -> None:
    """Whether the directory, which is read at once, is of a size that makes sense."""
    if (declared := zip_directory.directory_bytes(file, size)) is None:
        raise DamagedFile(f"is damaged: the end of its zip archive is missing: {FETCH_AGAIN}")
    if problem := zip_directory.problem(declared, size):
        raise DamagedFile(f"{problem}: {FETCH_AGAIN}")


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.partition("/")[2] or member.filename
        if name in members:
            raise DamagedFile(f"is damaged: there is more than one {name[:100]!r} in it: save the model again")
        if member.compress_type == zipfile.ZIP_STORED and member.compress_size != member.file_size:
            raise DamagedFile(f"is damaged: {name[:100]!r} in it has two sizes: {FETCH_AGAIN}")
        members[name] = member
    stored = sum(member.compress_size for member in members.values())
    if stored > size:
        raise DamagedFile(f"is damaged: its parts have {stored:,} bytes, and the file has {size:,}: {FETCH_AGAIN}")
    return members
