"""ONNX files that are damaged, or made to harm whoever reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_modelbudget.backends.exported.onnx import read
from pytest_modelbudget.backends.model_files import DamagedFile
from tests.backends.exported.onnx_files import HEAD, external, field, raw_tensor, varint


def model_of(*nodes: bytes, rest: bytes = b"") -> bytes:
    return HEAD + field(7, b"".join(field(1, made) for made in nodes) + rest)


def _nested(depth: int) -> bytes:
    made = field(4, b"If")
    for _ in range(depth):
        made = field(4, b"If") + field(5, field(1, b"then_branch") + field(6, field(1, made)) + b"\xa0\x01\x05")
    return made


def _doubling(calls: int) -> bytes:
    """Functions that each call the next one twice."""
    call = [field(4, b"f%d" % index) + field(7, b"own") for index in range(calls + 1)]
    functions = (field(1, b"f%d" % index) + field(7, call[index + 1]) * 2 + field(10, b"own") for index in range(calls))
    return model_of(call[0]) + b"".join(varint(25 << 3 | 2) + varint(len(text)) + text for text in functions)


def _calls_itself() -> bytes:
    call = field(4, b"f") + field(7, b"own")
    function = field(1, b"f") + field(7, call) + field(10, b"own")
    return model_of(call) + varint(25 << 3 | 2) + varint(len(function)) + function


_RELU = field(4, b"Relu") + field(1, b"x") + field(2, b"y")
_SHAPE = field(1, b"v") + field(2, field(1, b"\x08\x01" + field(2, field(1, b"\x08" + varint(1 << 62)))))

HOSTILE = {
    "cut short": (model_of(_RELU)[:-3], "is damaged: .*ends in the middle"),
    "no protocol buffer": (b"\x08\x0a" + bytes(range(3, 90)), "is damaged"),
    "another protocol buffer": (b"\x08\x0a" + field(2, b"text"), "is no ONNX model"),
    "a number that does not end": (b"\x08" + b"\xff" * 30, "ends in the middle of a number"),
    "a text for a graph's number": (b"\x38\x05" + HEAD, "has a number in field 7"),
    "a dimension of 2^62": (model_of(rest=raw_tensor((1 << 62,), b"")), "has a dimension of 4,611,686,018,427,387,904"),
    "a dimension of -4": (model_of(rest=raw_tensor((-4,), b"")), "has a dimension of -4"),
    "a value of 2^62": (model_of(rest=field(13, _SHAPE)), "the value 'v' has a dimension of 4,611"),
    "fewer bytes than elements": (model_of(rest=raw_tensor((4,), field(9, bytes(12)))), "of 16 bytes has 12"),
    "fewer numbers than elements": (model_of(rest=raw_tensor((4,), field(4, bytes(12)))), "of 4 elements has 3"),
    "no bytes at all": (model_of(rest=raw_tensor((4,), b"")), "of 4 elements has no data"),
    "an unknown type": (model_of(rest=raw_tensor((4,), b"", dtype=99)), "has the unknown type 99"),
    "a thousand axes": (model_of(rest=raw_tensor((1,) * 1000, b"")), "more than 64 axes"),
    "data above the folder": (model_of(rest=raw_tensor((4,), external("../w"))), "only files in the folder"),
    "data of the system": (model_of(rest=raw_tensor((4,), external("/etc/passwd"))), "only files in the folder"),
    "data by a link": (model_of(rest=raw_tensor((4,), external("link"))), "leads out of its folder"),
    "data that is missing": (model_of(rest=raw_tensor((4,), external("gone"))), "no such file beside it: put it there"),
    "data beyond the end": (model_of(rest=raw_tensor((4,), external("w", 1 << 42))), "'w', which has 64"),
    "data of another length": (model_of(rest=raw_tensor((4,), external("w", 0, 1 << 42))), "of 16 bytes has 4,398"),
    "data that overlaps": (
        model_of(rest=raw_tensor((4,), external("w")) + raw_tensor((4,), external("w", 8), name=b"v")), "overlap",
    ),
    "a graph in 200 others": (model_of(_nested(200)), "more than 32 graphs lie in each other"),
    "a function that calls itself": (_calls_itself(), "the function 'f' calls itself"),
    "functions of 2^31 calls": (_doubling(31), "more than 50,000 operators"),
    "two values of one name": (model_of(_RELU, _RELU), "two values have the name 'y'"),
    "a name of a megabyte": (model_of(field(4, b"R" * (1 << 20))), "has a text of 1,048,576 bytes"),
    "60,000 operators": (model_of(*[_RELU] * 60_000), "more than 50,000 operators"),
    "60,000 tensors": (model_of(rest=raw_tensor((), b"") * 60_000), "more than 50,000 tensors"),
    "1,600,000 fields": (model_of(field(4, b"R") + field(1, b"") * 1_600_000), "more than 1,500,000 fields"),
}  # fmt: skip


HEAVY = ("functions of 2^31 calls", "1,600,000 fields")


@pytest.mark.parametrize(
    ("data", "message"),
    [pytest.param(*case, id=name, marks=[pytest.mark.slow] * (name in HEAVY)) for name, case in HOSTILE.items()],
)
def test_hostile_files(tmp_path: Path, data: bytes, message: str) -> None:
    """A damaged or hostile file is refused in one sentence with what is wrong."""
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "w").write_bytes(bytes(64))
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(DamagedFile, match=message) as refusal:
        read(path)
    assert "\n" not in str(refusal.value)
    assert ": " in str(refusal.value)
