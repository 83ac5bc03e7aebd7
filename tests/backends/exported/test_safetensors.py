"""Safetensors files and their shards: what their headers say, and which files are refused."""

from __future__ import annotations

import json
import tracemalloc
from math import prod
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget.backends import exported, model_files
from pytest_modelbudget.backends.exported import safetensors
from pytest_modelbudget.backends.exported.graph import ExportedModel
from pytest_modelbudget.backends.model_files import DamagedFile
from pytest_modelbudget.summary.metrics import METRICS
from tests.backends.exported.make_archives import entry
from tests.backends.exported.make_archives import safetensors as write

FULL = entry("F32", [2, 2], 0, 16)
INDEX = "model.safetensors.index.json"


def elements(model: ExportedModel) -> int:
    """The elements of all tensors, each storage once."""
    return sum(prod(shape) for shape in {tensor.storage: tensor.shape for tensor in model.constants.values()}.values())


@pytest.mark.parametrize(
    ("word", "dtype", "shape", "stored", "packed"),
    [
        ("F32", "float32", [3], 12, None), ("BF16", "bfloat16", [3], 6, None), ("F64", "float64", [3], 24, None),
        ("F8_E4M3", "float8_e4m3fn", [3], 3, None), ("F8_E5M2", "float8_e5m2", [3], 3, None),
        ("F8_E8M0", "float8_e8m0fnu", [3], 3, None), ("F4", "float4_e2m1", [3, 2], 3, 3), ("U16", "uint16", [3], 6, None),
        ("BOOL", "bool", [3], 3, None), ("C64", "complex64", [3], 24, None), ("I64", "int64", [], 8, None),
        ("F16", "float16", [0, 5], 0, None), ("F6_E2M3", "float6_e2m3", [4], 3, 3),
    ],
)  # fmt: skip
def test_each_dtype_has_its_name_and_its_bytes(
    tmp_path: Path, word: str, dtype: str, shape: list[int], stored: int, packed: int | None
) -> None:
    path = write(tmp_path / "m.safetensors", {"w": entry(word, shape, 0, stored)}, stored)
    tensor = safetensors.read(path).constants["w"]
    assert (tensor.dtype, tensor.shape, tensor.stored_bytes) == (dtype, tuple(shape), packed)
    assert tensor.trainable is (dtype[0] in "fbc" and dtype != "bool")


def test_a_name_that_was_left_out_when_it_was_saved_is_tied_to_the_one_that_was_kept(tmp_path: Path) -> None:
    entries = {"__metadata__": {"embed.weight": "head.weight", "format": "pt"}, "head.weight": FULL}
    model = safetensors.read(write(tmp_path / "m.safetensors", entries, 16))
    assert list(model.constants) == ["head.weight", "embed.weight"]
    assert elements(model) == 4


def test_layers_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    entries = {f"l.{number}.w": entry("U8", [1], place, place + 1) for place, number in enumerate((10, 9, 1))}
    model = safetensors.read(write(tmp_path / "m.safetensors", entries, 3))
    assert list(model.constants) == ["l.1.w", "l.9.w", "l.10.w"]


def test_weights_of_four_gigabytes_are_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", {"w": entry("F32", [1 << 15, 1 << 15], 0, 1 << 32)}, 1 << 32)
    tracemalloc.start()
    model = safetensors.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (elements(model), model.file_bytes) == (1 << 30, path.stat().st_size)
    assert peak < 1 << 20


def shards(folder: Path, weights: dict[str, Any] | None = None, count: int = 2) -> Path:
    """A checkpoint of two shards with a tensor each, of which `count` are there."""
    names = [f"m-{number}.safetensors" for number in range(2)]
    for number, name in enumerate(names[:count]):
        write(folder / name, {f"w{number}": FULL}, 16)
    index = folder / INDEX
    index.write_text(json.dumps({"weight_map": weights or {"w0": names[0], "w1": names[1]}}))
    return index


def test_shards_are_one_model(tmp_path: Path) -> None:
    model = safetensors.read(shards(tmp_path))
    assert (list(model.constants), elements(model)) == (["w0", "w1"], 8)
    assert model.file_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model.safetensors.index.fp16.json", "w.bin.index.json", "w.bin.index.fp16.json"])
def test_an_index_is_told_by_its_name(tmp_path: Path, name: str) -> None:
    index = shards(tmp_path).rename(tmp_path / name)
    assert model_files.is_model(index)
    assert not model_files.is_model(index.rename(tmp_path / "index.json"))


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("model-00001-of-00002.safetensors", "another of its 2 shards"),
        ("model-00001-of-00001.safetensors", ""),
        ("model-2024.safetensors", ""),
    ],
)
def test_a_shard_alone_is_not_the_model(tmp_path: Path, name: str, seen: str) -> None:
    """What is told of its params is a lower bound, and never a number that a limit holds."""
    model = safetensors.read(write(tmp_path / name, {"w0": FULL}, 16))
    note = "this is shard 1 of 2: name the index (model.safetensors.index.json) to check all"
    assert (note in model.notes) is bool(seen)
    summary = exported.summarize(model, name="m", inputs=None, sizes={}, built_here=True)
    params = METRICS["params"]
    assert params.get(summary) == (None if seen else 4)
    if seen:
        assert params.why_unknown(summary) == f"unknown (at least 4, {seen} holds weights that cannot be seen)"


