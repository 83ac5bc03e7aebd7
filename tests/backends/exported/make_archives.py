"""Makes safetensors files and zip archives byte by byte, also such as no library would write."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ZIP64 = 0xFFFFFFFF


def safetensors(path: Path, entries: Mapping[str, Any], data: int = 0, *, header: bytes | None = None) -> Path:
    """A header of `entries` (or the bytes of one), and so many bytes after it, which take no place on the disk."""
    text = json.dumps(entries).encode() if header is None else header
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + data)
    return path


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    """A tensor in a header of safetensors."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def archive(path: Path, members: Mapping[str, bytes | int], folder: str = "m/") -> Path:
    """A zip archive that stores its members; one that is a number has so many bytes, which take no place on the disk."""
    directory = b""
    with path.open("wb") as file:
        for name, content in members.items():
            encoded, size = (folder + name).encode(), content if isinstance(content, int) else len(content)
            place, extra = file.tell(), struct.pack("<HHQQ", 1, 16, size, size)
            crc = 0 if isinstance(content, int) else zlib.crc32(content)
            common = (0x0800, 0, 0, 0, crc, _ZIP64, _ZIP64, len(encoded))
            file.write(struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 45, *common, len(extra)) + encoded + extra)
            if isinstance(content, int):
                file.seek(size, 1)
            else:
                file.write(content)
            extra = struct.pack("<HHQQQ", 1, 24, size, size, place)
            fields = (*common, len(extra), 0, 0, 0, 0, _ZIP64)
            directory += struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 45, 45, *fields) + encoded + extra
        place = file.tell()
        count = len(members)
        file.write(directory)
        end = file.tell()
        file.write(struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), place))
        file.write(struct.pack("<4sIQI", b"PK\6\7", 0, end, 1))
        file.write(struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, _ZIP64, _ZIP64, 0))
    return path
