"""Tensors that a file stores: their shapes, types and places, checked in whole numbers; what is large is not read."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Literal

from pytest_modelbudget.backends.exported.graph import Constant
from pytest_modelbudget.backends.exported.onnx.wire import Message, Span, damaged
from pytest_modelbudget.backends.model_files import DamagedFile
from pytest_modelbudget.summary import Dim

DTYPES: dict[int, tuple[str, int]] = {
    1: ("float32", 32), 2: ("uint8", 8), 3: ("int8", 8), 4: ("uint16", 16), 5: ("int16", 16), 6: ("int32", 32),
    7: ("int64", 64), 8: ("string", 0), 9: ("bool", 8), 10: ("float16", 16), 11: ("float64", 64), 12: ("uint32", 32),
    13: ("uint64", 64), 14: ("complex64", 64), 15: ("complex128", 128), 16: ("bfloat16", 16),
    17: ("float8_e4m3fn", 8), 18: ("float8_e4m3fnuz", 8), 19: ("float8_e5m2", 8), 20: ("float8_e5m2fnuz", 8),
    21: ("uint4", 4), 22: ("int4", 4), 23: ("float4_e2m1fn", 4), 24: ("float8_e8m0fnu", 8), 25: ("uint2", 2),
    26: ("int2", 2),
}  # fmt: skip
"""Names and bits of an element, by `TensorProto.DataType`."""

_STRING = 8
_DIMS, _TYPE, _NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 8, 9, 13, 14
_TYPED = (4, 5, 6, 7, 10, 11)  # float_data, int32_data, string_data, int64_data, double_data, uint64_data
_FIXED_BYTES = {4: 4, 10: 8}
_PER_ELEMENT = {14: 2, 15: 2}
"""Complex numbers are two entries in `float_data` and `double_data`."""

LARGEST_DIM = 1 << 48
_MOST_AXES = 64
_LARGEST_READ = 2_048
"""Bytes of a tensor whose values are read: shapes and axes."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A stored tensor: `code` is its type, `storage` where it lies, `raw` its bytes where it is small."""

    name: str
    dims: tuple[int, ...]
    code: int
    storage: Hashable
    stored_bytes: int
    raw: bytes | None = None

    @property
    def dtype(self) -> str:
        """The name of its type."""
        return DTYPES[self.code][0]

    @property
    def whole_numbers(self) -> tuple[int, ...] | None:
        """The values of a small tensor of int32 or int64, None of others."""
        letter = {6: "i", 7: "q"}.get(self.code)
        return None if letter is None or self.raw is None else struct.unpack(f"<{prod(self.dims)}{letter}", self.raw)

    def constant(self, role: Literal["param", "buffer"]) -> Constant:
        """As a constant of the model."""
        return Constant(self.dims, self.dtype, self.storage, role, self.stored_bytes)


def checked_dim(dim: int, what: str) -> int:
    """A dimension that can be.

    Raises:
        DamagedFile: it is below 0 or beyond all memories.
    """
    if not 0 <= dim < LARGEST_DIM:
        raise damaged(f"{what} has a dimension of {dim:,}")
    return dim


@dataclass(slots=True)
class DataFolder:
    """The folder of a model's file, and the files in it that hold its weights: their sizes, and which parts are taken.

    Caches of downloads lay files where they like and links to them side by side: a data file may also be a link into
    the folder that the model's file is a link into.
    """

    model: Path
    sizes: dict[str, int] = field(default_factory=dict)
    taken: dict[str, set[Span]] = field(default_factory=lambda: defaultdict(set))

    def size(self, location: str, name: str) -> int:
        """The bytes of a data file.

        Raises:
            DamagedFile: it is not in the folder.
        """
        if location not in self.sizes:
            self.sizes[location] = self._size(location, name)
        return self.sizes[location]

    def _size(self, location: str, name: str) -> int:
        inside = "only files in the folder of the model are read: export it again with its data beside it"
        path = Path(location)
        if not location or "\0" in location or path.is_absolute() or ".." in path.parts or "\\" in location:
            raise DamagedFile(f"keeps the weights {name!r} in {location!r}: {inside}")
        try:
            real = (self.model.parent / path).resolve()
            if not {self.model.parent.resolve(), self.model.resolve().parent} & set(real.parents):
                raise DamagedFile(
                    f"keeps the weights {name!r} in {location!r}, which leads out of its folder: {inside}"
                )
            if not real.is_file():
                raise DamagedFile(
                    f"keeps its weights in {location!r}, and there is no such file beside it: put it there"
                )
            return real.stat().st_size
        except (OSError, RuntimeError) as error:
            raise DamagedFile(f"keeps its weights in {location!r}, which cannot be read: {error}") from None

    def take(self, location: str, span: Span, name: str) -> None:
        """Note which part of a data file a tensor has.

        Raises:
            DamagedFile: the file ends before it.
        """
        if span[1] > (size := self.size(location, name)):
            raise damaged(f"{name!r} ends at byte {span[1]:,} of {location!r}, which has {size:,}")
        self.taken[location].add(span)

    def check_overlaps(self) -> None:
        """Tensors have the same bytes or others.

        Raises:
            DamagedFile: two overlap.
        """
        for location, spans in self.taken.items():
            end = 0
            for span in sorted(spans):
                if span[0] < end and span[1] > span[0]:
                    raise damaged(f"two tensors overlap in {location!r} at byte {span[0]:,}")
                end = max(end, span[1])


