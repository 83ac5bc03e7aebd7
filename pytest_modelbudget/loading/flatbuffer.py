"""Flatbuffers as plain data, over bytes or a mapped file: tables by the numbers of their fields, nothing generated.

    program = root_table(data, b"ET12")
    names = [plan.string(0) for plan in program.tables(1)]

A field is absent where the file leaves it out: its default, None, or no elements. Each offset, length and table of
fields is checked against the buffer before it is followed, depth and the number of all that is read are bounded, and
nothing but what is asked for is read: of a vector of bytes `span` says where it lies. Offsets lead forward, so that no
table can contain itself. The format: https://flatbuffers.dev/internals
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from mmap import mmap
from struct import Struct, unpack_from
from typing import Literal, TypeVar

Integer = Literal["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
Real = Literal["float32", "float64"]

DEEPEST = 100
"""Tables inside each other."""

MOST_VALUES = 2_000_000
"""Tables, elements of vectors and pieces of text that are read of a buffer, those that are shared counted each time."""

_BYTES_PER_VALUE = 64
_LONGEST_PATH = 60
_CODES = {
    "bool": "?", "int8": "b", "uint8": "B", "int16": "h", "uint16": "H", "int32": "i", "uint32": "I", "int64": "q",
    "uint64": "Q", "float32": "f", "float64": "d",
}  # fmt: skip
_SCALARS = {kind: Struct(f"<{code}") for kind, code in _CODES.items()}
_UINT16, _INT32, _UINT32 = _SCALARS["uint16"], _SCALARS["int32"], _SCALARS["uint32"]
_IDENTIFIER_END = 8
_Element = TypeVar("_Element")


class InvalidFlatbuffer(ValueError):
    """A flatbuffer that is not read: why, `place`, the numbers of the fields that lead there, and `offset` in bytes."""

    def __init__(self, reason: str, place: str, offset: int) -> None:
        super().__init__(f"{place} at byte {offset:,} {reason}")
        self.place = place
        self.offset = offset


@dataclass(frozen=True, slots=True)
class _Place:
    """How a table or an element is reached: `field 1[3].0`."""

    depth: int = 0
    step: str = ""
    above: _Place | None = None

    def at_field(self, field: int) -> _Place:
        return _Place(self.depth + 1, f".{field}", self)

    def at_element(self, index: int) -> _Place:
        return _Place(self.depth, f"[{index}]", self)

    def __str__(self) -> str:
        steps: list[str] = []
        place: _Place | None = self
        while place:
            steps.append(place.step)
            place = place.above
        path = "".join(reversed(steps)).lstrip(".")
        shown = path if len(path) <= _LONGEST_PATH else f"...{path[-_LONGEST_PATH:]}"
        return f"field {shown}" if path else "the root"


class _Buffer:
    """The bytes of one flatbuffer and how much may still be read of it."""

    __slots__ = ("_left", "data", "end", "start")

    def __init__(self, data: bytes | mmap, start: int, end: int) -> None:
        self.data = data
        self.start = start
        self.end = end
        self._left = MOST_VALUES

    def check(self, position: int, size: int, place: object) -> int:
        """`position`, where `size` bytes from there lie in the buffer."""
        if self.start <= position and 0 <= size <= self.end - position:
            return position
        length = self.end - self.start
        raise InvalidFlatbuffer(f"needs {size:,} bytes there, and the buffer has {length:,}", str(place), position)

    def charge(self, count: int, place: object, position: int) -> None:
        self._left -= count
        if self._left < 0:
            raise InvalidFlatbuffer(f"goes beyond {MOST_VALUES:,} values in all", str(place), position)

    def scalar(self, scalar: Struct, position: int, place: object) -> int:
        value: int = scalar.unpack_from(self.data, self.check(position, scalar.size, place))[0]
        return value

    def follow(self, position: int, place: object) -> int:
        """What the offset at `position` leads to."""
        return position + self.scalar(_UINT32, position, place)

    def vector(self, position: int, size: int, place: object) -> tuple[int, int]:
        """The position and number of the elements, of `size` bytes each, of the vector at `position`."""
        count = self.scalar(_UINT32, position, place)
        return self.check(position + _UINT32.size, count * size, place), count

    def content(self, position: int, place: object) -> bytes:
        """The bytes of a vector of bytes."""
        begin, count = self.vector(position, 1, place)
        self.charge(1 + count // _BYTES_PER_VALUE, place, position)
        return self.data[begin : begin + count]

    def text(self, position: int, place: object) -> str:
        try:
            return self.content(position, place).decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidFlatbuffer("is no text of UTF-8", str(place), position) from None


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a flatbuffer; its methods raise `InvalidFlatbuffer` for what does not lie in the buffer.

    Fields are numbered from 0 in the order of the schema; a union is two fields, its type and its value.
    """

    _buffer: _Buffer
    _position: int
    _fields: int
    _fields_size: int
    _place: _Place

    def integer(self, field: int, kind: Integer = "int32", default: int = 0) -> int:
        """A whole number, an enum or a boolean."""
        position = self._field(field)
        return self._buffer.scalar(_SCALARS[kind], position, self._at(field)) if position else default

    def real(self, field: int, kind: Real = "float32", default: float = 0.0) -> float:
        """A floating-point number."""
        position = self._field(field)
        return self._buffer.scalar(_SCALARS[kind], position, self._at(field)) if position else default

    def string(self, field: int) -> str | None:
        """A text."""
        position = self._field(field)
        place = self._at(field)
        return self._buffer.text(self._buffer.follow(position, place), place) if position else None

    def table(self, field: int) -> Table | None:
        """A table in this one."""
        position = self._field(field)
        place = self._at(field)
        return _table(self._buffer, self._buffer.follow(position, place), place) if position else None

    def union(self, field: int) -> tuple[int, Table | None]:
        """The type of a union of tables, 0 for none, and the table; `field` is that of the type."""
        kind = self.integer(field, "uint8")
        return kind, self.table(field + 1) if kind else None

    def struct(self, field: int, layout: str) -> tuple[int | float, ...] | None:
        """A struct, whose `layout` is one of the module `struct`, with padding and without a byte order: `HHI`."""
        position = self._field(field)
        return self._unpack(f"<{layout}", position, self._at(field)) if position else None

    def span(self, field: int, size: int = 1) -> tuple[int, int] | None:
        """Where the elements of a vector begin, in bytes from the start of the data, and their number; none is read.

        `size` is that of an element in bytes.
        """
        position = self._field(field)
        place = self._at(field)
        return self._buffer.vector(self._buffer.follow(position, place), size, place) if position else None

    def content(self, field: int) -> bytes:
        """A copy of a vector of bytes."""
        position = self._field(field)
        place = self._at(field)
        return self._buffer.content(self._buffer.follow(position, place), place) if position else b""

    def integers(self, field: int, kind: Integer = "int32") -> tuple[int, ...]:
        """A vector of whole numbers."""
        return self._scalars(field, kind)

    def reals(self, field: int, kind: Real = "float32") -> tuple[float, ...]:
        """A vector of floating-point numbers."""
        return self._scalars(field, kind)

    def structs(self, field: int, layout: str) -> Iterator[tuple[int | float, ...]]:
        """A vector of structs; see `struct`."""
        size = Struct(f"<{layout}").size
        return self._elements(field, size, lambda position, place: self._unpack(f"<{layout}", position, place))

    def strings(self, field: int) -> Iterator[str]:
        """A vector of texts."""
        buffer = self._buffer
        return self._elements(field, 4, lambda position, place: buffer.text(buffer.follow(position, place), place))

    def tables(self, field: int) -> Iterator[Table]:
        """A vector of tables."""
        buffer = self._buffer
        return self._elements(field, 4, lambda position, place: _table(buffer, buffer.follow(position, place), place))

    def _field(self, field: int) -> int:
        """Where the content of a field lies, 0 where it is absent."""
        entry = 4 + 2 * field
        if entry + 2 > self._fields_size:
            return 0
        offset: int = _UINT16.unpack_from(self._buffer.data, self._fields + entry)[0]
        return self._position + offset if offset else 0

    def _at(self, field: int) -> _Place:
        return self._place.at_field(field)

    def _unpack(self, layout: str, position: int, place: _Place) -> tuple[int | float, ...]:
        self._buffer.check(position, Struct(layout).size, place)
        return unpack_from(layout, self._buffer.data, position)

    def _scalars(self, field: int, kind: Integer | Real) -> tuple[int, ...]:
        span = self.span(field, _SCALARS[kind].size)
        if span is None:
            return ()
        begin, count = span
        self._buffer.charge(1 + count, self._at(field), begin)
        return unpack_from(f"<{count}{_CODES[kind]}", self._buffer.data, begin)

    def _elements(self, field: int, size: int, read: Callable[[int, _Place], _Element]) -> Iterator[_Element]:
        begin, count = self.span(field, size) or (0, 0)
        place = self._at(field)
        for index in range(count):
            position = begin + index * size
            self._buffer.charge(1, place, position)
            yield read(position, place.at_element(index))


