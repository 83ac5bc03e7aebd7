"""The file of a part: whole or refused, with its name and what to do."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget.base import BaseCommit, Checkout
from pytest_modelbudget.errors import Place
from pytest_modelbudget.parts import PartHead, Registered, RunRegistry, file
from pytest_modelbudget.results import Result, State, codec

HEAD = PartHead(
    {"pytest-modelbudget": "0.1.0"},
    Checkout("a" * 40, "nets/", {"zoo.py": "b" * 64}),
    BaseCommit("c" * 40, "main ccccccc", "where this branch left it"),
    RunRegistry((Registered("m.yaml::net", "net", "model", Place("m.yaml", 3), ("edge",)),), {"m.yaml": "d" * 64}),
    ("m.yaml::net",),
    shard="1/2",
    dealing="e" * 64,
)
RESULT = Result("net", State.BUILD_ERROR, error="no such module\nat line 2", nodeid="m.yaml::net")


def written(path: Path, *results: Result) -> bytes:
    """The bytes of a part with these results."""
    file.write(path, HEAD, map(codec.pack, results))
    return path.read_bytes()


def lines_of(data: bytes) -> list[bytes]:
    """What is inside, line by line."""
    return gzip.decompress(data[data.index(b"\n") + 1 : -73]).splitlines()


def forged(lines: list[bytes], first: bytes = b"modelbudget-part 1") -> bytes:
    """A part with other lines, whose digest is right all the same."""
    body = first + b"\n" + gzip.compress(b"".join(line + b"\n" for line in lines))
    return body + b"\nsha256:" + hashlib.sha256(body).hexdigest().encode() + b"\n"


def test_every_byte_counts(tmp_path: Path) -> None:
    """A part with one byte altered in any region, with a byte more, or cut anywhere, is refused with its name."""
    path = tmp_path / "a.part"
    data = written(path, RESULT)
    altered = [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(0, len(data), 4)]
    cut = [data[:at] for at in range(0, len(data), 50)]
    for content in (*altered, *cut, data + b"\n", data + data):
        path.write_bytes(content)
        with pytest.raises(file.RefusedPart, match=r"a\.part"):
            file.read(path)


def changed(index: int, **values: Any) -> Callable[[list[bytes]], list[bytes]]:
    """A line with other values."""

    def change(lines: list[bytes]) -> list[bytes]:
        return [
            json.dumps({**json.loads(line), **values}).encode() if at == index else line
            for at, line in enumerate(lines)
        ]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda lines: lines[:-1], "it was cut", id="no end"),
        pytest.param(lambda lines: [lines[0], lines[1], lines[1], lines[2]], "it was cut", id="a result more than it says"),
        pytest.param(lambda lines: [*lines, lines[1]], "it was cut", id="more after the end"),
        pytest.param(lambda lines: lines[1:], "the head: ", id="no head"),
        pytest.param(lambda lines: [], "not JSON", id="empty"),
        pytest.param(lambda lines: [lines[0], b"[" * 100_000, lines[2]], "nested too deeply|not JSON", id="nested"),
        pytest.param(lambda lines: [lines[0], lines[1].replace(b'"seconds": 0', b'"seconds": ' + b"9" * 400), lines[2]], "the number 9+ is too large", id="an endless number"),
        pytest.param(changed(0, registry="f" * 64), "it was cut", id="another registry"),
        pytest.param(changed(0, selected=[1]), "the head: selected.0: ", id="a number for a name"),
        pytest.param(changed(0, shard="2 of 8"), "the head: shard: ", id="no shard"),
        pytest.param(changed(0, shard="9/8"), "the head: shard: .*'9/8' is no shard: shards of 8 are", id="no such shard"),
        pytest.param(changed(0, shard="1/999999999"), "the head: shard: ", id="more shards than anybody has"),
        pytest.param(changed(0, extra=1), "the head: extra: ", id="a key too many"),
        pytest.param(changed(1, state="FINE"), "a result: state: ", id="no such state"),
        pytest.param(changed(1, seconds=-1), "a result: seconds: ", id="less than no time"),
        pytest.param(changed(1, summary={"model": "x"}), "the result of 'm.yaml::net' cannot be read", id="half a summary"),
    ],
)  # fmt: skip
def test_content_that_no_run_wrote(tmp_path: Path, change: Callable[[list[bytes]], list[bytes]], words: str) -> None:
    """With a digest that is right: one error that names the part, and the place in it."""
    path = tmp_path / "a.part"
    lines = lines_of(written(path, RESULT))
    path.write_bytes(forged(lines))
    assert file.read(path).results == (RESULT,)
    path.write_bytes(forged(change(lines)))
    with pytest.raises(file.RefusedPart, match=words) as error:
        file.read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "write it again" in str(error.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(lambda path: path.write_bytes(forged([], b"modelbudget-part 2")), "a newer pytest-modelbudget .format 2; this one reads 1.: use the same version", id="newer"),
        pytest.param(lambda path: path.write_text("{}"), "it is no part of a run: give the files that --model-budget-part", id="foreign"),
        pytest.param(lambda path: path.write_text(""), "it is no part of a run", id="empty"),
        pytest.param(lambda path: None, "there is no such file", id="missing"),
        pytest.param(lambda path: path.mkdir(), "is a folder", id="a folder"),
        pytest.param(lambda path: os.mkfifo(path), "is a pipe", id="a pipe", marks=pytest.mark.skipif(sys.platform == "win32", reason="POSIX")),
    ],
)  # fmt: skip
def test_what_is_no_part(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    """One error each, with the name and the cure."""
    path = tmp_path / "a.part"
    make(path)
    with pytest.raises(file.RefusedPart, match=words) as error:
        file.read(path)
    assert str(path) in str(error.value)


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than the bound of a line is ever held of what was compressed to a thousandth."""
    monkeypatch.setattr(file, "MOST_LINE", 10**6)
    unpacked: list[int] = []
    inflater = zlib.decompressobj

    class Counting:
        def __init__(self, wbits: int) -> None:
            self.inner = inflater(wbits)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def decompress(self, data: bytes, most: int) -> bytes:
            text = self.inner.decompress(data, most)
            unpacked.append(len(text))
            return text

    path = tmp_path / "a.part"
    path.write_bytes(forged([b" " * 2 * 10**7]))
    monkeypatch.setattr(zlib, "decompressobj", Counting)
    with pytest.raises(file.RefusedPart, match="it is too large to be read: deal the models to more shards"):
        file.read(path)
    assert sum(unpacked) < 2 * 10**6


