"""Protocol buffers as they lie in a file, walked without copying: what is long is a span, and stays where it is.

Source: https://protobuf.dev/programming-guides/encoding (varints, fixed numbers, length-delimited spans).
"""

from __future__ import annotations

import mmap
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_modelbudget.backends.model_files import DamagedFile

CURE = "fetch it again, or export the model again"

_MOST_FIELDS = 1_500_000
"""So many fields take about 2 s and 250 MB; a model of 20,000 operators has half of them."""

_LONGEST_TEXT = 65_536
_MOST_NUMBERS = 4_096
_VARINT, _FIXED64, _SPAN, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10

Span = tuple[int, int]
"""Where something begins and ends in the file."""


def damaged(what: str) -> DamagedFile:
    """The refusal of a file that is not what its format says."""
    return DamagedFile(f"is damaged: {what}: {CURE}")


@dataclass(slots=True)
class Wire:
    """The bytes of a file, of which so many fields may still be read."""

    data: bytes | mmap.mmap
    left: int = _MOST_FIELDS

    def message(self, span: Span, what: str = "the file") -> Message:
        """The fields of the message at `span`.

        Raises:
            DamagedFile: it is no message, or the file has too many fields.
        """
        fields: defaultdict[int, list[int | Span]] = defaultdict(list)
        for number, value in self._fields(*span, what):
            fields[number].append(value)
        return Message(self, fields, what, span)

    def _fields(self, position: int, end: int, what: str) -> Iterator[tuple[int, int | Span]]:
        while position < end:
            self.left -= 1
            if self.left < 0:
                raise DamagedFile(f"has more than {_MOST_FIELDS:,} fields: split the model, or export it again")
            tag, position = self._varint(position, end, what)
            value: int | Span
            if (kind := tag & 7) == _SPAN:
                length, begin = self._varint(position, end, what)
                position = begin + length
                value = begin, position
            elif kind == _VARINT:
                value, position = self._varint(position, end, what)
            elif kind in (_FIXED32, _FIXED64):
                begin, position = position, position + (4 if kind == _FIXED32 else 8)
                value = int.from_bytes(bytes(self.data[begin : min(position, end)]), "little")
            else:
                raise damaged(f"{what} has a field of the unknown kind {kind}")
            if position > end or not tag >> 3:
                raise damaged(f"{what} ends in the middle of a field")
            yield tag >> 3, value

    def _varint(self, position: int, end: int, what: str) -> tuple[int, int]:
        data = self.data
        if position < end and (byte := data[position]) < 128:  # most are of one byte
            return byte, position + 1
        number = 0
        for index, place in enumerate(range(position, min(end, position + _LONGEST_VARINT))):
            byte = data[place]
            number |= (byte & 127) << (7 * index)
            if byte < 128:
                return number & (1 << 64) - 1, place + 1
        raise damaged(f"{what} ends in the middle of a number")

    def packed(self, span: Span, what: str) -> list[int]:
        """The varints that stand one after the other in a span."""
        position, end = span
        numbers = []
        while position < end:
            number, position = self._varint(position, end, what)
            numbers.append(number)
        return numbers


@dataclass(slots=True)
class Message:
    """The fields of a message by their numbers; `what` names it in refusals."""

    wire: Wire
    fields: defaultdict[int, list[int | Span]]
    what: str
    span: Span

    def spans(self, field: int) -> list[Span]:
        """Where the messages, texts or bytes of a field lie."""
        values = self.fields.get(field, [])
        spans = [value for value in values if isinstance(value, tuple)]
        if len(spans) < len(values):
            raise damaged(f"{self.what} has a number in field {field}, where none belongs")
        return spans

    def messages(self, field: int, what: str) -> Iterator[Message]:
        """The messages of a field."""
        return (self.wire.message(span, what) for span in self.spans(field))

    def last(self, field: int) -> Span | None:
        """The last span of a field, which is the one that counts."""
        spans = self.spans(field)
        return spans[-1] if spans else None

    def number(self, field: int, default: int = 0) -> int:
        """A number, as signed 64 bits."""
        values = self.fields.get(field)
        if not values:
            return default
        if isinstance(value := values[-1], tuple):
            raise damaged(f"{self.what} has no number in field {field}, where one belongs")
        return signed(value)

    def float32(self, field: int) -> float:
        """A number of 32 bits with a fraction."""
        return floats((self.number(field) & (1 << 32) - 1).to_bytes(4, "little"))[0]

    def raw(self, field: int, longest: int = _LONGEST_TEXT) -> bytes:
        """The bytes of a field, empty without it."""
        span = self.last(field)
        return b"" if span is None else self._bytes(span, longest)

    def text(self, field: int) -> str:
        """The text of a field, empty without it."""
        return self.raw(field).decode("utf-8", "replace")

    def texts(self, field: int) -> tuple[str, ...]:
        """All texts of a field."""
        return tuple(self._bytes(span).decode("utf-8", "replace") for span in self.spans(field))

    def numbers(self, field: int) -> tuple[int, ...] | None:
        """The signed numbers of a repeated field, packed or not; None where they are too many to be read."""
        numbers: list[int] = []
        for value in self.fields.get(field, ()):
            if not isinstance(value, tuple):
                numbers.append(value)
            elif value[1] - value[0] > _MOST_NUMBERS:
                return None
            else:
                numbers += self.wire.packed(value, self.what)
        return tuple(map(signed, numbers)) if len(numbers) <= _MOST_NUMBERS else None

    def floats(self, field: int) -> tuple[float, ...] | None:
        """The numbers of 32 bits of a repeated field, packed or not; None where they are too many to be read."""
        values = self.fields.get(field, [])
        data = [
            self._bytes(value) if isinstance(value, tuple) else (value & (1 << 32) - 1).to_bytes(4, "little")
            for value in values[:_MOST_NUMBERS]
            if not isinstance(value, tuple) or value[1] - value[0] <= 4 * _MOST_NUMBERS
        ]
        return floats(b"".join(data)) if len(data) == len(values) else None

    def _bytes(self, span: Span, longest: int = _LONGEST_TEXT) -> bytes:
        begin, end = span
        if end - begin > longest:
            raise damaged(f"{self.what} has a text of {end - begin:,} bytes")
        return bytes(self.wire.data[begin:end])


def signed(number: int) -> int:
    """64 bits, of which the first is the sign."""
    return number - (1 << 64) if number >> 63 else number


def floats(data: bytes) -> tuple[float, ...]:
    """Numbers of 32 bits, of which a rest is left out."""
    return struct.unpack(f"<{len(data) // 4}f", data[: len(data) // 4 * 4])
