"""LiteRT files that are damaged, or made to hurt: each is refused with one sentence that says what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_modelbudget import summarize
from pytest_modelbudget.backends.exported.litert import read
from pytest_modelbudget.backends.exported.litert.schema import Buffer, Model, Operator, Signature, SubGraph, Tensor
from pytest_modelbudget.backends.model_files import DamagedFile
from pytest_modelbudget.errors import ModelBudgetError
from tests.backends.exported.flatbuffer_writer import flatbuffer
from tests.backends.exported.litert_files import FIRST_OPTIONS, Graph, Stored, litert
from tests.backends.exported.test_litert import ELSEWHERE, _external, dense

DATA = Path(__file__).parents[2] / "data" / "exported"
WHOLE = dense("float32[1, 4]", "float32[2, 4]", "float32[1, 2]")


def _calling(*numbers: int) -> Graph:
    """A graph that runs others by their numbers, one after the other."""
    steps = [("CALL", "x", "x", (FIRST_OPTIONS, {0: number})) for number in numbers]
    return Graph("x", "x", {"x": "float32[1]"}, steps)


def _with(*tensors: dict[int, object], steps: tuple[dict[int, object], ...] = (), **graph: list[int]) -> bytes:
    """A file of one graph, its tables as they are."""
    fields = {SubGraph.TENSORS: list(tensors), SubGraph.OPERATORS: list(steps)}
    fields |= {SubGraph[name]: value for name, value in graph.items()}
    return flatbuffer({Model.SUBGRAPHS: [fields], Model.BUFFERS: [{}], Model.CODES: [{}]}, b"TFL3")


HOSTILE = {
    "nothing": (b"", "is empty"),
    "another file": (b"TFL3 and some text that is no flatbuffer at all", "identifier|at byte"),
    "its first half": ((DATA / "cnn_int8.tflite").read_bytes()[:5_000], "is damaged"),
    "no graph": (litert(), "holds no graph"),
    "a negative size": (_with({Tensor.SHAPE: [2, -4]}), "negative size"),
    "more dimensions than names of them": (_with({Tensor.SHAPE: [2], Tensor.SIGNATURE: [-1, 2]}), "2 named"),
    "65 dimensions": (_with({Tensor.SHAPE: [1] * 65}), "65 dimensions"),
    "2^62 elements": (litert(Graph("", "", {"w": Stored("float32[2]", fields={Tensor.SHAPE: [2**31 - 1] * 2})}, [])),
                      "takes 18,446,744,056,529,682,436 bytes"),
    "fewer bytes than elements": (litert(Graph("", "", {"w": Stored("float32[2]", buffer={Buffer.DATA: b"1234"})}, [])),
                                  "takes 8 bytes, and the file has 4"),
    "a type of nobody": (_with({Tensor.TYPE: 99}), "the type 99"),
    "no such buffer": (_with({Tensor.BUFFER: 5}), "has the buffer 5"),
    "no such tensor": (_with({}, INPUTS=[1]), "has the tensor 1"),
    "a tensor of an operator that is none": (_with({}, steps=({Operator.OUTPUTS: [-2]},)), "has the tensor -2"),
    "no such code": (_with({}, steps=({Operator.CODE: 9},)), "has the code 9"),
    "weights behind the end": (
        litert(Graph("", "", {"w": Stored("float32[2]", buffer={Buffer.OFFSET: 2**60, Buffer.SIZE: 8})}, [])), "begins at byte"),
    "no such signature": (litert(WHOLE, SIGNATURES=[{Signature.SUBGRAPH: 7}]), "has the graph 7"),
    "a graph that runs itself": (litert(WHOLE, _calling(1)), None),
    "graphs that run each other": (litert(_calling(1), _calling(2), _calling(1)), "more than 100 deep"),
    "graphs that double": (litert(*(_calling(n + 1, n + 1) for n in range(60)), _calling()), "2,000 times"),
    "no such graph": (litert(_calling(9)), "runs graph 9"),
    "the first graph again": (litert(_calling(0)), "runs graph 0"),
    "a file above": (litert(ELSEWHERE, **_external("../weights.bin")), "outside its folder"),
    "a file of the system": (litert(ELSEWHERE, **_external("/etc/passwd")), "outside its folder"),
    "a name that no file has": (litert(ELSEWHERE, **_external("a\0b")), "cannot be read"),
    "no file beside it": (litert(ELSEWHERE, **_external("weights.bin")), "is not there"),
    "no such external buffer": (litert(ELSEWHERE), "external buffer 7"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, reason: str | None) -> None:
    """One sentence; what only an unused graph has wrong does not matter."""
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    if reason is None:
        assert read(path).operators
        return
    with pytest.raises(DamagedFile, match=reason):
        read(path)


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    """A file beside the model that leads elsewhere."""
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(500))
    os.symlink(tmp_path / "secret.bin", folder / "weights.bin")
    (folder / "model.tflite").write_bytes(litert(ELSEWHERE, **_external("weights.bin")))
    with pytest.raises(DamagedFile, match="outside its folder"):
        read(folder / "model.tflite")


def test_users_are_told_the_file_and_the_cure(tmp_path: Path) -> None:
    """Through the library, as the one error."""
    path = tmp_path / "half.tflite"
    path.write_bytes((DATA / "cnn_int8.tflite").read_bytes()[:5_000])
    with pytest.raises(ModelBudgetError, match=r"half\.tflite is damaged: .*: fetch it again"):
        summarize(path)


@pytest.mark.parametrize(
    ("bits", "step"),
    [
        pytest.param(0xFF, 5, id="all bits of some"),
        pytest.param(0x01, 1, id="the lowest bit of each", marks=pytest.mark.slow),
        pytest.param(0x80, 1, id="the highest bit of each", marks=pytest.mark.slow),
    ],
)
def test_a_byte_may_be_wrong(tmp_path: Path, bits: int, step: int) -> None:
    """A file with one wrong byte is a model, or refused as damaged."""
    content = litert(WHOLE)
    path = tmp_path / "model.tflite"
    models = 0
    for position in range(0, len(content), step):
        path.write_bytes(content[:position] + bytes([content[position] ^ bits]) + content[position + 1 :])
        try:
            models += bool(read(path).inputs)
        except DamagedFile:
            continue
    assert 0 < models < len(content)
