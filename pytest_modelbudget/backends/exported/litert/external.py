"""Buffers that lie in files beside the flatbuffer; none outside its folder is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytest_modelbudget.backends.exported.litert import schema
from pytest_modelbudget.backends.model_files import DamagedFile
from pytest_modelbudget.loading.flatbuffer import Table


@dataclass(frozen=True, slots=True)
class Slice:
    """Bytes of a file, which is named when it is not the flatbuffer itself."""

    file: str
    begin: int
    size: int


class ExternalBuffers:
    """The buffers of other files by their numbers; a file is asked for its size when a tensor lies in it."""

    def __init__(self, model: Table, path: Path) -> None:
        self._folder = path.parent
        self._names = [group.string(0) or "" for group in model.tables(schema.Model.EXTERNAL_GROUPS)]
        self._sizes: dict[str, int] = {}
        self._buffers = {
            buffer.integer(schema.ExternalBuffer.ID, "uint32"): buffer
            for buffer in model.tables(schema.Model.EXTERNAL_BUFFERS)
        }

    @property
    def file_bytes(self) -> int:
        """Bytes of all files in which tensors lie."""
        return sum(self._sizes.values())

    def slice(self, number: int, shown: str) -> Slice:
        """Where the buffer of a tensor lies.

        Raises:
            DamagedFile: there is no such buffer, or its file is not there, too short, or outside the folder.
        """
        buffer = self._buffers.get(number)
        if buffer is None:
            raise DamagedFile(f"is damaged: {shown} has the external buffer {number}, which it does not list")
        group = buffer.integer(schema.ExternalBuffer.GROUP, "uint32")
        if group >= len(self._names):
            raise DamagedFile(f"is damaged: {shown} lies in file number {group}, and {len(self._names)} are named")
        name = self._names[group]
        begin, size = (
            buffer.integer(field, "uint64") for field in (schema.ExternalBuffer.OFFSET, schema.ExternalBuffer.LENGTH)
        )
        if begin + size > (available := self._size(name)):
            raise DamagedFile(
                f"needs {begin + size:,} bytes of {name!r} for {shown}, and that file has {available:,}: fetch both "
                "again"
            )
        return Slice(name, begin, size)

    def _size(self, name: str) -> int:
        if name not in self._sizes:
            self._sizes[name] = _size_inside(self._folder, name)
        return self._sizes[name]


def _size_inside(folder: Path, name: str) -> int:
    shown = f"keeps weights in {name[:200]!r}"
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise DamagedFile(f"{shown}, outside its folder: put all files of a model into one folder")
        if path.is_file():
            return path.stat().st_size
    except (OSError, RuntimeError, ValueError):  # a name that no file can have, links in a circle
        raise DamagedFile(f"{shown}, which cannot be read: fetch that file too") from None
    raise DamagedFile(f"{shown}, which is not there: put that file beside it")
