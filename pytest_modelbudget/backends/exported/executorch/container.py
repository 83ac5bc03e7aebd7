"""The files of ExecuTorch as they lie on disk: a flatbuffer, and segments of bytes after it, of which none is read.

A program (`.pte`) begins with a flatbuffer whose root is `Program`; tensors that are kept beside it (`.ptd`) with one
whose root is `FlatTensor`. A header after the identifier of the flatbuffer says where the segments begin. The formats:
https://docs.pytorch.org/executorch/stable/pte-file-format.html, `schema/program.fbs` and
`extension/flat_tensor/serialize/flat_tensor.fbs` of ExecuTorch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from mmap import ACCESS_READ, mmap
from os import fstat
from pathlib import Path
from struct import unpack_from
from typing import BinaryIO

from pytest_modelbudget.backends.model_files import DamagedFile
from pytest_modelbudget.loading import UnreadableFile, open_file
from pytest_modelbudget.loading.flatbuffer import InvalidFlatbuffer, Table, identifier, root_table

PROGRAM = b"ET12"
TENSORS = b"FT01"
_PROGRAM_HEADER, _TENSORS_HEADER = b"eh00", b"FH01"
_HEAD_BYTES = 64


Span = tuple[int, int]
"""Where some bytes of a file begin, and how many there are."""


@dataclass(frozen=True, slots=True)
class Header:
    """Where the parts of a file end and begin: its first `size` bytes are the flatbuffer with this header."""

    size: int
    segments_start: int
    segments_size: int


@dataclass(frozen=True, slots=True)
class Container:
    """The root table of a file and its segments, all of which lie in the file."""

    root: Table
    segments: tuple[Span, ...]
    file_bytes: int
    _file: BinaryIO

    @property
    def segment_sizes(self) -> tuple[int, ...]:
        """The bytes of each segment."""
        return tuple(size for _, size in self.segments)

    def read(self, begin: int, size: int) -> bytes:
        """Some bytes of the file, which has been checked to have them."""
        self._file.seek(begin)
        return self._file.read(size)


def damaged(reason: str) -> DamagedFile:
    """The refusal of a file that is not whole, or not what ExecuTorch writes."""
    return DamagedFile(f"is damaged: {reason}: fetch it again, or export the model again")


@contextmanager
def opened(path: Path, name: bytes, segments_field: int) -> Iterator[Container]:
    """The file at `path`, whose identifier is `name`; what its root says has to be read inside of this.

    Raises:
        DamagedFile: it is another file, ends too early, or points outside itself.
    """
    try:
        with open_file(path) as file:
            file_bytes = fstat(file.fileno()).st_size
            header = _header(file, name, file_bytes)
            with _mapped(file, header.size) as data:
                root = root_table(data, name)
                yield Container(root, _segments(root, segments_field, header, file_bytes), file_bytes, file)
    except (UnreadableFile, FileNotFoundError) as error:
        raise DamagedFile(str(error)) from None
    except InvalidFlatbuffer as error:
        raise damaged(str(error)) from None


@contextmanager
def _mapped(file: BinaryIO, size: int) -> Iterator[mmap]:
    with mmap(file.fileno(), size, access=ACCESS_READ) as data:
        yield data


def _header(file: BinaryIO, name: bytes, file_bytes: int) -> Header:
    head = file.read(_HEAD_BYTES)
    if (marked := identifier(head)) != name:
        if marked[:2] == name[:2] and marked[2:].isdigit():
            raise DamagedFile(
                f"is of version {marked.decode()} of its format, and {name.decode()} is read: export again"
            )
        raise damaged(f"its identifier is {marked!r} in place of {name!r}")
    header = _stated(head) or Header(file_bytes, 0, 0)
    for what, begin, size in (
        ("program ends", 0, header.size),
        ("segments end", header.segments_start, header.segments_size),
    ):
        if begin + size > file_bytes:
            raise damaged(f"its {what} at byte {begin + size:,}, and the file has {file_bytes:,}")
    if header.size < len(PROGRAM) * 2:
        raise damaged(f"its program has {header.size} bytes")
    return header


def _stated(head: bytes) -> Header | None:
    """What a header says; None where the file has none, since it has no segments."""
    if head[8:12] == _PROGRAM_HEADER and len(head) >= 40:
        length, size, begin, segments_size = unpack_from("<IQQQ", head, 12)
        _check_length(length, 24)
        return Header(size, begin, segments_size if length >= 32 else 0)
    if head[8:12] == _TENSORS_HEADER and len(head) >= 48:
        length, start, size, begin, segments_size = unpack_from("<IQQQQ", head, 12)
        _check_length(length, 40)
        return Header(start + size, begin, segments_size)
    return None


def _check_length(length: int, least: int) -> None:
    if length < least:
        raise damaged(f"its header has {length} bytes in place of {least}")


def _segments(root: Table, field: int, header: Header, file_bytes: int) -> tuple[Span, ...]:
    spans = [
        (segment.integer(0, "uint64"), segment.integer(1, "uint64")) for segment in root.tables(field)
    ]  # an offset from where segments begin, and a size
    if spans and header.segments_start < header.size:
        raise damaged(f"its segments begin at byte {header.segments_start:,}, which is in the program")
    for index, (offset, size) in enumerate(spans):
        if (end := header.segments_start + offset + size) > file_bytes:
            raise damaged(f"segment {index} ends at byte {end:,}, and the file has {file_bytes:,}")
    for (before, size), (after, _) in pairwise(sorted(span for span in spans if span[1])):
        if before + size > after:
            raise damaged(f"its segments overlap at byte {header.segments_start + after:,}")
    return tuple((header.segments_start + offset, size) for offset, size in spans)
