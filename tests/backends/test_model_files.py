"""What kind of file a path is, told by its content."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path

import pytest

from pytest_modelbudget.backends import model_files
from pytest_modelbudget.errors import ModelBudgetError


def safetensors(length: int) -> bytes:
    """A file whose header has `length` bytes."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(length)
    return length.to_bytes(8, "little") + header + bytes(4)


def archive(*names: str) -> bytes:
    """A zip archive with such members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name in names:
            zipped.writestr(name, b"{}")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "reader"),
    [
        *((f"{length}.bin", safetensors(length), "safetensors") for length in (200, 0x280, 0x480, 0x580)),
        ("a", b"\x00\x00\x00\x00TFL3" + bytes(8), "litert"),
        ("a", b"\x00\x00\x00\x00ET12" + bytes(8), "executorch"),
        ("a", archive("m/data.pkl"), "state dict"),
        ("a.zip", archive("m/models/model.json"), "torch.export"),
        ("a", archive("config.json", "metadata.json"), "keras"),
        ("a", b"\x08\x08\x12\x07pytorch\x1a\x01", "onnx"),
    ],
)
def test_a_kind_is_told_by_content(tmp_path: Path, name: str, content: bytes, reader: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert model_files._kind(tmp_path / name) == reader


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.onnx", b"hello, this page is gone", "is text, and no model that can be read"),
        ("a.pt2", archive("readme", "b"), r"without a program or a state dict \(in it are readme, b\)"),
        ("a.gguf", b"GGUF\x03", "is a GGUF file, which is not read"),
        ("a.mlmodel", b"\x08\x01\x12", "is a Core ML model, which is not read"),
        ("a.onnx", b"/annex/objects/SHA256E-s3--ab.onnx\n", "run git annex get"),
        ("a.tflite", b"", "is empty"),
    ],
)
def test_what_is_no_model_is_named_for_what_it_is(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelBudgetError, match=words):
        model_files.builder(tmp_path / name, None)


def test_a_link_to_nothing_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").symlink_to("b.onnx")
    with pytest.raises(ModelBudgetError, match=r"is a link to nothing: b\.onnx is not there"):
        model_files.builder(tmp_path / "a.onnx", None)


@pytest.mark.parametrize("name", ["a.keras", "a.pt", "a.pt2"])
@pytest.mark.parametrize("comment", [b"", b"PK\6\6" + bytes(60)], ids=["plain", "another end in the comment"])
def test_a_directory_that_no_model_has_is_not_read(tmp_path: Path, name: str, comment: bytes) -> None:
    """`zipfile` would read and keep all of it, whatever lies in it."""
    size, most = 40 << 20, 0xFFFFFFFF
    with (tmp_path / name).open("wb") as file:
        file.write(b"PK\3\4")
        file.seek(size)
        file.write(struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, size, 0))
        file.write(
            struct.pack("<4sIQI4sHHHHIIH", b"PK\6\7", 0, size, 1, b"PK\5\6", 0, 0, 1, 1, most, most, len(comment))
        )
        file.write(comment)
    with pytest.raises(
        ModelBudgetError, match="is not read: its zip directory would take 41,943,040 bytes, of a file of"
    ):
        model_files.builder(tmp_path / name, None)
