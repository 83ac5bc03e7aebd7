"""Flatbuffers that the builder of the `flatbuffers` package made, whole and with faults put in."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget.loading import flatbuffer
from pytest_modelbudget.loading.flatbuffer import InvalidFlatbuffer, Table, identifier, root_table

flatbuffers = pytest.importorskip("flatbuffers")

_INTEGERS = {
    "bool": 1, "int8": -(2**7), "uint8": 2**8 - 1, "int16": -(2**15), "uint16": 2**16 - 1, "int32": -(2**31),
    "uint32": 2**32 - 1, "int64": -(2**63), "uint64": 2**64 - 1,
}  # fmt: skip


def _table(builder: Any, fields: dict[int, Callable[[int], None]]) -> int:
    builder.StartObject(max(fields, default=-1) + 1)
    for number, add in fields.items():
        add(number)
    return builder.EndObject()


def _vector(builder: Any, items: Sequence[Any], prepend: Callable[[Any], None], size: int = 4) -> int:
    builder.StartVector(size, len(items), size)
    for item in reversed(items):
        prepend(item)
    return builder.EndVector()


def _made(fill: Callable[[Any], int]) -> bytes:
    builder = flatbuffers.Builder()
    builder.Finish(fill(builder), file_identifier=b"TEST")
    return bytes(builder.Output())


def _offset(builder: Any, position: int) -> Callable[[int], None]:
    return lambda number: builder.PrependUOffsetTRelativeSlot(number, position, 0)


def _everything(builder: Any) -> int:
    text = builder.CreateString("Gewicht ü")
    inner = _table(builder, {1: lambda number: builder.PrependInt32Slot(number, 7, 0)})
    empty = _table(builder, {})
    tables = _vector(builder, [inner, empty, inner], builder.PrependUOffsetTRelative)
    texts = _vector(builder, [text, builder.CreateString("")], builder.PrependUOffsetTRelative)
    longs = _vector(builder, [2**62, -1], builder.PrependInt64, 8)
    reals = _vector(builder, [0.5, -2.0], builder.PrependFloat32)
    content = builder.CreateByteVector(b"weights")
    builder.StartVector(8, 2, 4)
    for pair in ((3, 4), (1, 2)):
        builder.PrependInt32(pair[1])
        builder.PrependInt32(pair[0])
    pairs = builder.EndVector()

    def add_struct(number: int) -> None:
        builder.Prep(4, 8)
        builder.PrependUint32(9)
        builder.Pad(2)
        builder.PrependUint16(8)
        builder.PrependStructSlot(number, builder.Offset(), 0)

    return _table(
        builder,
        {
            0: _offset(builder, text),
            1: _offset(builder, inner),
            2: _offset(builder, tables),
            3: _offset(builder, texts),
            4: _offset(builder, longs),
            5: _offset(builder, reals),
            6: _offset(builder, content),
            7: _offset(builder, pairs),
            8: add_struct,
            9: lambda number: builder.PrependUint8Slot(number, 5, 0),
            10: _offset(builder, inner),
            11: lambda number: builder.PrependFloat64Slot(number, 0.1, 0.0),
            12: lambda number: builder.PrependFloat32Slot(number, 0.25, 0.0),
        },
    )


@pytest.mark.parametrize("source", ["bytes", "a mapped file", "a part of a file"])
def test_what_a_builder_wrote_is_read(tmp_path: Path, source: str) -> None:
    """Of each kind of field, from bytes and from a mapped file alike."""
    data: Any = _made(_everything)
    start, size = (0, None) if source != "a part of a file" else (12, len(data))
    if source != "bytes":
        (tmp_path / "file").write_bytes(bytes(start) + data + bytes(start))
        with open(tmp_path / "file", "rb") as file:
            data = mmap(file.fileno(), 0, access=ACCESS_READ)
    assert identifier(data, start) == b"TEST"
    root = root_table(data, b"TEST", start, size)
    assert root.string(0) == "Gewicht ü"
    assert [table.integer(1) for table in (root.table(1), *root.tables(2))] == [7, 7, 0, 7]
    assert list(root.strings(3)) == ["Gewicht ü", ""]
    assert root.integers(4, "int64") == (2**62, -1)
    assert root.reals(5) == (0.5, -2.0)
    begin, count = root.span(6)
    assert data[begin : begin + count] == root.content(6) == b"weights"
    assert list(root.structs(7, "ii")) == [(1, 2), (3, 4)]
    assert root.struct(8, "HxxI") == (8, 9)
    kind, value = root.union(9)
    assert (kind, value.integer(1)) == (5, 7)
    assert (root.real(11, "float64"), root.real(12)) == (0.1, 0.25)


@pytest.mark.parametrize(("kind", "value"), _INTEGERS.items())
def test_a_number_of_each_width(kind: Any, value: int) -> None:
    """Its smallest or largest, and the default where it is left out."""
    slot = f"Prepend{kind.capitalize()}Slot"
    root = root_table(_made(lambda builder: _table(builder, {2: lambda n: getattr(builder, slot)(n, value, 0)})))
    assert [root.integer(field, kind, default=3) for field in (0, 2, 9)] == [3, value, 3]


def test_what_is_left_out() -> None:
    """No text, no table, no elements; nothing is made up."""
    root = root_table(_made(lambda builder: _table(builder, {})), b"TEST")
    for field in (0, 1000):
        assert (root.string(field), root.table(field), root.struct(field, "i"), root.span(field)) == (None,) * 4
        assert (root.integers(field), root.content(field), root.union(field)) == ((), b"", (0, None))
        assert list(root.tables(field)) == list(root.strings(field)) == list(root.structs(field, "i")) == []


def _read_all(data: bytes) -> None:
    root = root_table(data, b"TEST")
    root.string(0), root.integers(4, "int64"), root.reals(5), root.content(6), root.struct(8, "HxxI"), root.union(9)
    root.real(11, "float64")
    for table in (root.table(1), *root.tables(2)):
        _ = table and table.integer(1)
    assert list(root.strings(3)) is not list(root.structs(7, "ii"))


def test_each_part_of_a_file_and_each_wrong_byte_is_read_or_refused() -> None:
    """Nothing but the one error: no other exception, and nothing outside the buffer."""
    whole = _made(_everything)
    for end in range(len(whole) - 4):  # after which a text ends and is filled up
        with pytest.raises(InvalidFlatbuffer):
            _read_all(whole[:end])
    refused = 0
    for position in range(len(whole)):
        for byte in (0, 0x7F, 0xFF):
            try:
                _read_all(whole[:position] + bytes([byte]) + whole[position + 1 :])
            except InvalidFlatbuffer:
                refused += 1
    assert refused > len(whole)


def _chain(builder: Any, tables: int) -> int:
    inner = _table(builder, {})
    for _ in range(tables):
        inner = _table(builder, {0: _offset(builder, inner)})
    return inner


def _down(table: Table | None) -> int:
    depth = 0
    while table := table and table.table(0):
        depth += 1
    return depth


def test_depth_is_bounded() -> None:
    """A hundred tables in each other are read, one more is refused with its place."""
    assert _down(root_table(_made(lambda builder: _chain(builder, 100)))) == 100
    with pytest.raises(InvalidFlatbuffer, match=r"^field \.\.\.(\.0){30} at byte [\d,]+ is deeper than 100 tables$"):
        _down(root_table(_made(lambda builder: _chain(builder, 101))))


def _shared(builder: Any) -> int:
    """Ten levels of vectors that name the next level ten times: 10^10 paths."""
    inner = _table(builder, {})
    for _ in range(10):
        inner = _table(builder, {0: _offset(builder, _vector(builder, [inner] * 10, builder.PrependUOffsetTRelative))})
    return inner


def _walk(table: Table) -> int:
    return 1 + sum(map(_walk, table.tables(0)))


def _repeated(builder: Any) -> int:
    longs = _vector(builder, range(1000), builder.PrependInt64, 8)
    text = builder.CreateString("t" * 64_000)
    inner = _table(builder, {0: _offset(builder, longs), 1: _offset(builder, text)})
    return _table(builder, {0: _offset(builder, _vector(builder, [inner] * 1000, builder.PrependUOffsetTRelative))})


@pytest.mark.parametrize(
    ("fill", "read"),
    [
        pytest.param(_shared, _walk, id="tables that are shared"),
        pytest.param(_repeated, lambda root: [t.integers(0, "int64") for t in root.tables(0)], id="one long vector"),
        pytest.param(_repeated, lambda root: [t.string(1) for t in root.tables(0)], id="one long text"),
        pytest.param(_repeated, lambda root: [t.content(1) for t in root.tables(0)], id="one long content"),
    ],
)
def test_what_a_small_file_repeats_is_bounded(
    monkeypatch: pytest.MonkeyPatch, fill: Callable[[Any], int], read: Callable[[Table], Any]
) -> None:
    """What is read counts, not what is stored."""
    monkeypatch.setattr(flatbuffer, "MOST_VALUES", 50_000)
    with pytest.raises(InvalidFlatbuffer, match=r"^field 0\[.* goes beyond 50,000 values in all$"):
        read(root_table(_made(fill)))


def _patched(position: int, layout: str, value: int) -> bytes:
    data = bytearray(_made(lambda builder: _table(builder, {0: _offset(builder, builder.CreateString("text"))})))
    root = struct.unpack_from("<I", data)[0]
    fields = root - struct.unpack_from("<i", data, root)[0]
    text = root + 4 + struct.unpack_from("<I", data, root + 4)[0]
    struct.pack_into(layout, data, (0, 4, root, fields, fields + 4, root + 4, text, text + 4)[position], value)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(b"", r"^the root at byte 0 needs 8 bytes there, and the buffer has 0$", id="nothing"),
        pytest.param(_patched(0, "<I", 2**32 - 1), "^the root at byte 4,294,967,295 needs 4 bytes", id="root outside"),
        pytest.param(_patched(1, "<I", 0), "has the identifier b'.*' in place of b'TEST'", id="another identifier"),
        pytest.param(_patched(2, "<i", 2**31 - 1), "at byte -2,1.* needs 2 bytes", id="fields before the start"),
        pytest.param(_patched(2, "<i", -(2**31)), "at byte 2,1.* needs 2 bytes", id="fields after the end"),
        pytest.param(_patched(3, "<H", 2), "has a table of fields of 2 bytes", id="fields too short"),
        pytest.param(_patched(3, "<H", 2**16 - 2), "needs 65,534 bytes there", id="fields too long"),
        pytest.param(_patched(4, "<H", 2**16 - 1), "^field 0 at byte 65,.* needs 4 bytes", id="field outside"),
        pytest.param(_patched(5, "<I", 2**31), "^field 0 at byte 2,147,.* needs 4 bytes", id="offset outside"),
        pytest.param(_patched(6, "<I", 2**32 - 1), "needs 4,294,967,295 bytes there", id="a huge count"),
        pytest.param(_patched(7, "<B", 0xFF), "is no text of UTF-8", id="another encoding"),
    ],
)
def test_what_is_refused(data: bytes, words: str) -> None:
    """With the fields that lead there and the byte."""
    with pytest.raises(InvalidFlatbuffer, match=words):
        root_table(data, b"TEST").string(0)