@pytest.mark.parametrize("name", ["modelbudget.yaml", "folder"])
def test_only_a_part_gives_way_to_a_part(tmp_path: Path, name: str) -> None:
    """A part of an earlier run is removed before the next begins; anything else is left alone."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "modelbudget.yaml").write_text("models: {}")
    with pytest.raises(file.RefusedPart, match=f"{name} is"):
        file.forget(tmp_path / name)
    assert (tmp_path / name).exists()
    written(tmp_path / "a.part")
    file.forget(tmp_path / "a.part")
    assert not (tmp_path / "a.part").exists()
    file.forget(tmp_path / "a.part")


WRITER = """
import sys
from pathlib import Path
from dataclasses import replace
from pytest_modelbudget.parts import file
from pytest_modelbudget.results import codec
from tests.parts.test_file import HEAD, RESULT
packed = [codec.pack(replace(RESULT, error=sys.argv[2] * 5000))] * 20
print("begun", flush=True)
for _ in range(150):
    file.write(Path(sys.argv[1]), HEAD, packed)
"""


@pytest.mark.slow
def test_writers_and_a_reader_never_see_half_a_part(tmp_path: Path) -> None:
    """Two processes write one part while it is read: it is whole, that of one of them, or known to have been replaced."""
    path = tmp_path / "a.part"
    written(path, replace(RESULT, error="first"))
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), word], stdout=subprocess.PIPE, text=True)
        for word in "xy"
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "begun\n"
    seen = set()
    while any(writer.poll() is None for writer in writers):
        head = file.read_head(path)
        try:
            errors = {result.error for result in file.with_results(head).results}
        except file.RefusedPart as refused:
            assert "it was written again while it was read" in str(refused)  # noqa: PT017
            continue
        assert len(errors) == 1
        seen |= {error[0] for error in errors}
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen <= {"f", "x", "y"}
    assert seen & {"x", "y"}
