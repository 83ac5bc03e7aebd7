"""How large the directory of a zip archive is, told before anything reads it: `zipfile` reads and keeps it whole."""

from __future__ import annotations

import re
from typing import BinaryIO

MOST_BYTES = 16 << 20
"""What a directory may take: some 200,000 members with names of their own, 360,000 without."""

_TAIL_BYTES = (1 << 16) + 100
_END, _END_64 = b"PK\x05\x06", b"PK\x06\x06"
_END_BYTES = 22


def directory_bytes(file: BinaryIO, size: int) -> int | None:
    """The size of the directory of an archive of `size` bytes, as its end declares it; None where that is missing.

    Where a comment holds something like an end of its own, the largest that any of them says.
    """
    file.seek(max(size - _TAIL_BYTES, 0))
    tail = file.read(_TAIL_BYTES)
    place = tail.rfind(_END)
    if place < 0 or len(tail) < place + _END_BYTES:
        return None
    declared = int.from_bytes(tail[place + 12 : place + 16], "little")
    of_large_files = (
        int.from_bytes(tail[match.start() + 40 : match.start() + 48], "little")
        for match in re.finditer(re.escape(_END_64), tail)
    )
    return max(declared % 0xFFFFFFFF, *of_large_files, 0)


def problem(declared: int, size: int) -> str:
    """Why a directory that takes so many bytes of a file is not read; empty where it is."""
    if declared <= min(size, MOST_BYTES):
        return ""
    return f"is not read: its zip directory would take {declared:,} bytes, of a file of {size:,}"
