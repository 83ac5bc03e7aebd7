"""Flatbuffers of plain dictionaries, so that a test writes the file it needs, whole or wrong.

A table is a dictionary by the numbers of its fields: a number or a truth value (of whatever size: the first bytes of eight
are its own), a text, bytes, a table, a list of tables or texts, a list of numbers of 4 bytes, or `Longs` of 8.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any


class Longs(list[int]):
    """Numbers of 8 bytes."""


def flatbuffer(root: Mapping[int, Any], identifier: bytes) -> bytes:
    """The file of a root table."""
    out = bytearray(4) + identifier
    _point(out, 0, lambda: _table(out, root))
    return bytes(out)


def _point(out: bytearray, slot: int, write: Callable[[], int]) -> None:
    """Have the offset at `slot` lead to what is written."""
    position = write()
    out[slot : slot + 4] = struct.pack("<I", position - slot)


def _table(out: bytearray, fields: Mapping[int, Any]) -> int:
    _align(out)
    count = max(fields, default=-1) + 1
    places = {number: 8 + 8 * place for place, number in enumerate(fields)}
    entries = [places.get(number, 0) for number in range(count)]
    numbers = len(out)
    out += struct.pack(f"<HH{count}H", 4 + 2 * count, 8 + 8 * len(fields), *entries)
    _align(out)
    start = len(out)
    out += struct.pack("<i4x", start - numbers) + bytes(8 * len(fields))
    for number, value in fields.items():
        _field(out, start + places[number], value)
    return start


def _field(out: bytearray, slot: int, value: Any) -> None:
    if isinstance(value, int):
        out[slot : slot + 8] = struct.pack("<Q", value & (2**64 - 1))
    elif isinstance(value, Mapping):
        _point(out, slot, lambda: _table(out, value))
    elif isinstance(value, (str, bytes)):
        _point(out, slot, lambda: _text(out, value))
    else:
        _point(out, slot, lambda: _vector(out, value))


def _text(out: bytearray, value: str | bytes) -> int:
    content = value.encode() if isinstance(value, str) else value
    _align(out)
    start = len(out)
    out += struct.pack("<I", len(content)) + content + bytes(1)
    return start


def _vector(out: bytearray, items: list[Any]) -> int:
    _align(out)
    if isinstance(items, Longs):
        out += bytes(4)  # the numbers lie at multiples of eight
    start = len(out)
    out += struct.pack("<I", len(items))
    if not items or isinstance(items[0], int):
        out += struct.pack(f"<{len(items)}{'q' if isinstance(items, Longs) else 'i'}", *items)
        return start
    out += bytes(4 * len(items))
    for index, item in enumerate(items):
        write = (
            (lambda item=item: _table(out, item)) if isinstance(item, Mapping) else (lambda item=item: _text(out, item))
        )
        _point(out, start + 4 + 4 * index, write)
    return start


def _align(out: bytearray) -> None:
    out += bytes(-len(out) % 8)