def test_shards_may_lie_where_the_index_is_linked_to(tmp_path: Path) -> None:
    """As a cache of downloads has them: links of all files into one folder."""
    blobs, links = tmp_path / "blobs", tmp_path / "links"
    blobs.mkdir(), links.mkdir()
    shards(blobs)
    for path in blobs.iterdir():
        (links / path.name).symlink_to(path)
    assert elements(safetensors.read(links / INDEX)) == 8


def test_what_the_index_does_not_have_is_named_and_not_counted(tmp_path: Path) -> None:
    model = safetensors.read(shards(tmp_path, {"w0": "m-0.safetensors"}))
    assert elements(model) == 4
    write(tmp_path / "m-0.safetensors", {"w0": FULL, "more": entry("U8", [1], 16, 17)}, 17)
    model = safetensors.read(tmp_path / INDEX)
    assert elements(model) == 4
    assert "1 tensors are not counted, since the index does not have them: more" in model.notes


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        pytest.param(None, "names 2 files, of which 1 are not there, m-1.safetensors: fetch them too", id="missing"),
        pytest.param({"w": "../m.safetensors"}, r"outside of its folder, '\.\./m", id="above"),
        pytest.param({"w": "/etc/passwd"}, "outside of its folder", id="absolute"),
        pytest.param({"w": "link.safetensors"}, "outside of its folder", id="linked out of it"),
        pytest.param({"w": "a\0b"}, "outside of its folder", id="no name of a file"),
        pytest.param({"w": 3}, "w in it is missing or not a text", id="number"),
        pytest.param({"no": "m-0.safetensors"}, "'no' is in m-0.safetensors, which has no such tensor", id="not in it"),
        pytest.param({"w": "text.safetensors"}, "names text.safetensors, which is damaged", id="damaged"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path: Path, weights: dict[str, Any] | None, problem: str) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    write(tmp_path / "m.safetensors", {"w": FULL}, 16)
    (folder / "link.safetensors").symlink_to(tmp_path / "m.safetensors")
    (folder / "text.safetensors").write_text("hello")
    with pytest.raises(DamagedFile, match=problem):
        safetensors.read(shards(folder, weights, count=1))


def wide(size: int) -> bytes:
    """A header of very many small values."""
    return b'{"w": [' + b"[]," * size + b"[]]}"


HOSTILE: dict[str, tuple[dict[str, Any] | bytes, int, str]] = {
    "cut off": ({"w": FULL}, 15, "its tensors take 16 bytes, and the file has 15"),
    "more than declared": ({"w": FULL}, 17, "its tensors take 16 bytes, and the file has 17"),
    "an overlap": ({"a": FULL, "b": entry("F32", [2], 8, 16)}, 16, "'b' in it overlaps the tensor before it"),
    "a hole": ({"a": FULL, "b": entry("F32", [2], 20, 28)}, 28, "'b' in it comes after bytes that no tensor has"),
    "dims of 2^62": ({"a": entry("F32", [1 << 62, 2], 0, 16)}, 16, "'?a'? in it has more elements than any tensor"),
    "a dim of -4": ({"a": entry("F32", [-4], 0, 16)}, 16, "a in it has the size -4"),
    "dims of true": ({"a": entry("U8", [True], 0, 1)}, 1, "a in it is missing or not a whole number"),
    "sizes that do not fit": (
        {"a": entry("F16", [2, 2], 0, 16)},
        16,
        "'a' in it takes 16 bytes, and 4 elements of F16",
    ),
    "end before begin": ({"a": entry("U8", [0], 8, 0)}, 8, "'a' in it takes -8 bytes"),
    "a long number": (b'{"w": ' + b"1" * 10_000 + b"}", 0, "its header is no JSON"),
    "unknown dtype": ({"a": entry("Q4", [2], 0, 1)}, 1, "a dtype that is not known, 'Q4' of 'a'"),
    "one name twice": (b'{"a": 1, "a": 2}', 0, "it has the name 'a' twice"),
    "deep": (b'{"a":' + b"[" * 200_000, 0, "its header is nested too deeply"),
    "wide": (wide(2_000_000), 0, "its header has more than 4,000,000 values"),
    "half a character": (rb'{"\ud800": 1}', 0, "its header is no JSON"),
    "no object": (b"[1, 2]", 0, "header in it is missing or not an object"),
    "no JSON": (b"\xff\xfe" * 20, 0, "its header is no JSON"),
    "65 axes": ({"a": entry("U8", [1] * 65, 0, 1)}, 1, "more elements than any tensor"),
}


@pytest.mark.parametrize(("entries", "data", "problem"), HOSTILE.values(), ids=HOSTILE)
def test_a_damaged_file_is_refused_by_what_is_wrong(
    tmp_path: Path, entries: dict[str, Any] | bytes, data: int, problem: str
) -> None:
    header = entries if isinstance(entries, bytes) else None
    path = write(tmp_path / "m.safetensors", entries if isinstance(entries, dict) else {}, data, header=header)
    with pytest.raises(DamagedFile, match=problem):
        safetensors.read(path)


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "its header says 0 bytes, and the file has 0"),
        ((1 << 63).to_bytes(8, "little") + b"{}", "its header says 9,223,372,036,854,775,808 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
    ],
    ids=["empty", "header of 2^63", "pointer"],
)
def test_a_header_that_is_not_there_is_refused(tmp_path: Path, raw: bytes, problem: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw)
    with pytest.raises(DamagedFile, match=problem):
        safetensors.read(path)