def identifier(data: bytes | mmap, start: int = 0) -> bytes:
    """The four bytes by which a file format marks its flatbuffers; fewer where the data end before."""
    return data[start + 4 : start + _IDENTIFIER_END]


def root_table(data: bytes | mmap, name: bytes = b"", start: int = 0, size: int | None = None) -> Table:
    """The root table of the flatbuffer in `data` from `start` on, of `size` bytes (None: up to the end of the data).

    Raises:
        InvalidFlatbuffer: its identifier is not `name` (empty: not asked), or the root is outside the buffer.
    """
    buffer = _Buffer(data, start, len(data) if size is None else start + size)
    root = _Place()
    if buffer.end > len(data):
        raise InvalidFlatbuffer(f"needs {size:,} bytes there, and the data end at {len(data):,}", str(root), start)
    if name:
        buffer.check(start, _IDENTIFIER_END, root)
        if identifier(data, start) != name:
            raise InvalidFlatbuffer(
                f"has the identifier {identifier(data, start)!r} in place of {name!r}", str(root), 4
            )
    return _table(buffer, buffer.follow(start, root), root)


def _table(buffer: _Buffer, position: int, place: _Place) -> Table:
    if place.depth > DEEPEST:
        raise InvalidFlatbuffer(f"is deeper than {DEEPEST} tables", str(place), position)
    buffer.charge(1, place, position)
    fields = position - buffer.scalar(_INT32, position, place)
    fields_size = buffer.scalar(_UINT16, fields, place)
    if fields_size < 4 or fields_size % 2:
        raise InvalidFlatbuffer(f"has a table of fields of {fields_size} bytes", str(place), fields)
    buffer.check(fields, fields_size, place)
    return Table(buffer, position, fields, fields_size, place)