def tensor(message: Message, folder: DataFolder, fallback_name: str = "") -> Tensor:
    """The tensor of a `TensorProto`.

    Raises:
        DamagedFile: it is not stored as it says.
    """
    name = message.text(_NAME) or fallback_name
    message.what = f"the tensor {name!r}"
    code = message.number(_TYPE)
    dims = message.numbers(_DIMS)
    if code not in DTYPES:
        raise damaged(f"{message.what} has the unknown type {code}")
    if dims is None or len(dims) > _MOST_AXES:
        raise damaged(f"{message.what} has more than {_MOST_AXES} axes")
    dims = tuple(checked_dim(dim, message.what) for dim in dims)
    elements = prod(dims)
    nbytes = (elements * DTYPES[code][1] + 7) // 8
    if message.number(_LOCATION) == 1:
        return Tensor(name, dims, code, _external(message, folder, name, nbytes), nbytes)
    if code == _STRING:
        return Tensor(name, dims, code, message.span[0], _text_bytes(message, elements))
    if (raw := message.last(_RAW)) is not None:
        if raw[1] - raw[0] != nbytes:
            raise damaged(f"{message.what} of {nbytes:,} bytes has {raw[1] - raw[0]:,}")
        small = message.raw(_RAW) if nbytes <= _LARGEST_READ else None
        return Tensor(name, dims, code, message.span[0], nbytes, small)
    return Tensor(name, dims, code, message.span[0], nbytes, _typed(message, code, elements, nbytes))


def sparse_tensor(message: Message, folder: DataFolder) -> Tensor:
    """The tensor of a `SparseTensorProto`, as it stands for, with the bytes of its values and places."""
    parts = [tensor(part, folder) for field_ in (1, 2) for part in message.messages(field_, "a sparse tensor")]
    dims = message.numbers(3)
    if len(parts) != 2 or dims is None or len(dims) > _MOST_AXES:
        raise damaged("a sparse tensor has no values, places or shape")
    values, places = parts
    shape = tuple(checked_dim(dim, f"the tensor {values.name!r}") for dim in dims)
    if prod(values.dims) > prod(shape):
        raise damaged(f"the sparse tensor {values.name!r} has more values than elements")
    return Tensor(values.name, shape, values.code, message.span[0], values.stored_bytes + places.stored_bytes)


def _external(message: Message, folder: DataFolder, name: str, nbytes: int) -> Hashable:
    entries = {entry.text(1): entry.text(2) for entry in message.messages(_EXTERNAL, message.what)}
    location = entries.get("location", "")
    offset, length = (_whole(entries.get(key), message.what, key) for key in ("offset", "length"))
    if message.number(_TYPE) == _STRING or (length is not None and length != nbytes):
        raise damaged(f"{message.what} of {nbytes:,} bytes has {length or 0:,} in {location!r}")
    begin = offset or 0
    folder.take(location, (begin, begin + nbytes), name)
    return (location, begin, nbytes) if nbytes else message.span[0]


def _whole(text: str | None, what: str, key: str) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise damaged(f"{what} has no whole number as {key}")
    return int(text)


def _text_bytes(message: Message, elements: int) -> int:
    spans = message.spans(6)
    if len(spans) != elements:
        raise damaged(f"{message.what} of {elements:,} texts has {len(spans):,}")
    return sum(end - begin for begin, end in spans)


def _typed(message: Message, code: int, elements: int, nbytes: int) -> bytes | None:
    """The values of a small tensor that is not stored as bytes; the number of entries of others is checked."""
    entries = elements * _PER_ELEMENT.get(code, 1)
    if DTYPES[code][1] < 8:
        entries = nbytes  # two or four in one
    if not entries:
        return b""
    for number in _TYPED:
        if number in message.fields:
            fewest, most = _entries(message, number)
            if not fewest <= entries <= most:
                raise damaged(f"{message.what} of {elements:,} elements has {most:,} numbers at most")
            return _small_values(message, number, code) if nbytes <= _LARGEST_READ else None
    raise damaged(f"{message.what} of {elements:,} elements has no data")


def _entries(message: Message, number: int) -> tuple[int, int]:
    """The fewest and the most entries that the bytes of a repeated field can be."""
    spans = [value[1] - value[0] for value in message.fields[number] if isinstance(value, tuple)]
    alone = len(message.fields[number]) - len(spans)
    if number in _FIXED_BYTES:
        exact = alone + sum(spans) // _FIXED_BYTES[number]
        return exact, exact
    return alone + sum(-(-length // 10) for length in spans), alone + sum(spans)


def _small_values(message: Message, number: int, code: int) -> bytes | None:
    if code not in (1, 6, 7):
        return None
    if code == 1:
        values = message.floats(4)
        return None if values is None else struct.pack(f"<{len(values)}f", *values)
    numbers = message.numbers(5 if code == 6 else 7)
    if numbers is None or number != (5 if code == 6 else 7):
        return None
    if len(numbers) != prod(message.numbers(_DIMS) or ()):
        raise damaged(f"{message.what} has {len(numbers):,} numbers")
    width, letter = (32, "i") if code == 6 else (64, "q")
    return struct.pack(f"<{len(numbers)}{letter}", *(_wrapped(number, width) for number in numbers))


def _wrapped(number: int, width: int) -> int:
    """A number in so many bits, the first the sign."""
    number &= (1 << width) - 1
    return number - (1 << width) if number >> (width - 1) else number


def dims_of_shape(message: Message) -> Iterator[Dim]:
    """The dimensions of a `TensorShapeProto`, symbolic ones as the file writes them."""
    for dim in message.messages(1, message.what):
        if 1 in dim.fields:
            size = dim.number(1)
            yield None if size == -1 else checked_dim(size, message.what)
        else:
            yield dim.text(2) or None
