"""Programs of ExecuTorch against the models that they were made from, and against what their exporter said.

The files are in tests/data/exported, made by `make_executorch`; damaged ones are made of these, byte by byte.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget import ModelBudgetError, summarize
from pytest_modelbudget.backends.exported import executorch
from pytest_modelbudget.backends.exported.executorch import program
from pytest_modelbudget.backends.exported.executorch.constants import stored_tensors
from pytest_modelbudget.backends.exported.executorch.container import opened
from pytest_modelbudget.backends.exported.executorch.flow import Branch, Loop, steps
from pytest_modelbudget.backends.exported.executorch.program import Call, JumpIfFalse, Move
from pytest_modelbudget.backends.exported.graph import ExportedModel, Operator
from pytest_modelbudget.backends.model_files import DamagedFile
from pytest_modelbudget.summary.metrics import METRICS

FOLDER = Path(__file__).parents[2] / "data" / "exported"
EXPORTER = json.loads((FOLDER / "executorch.json").read_text())
WHOLE = [
    *("attention", "attention-external", "convolutions", "dynamic"),
    pytest.param("branches", marks=pytest.mark.slow),  # torch takes seconds to trace both
]


def _read(name: str) -> ExportedModel:
    return executorch.read(FOLDER / f"{name}.pte")


def _all(operators: Sequence[Operator]) -> Iterator[Operator]:
    for operator in operators:
        yield operator
        for body in operator.bodies:
            yield from _all(body)


@pytest.mark.parametrize("name", WHOLE)
def test_a_program_costs_what_its_source_does(name: str) -> None:
    """The same params, those that are trained or not, and the same FLOPs, without torch in the reading."""
    pytest.importorskip("torch")
    from tests.backends.exported.make_executorch import source

    model, arguments = source(name)
    own, other = summarize(FOLDER / f"{name}.pte"), summarize(model, inputs=list(arguments))
    assert (own.params, own.flops.value, own.framework) == (other.params, other.flops.value, "executorch")
    assert sum(weight.elements for layer in own.layers for weight in layer.weights if weight.role == "param") >= 36
    assert [port.spec.shape for port in own.inputs] == [tuple(argument.shape) for argument in arguments]


@pytest.mark.parametrize("name", EXPORTER)
def test_what_the_exporter_says_of_its_program(name: str) -> None:
    """Its planned memory to the byte, each kernel that it runs, and what it leaves to a delegate."""
    said, model = EXPORTER[name], _read(name)
    types = [operator.type for operator in _all(model.operators)]
    kernels = [kind for kind in types if not kind.startswith(("executorch.", "delegate.", "xnnpack."))]
    expected = [kernel.replace("::", ".").removesuffix("_") for kernel in said["kernels"]]
    assert (model.arena_bytes, model.delegated, sorted(kernels)) == (
        said["planned_bytes"],
        said["delegated"],
        sorted(expected),
    )
    assert [kind for kind in types if kind.startswith("delegate.")] == ["delegate.XnnpackBackend"] * said["delegated"]


def test_every_tensor_that_is_read_was_made_before() -> None:
    """Views that the exporter made of nothing but a place in memory too; but for the state, which nothing makes."""
    for name in EXPORTER:
        model = _read(name)
        made = {*model.constants, *(port.name for port in model.inputs)}
        for operator in model.operators:
            assert {read for read in operator.inputs if read not in made} <= {"tensor_8"}, (name, operator)
            made |= {*operator.outputs, *operator.inputs}
        assert {port.name for port in model.outputs} <= made
        names = [output for operator in _all(model.operators) for output in operator.outputs]
        assert len(names) == len(set(names))


def test_what_is_a_weight_and_what_it_is_called() -> None:
    """Frozen weights are, masks and counters are not; names are those of the file that has some."""
    roles = {name: constant.role for name, constant in _read("attention-external").constants.items()}
    assert roles == {
        **dict.fromkeys(("frozen.weight", "frozen.bias", "norm.weight", "norm.bias"), "param"),
        **dict.fromkeys(("attention.weight", "attention.bias", "head.weight"), "param"),
        "mask": "buffer",
        "constant_8": "buffer",
    }
    external = FOLDER / "attention-external.pte"
    assert _read("attention-external").file_bytes == sum(
        file.stat().st_size for file in (external, external.with_suffix(".ptd"))
    )


def test_tensors_that_are_equal_are_stored_once() -> None:
    """They count as weights, as in the source, and take no bytes again."""
    model = _read("branches")
    stored = [constant.stored_bytes for constant in model.constants.values()]
    assert stored.count(0) == 2
    assert [note for note in model.notes if "2 of its tensors are equal" in note]


def test_a_branch_has_both_bodies() -> None:
    """With what each works with, and one tensor that either leaves behind."""
    [branch] = [operator for operator in _read("branches").operators if operator.bodies]
    assert (branch.chooses, len(branch.bodies), len(branch.outputs)) == (True, 2, 1)
    assert [sum(operator.type == "aten.addmm" for operator in body) for body in branch.bodies] == [1, 1]


def test_what_xnnpack_runs_is_read_in_its_own_graph() -> None:
    """FLOPs are the source's; of the params, the batch norm is in the convolution before it, which has a bias now."""
    whole, delegated = summarize(FOLDER / "convolutions.pte"), summarize(FOLDER / "convolutions-delegated.pte")
    norm, bias = 2 * 8, 8
    assert delegated.flops == whole.flops
    assert delegated.params == whole.params - norm + bias
    assert delegated.file.delegated == 2


def test_weights_of_a_quantised_delegate() -> None:
    """Are eight bits where the quantiser put them, biases whole, scales no weights; as many as in the source."""
    whole, quantised = summarize(FOLDER / "convolutions.pte"), summarize(FOLDER / "convolutions-quantised.pte")
    weights = [weight for layer in quantised.layers for weight in layer.weights if weight.tied_to is None]
    params = [weight for weight in weights if weight.role == "param"]
    assert sorted((weight.dtype, len(weight.shape)) for weight in params if len(weight.shape) > 1) == [
        ("int8", 2),
        ("int8", 4),
        ("int8", 4),
        ("int8", 4),
    ]
    assert quantised.params == whole.params - 2 * 8 + 8
    assert quantised.flops == whole.flops


def test_another_delegate_is_named_and_not_counted(tmp_path: Path) -> None:
    """No FLOPs are made up for what cannot be seen."""
    data = (FOLDER / "convolutions-delegated.pte").read_bytes()
    (tmp_path / "model.pte").write_bytes(data.replace(b"XnnpackBackend", b"ForeignBackend"))
    summary = summarize(tmp_path / "model.pte")
    assert summary.flops.uncounted == (("delegate.ForeignBackend", 2),)
    assert summary.notes[0].startswith("ForeignBackend runs 2 parts (")
    for name, least in (("params", 0), ("weight_bytes", 8)):
        reason = f"unknown (at least {least}, ForeignBackend holds weights that cannot be seen)"
        assert (METRICS[name].get(summary), METRICS[name].why_unknown(summary)) == (None, reason)


def test_dimensions_that_change_have_their_largest_sizes() -> None:
    """And the note says so."""
    model = _read("dynamic")
    assert model.inputs[0].spec.shape == (16, 8)
    assert "largest sizes" in model.notes[0]


def _tensor(*shape: int, buffer: int = 0, dtype: str = "float32", grad: bool = False) -> program.Tensor:
    return program.Tensor(shape, dtype, grad, buffer, None, False, False, False, "")


def _method(
    name: str, *values: program.Value, inputs: tuple[int, ...] = (), calls: tuple[Call, ...] = ()
) -> program.Method:
    return program.Method(name, values, inputs, (), (calls,), (), 0)


def test_weights_of_less_than_a_byte_count_one_by_one() -> None:
    """Two in each byte of the table of a look-up, which takes the bytes that are stored; its scales are no weights."""
    call = Call("quantized_decomposed.embedding_4bit", (0, 1, 4, 4, 4, 2, 3, 3))
    table, scales = _tensor(10, 4, buffer=1, dtype="uint8"), _tensor(10, buffer=2)
    stored = stored_tensors(
        [_method("forward", table, scales, _tensor(3), _tensor(3, 8), 0, inputs=(2,), calls=(call,))]
    )
    [weight, buffer] = stored.constants.values()
    assert (weight.shape, weight.dtype, weight.stored_bytes, weight.role) == ((10, 8), "int4", 40, "param")
    assert (buffer.shape, buffer.role) == ((10,), "buffer")


def test_what_methods_share_counts_once() -> None:
    """Views of a tensor are none of their own, equal tensors are, and of another method what the first has not."""
    first = _tensor(2, 3, buffer=1, grad=True)
    forward = _method("forward", first, first, _tensor(6), _tensor(6, buffer=1), inputs=(2,))
    encode = _method("encode", first, _tensor(4, buffer=2, grad=True), _tensor(6), inputs=(2,))
    stored = stored_tensors([forward, encode])
    assert [(name, constant.shape, constant.stored_bytes) for name, constant in stored.constants.items()] == [
        ("constant_0", (2, 3), None),
        ("constant_1", (2, 3), 0),
        ("encode.constant_2", (4,), None),
    ]
    assert stored.views == {3: 0}


_A, _B, _C = Call("a", (0,)), Call("b", (0,)), Call("c", (0,))
_YES = JumpIfFalse(1, 3)


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        pytest.param([_A, None, _B], (_A, _B), id="memory that is freed"),
        pytest.param([_YES, _A, JumpIfFalse(2, 4), _B, _C], (Branch(1, ((_A,), (_B,))), _C), id="two ways"),
        pytest.param([JumpIfFalse(1, 2), _A, _B], (Branch(1, ((_A,), ())), _B), id="one way"),
        pytest.param([_A, _B, JumpIfFalse(1, 1), _C], (_A, Loop((_B,)), _C), id="a loop"),
        pytest.param(
            [_A, JumpIfFalse(1, 4), _B, JumpIfFalse(2, 0), Move(0, 0)], (Loop((_A, _B)), Move(0, 0)), id="a loop with a way out"
        ),
        pytest.param([_A, JumpIfFalse(1, 5), _B, JumpIfFalse(1, 2), _C], (_A, Branch(1, ((Loop((_B,)), _C), ()))), id="in each other"),
        pytest.param([JumpIfFalse(1, 2), JumpIfFalse(1, 4), _A, JumpIfFalse(1, 1), _B], (Loop((_A, _B)),), id="neither"),
    ],
)  # fmt: skip
def test_jumps_are_branches_and_loops(chain: list[program.Instruction], expected: tuple[Any, ...]) -> None:
    """Where they are neither, all is one loop of unknown runs, so that its FLOPs are not known."""
    assert steps(chain, (0, True, False)) == expected


def _changed(name: str, layout: str, old: Sequence[int], new: Sequence[int]) -> bytes:
    """A file in which the first such numbers in a row are others."""
    data = (FOLDER / f"{name}.pte").read_bytes()
    before, after = struct.pack(layout, *old), struct.pack(layout, *new)
    assert before in data
    return data.replace(before, after, 1)


def _headed(**fields: int) -> bytes:
    """A program with one segment of 64 bytes, whose header says something else."""
    flatbuffers = pytest.importorskip("flatbuffers")
    builder = flatbuffers.Builder()
    said = {"offset": 0, "size": 64, "program": 0, "begin": 0, "length": 32, "segments": 64, **fields}
    builder.StartObject(2)
    builder.PrependUint64Slot(0, said["offset"], 0)
    builder.PrependUint64Slot(1, said["size"], 0)
    segment = builder.EndObject()
    builder.StartVector(4, 1, 4)
    builder.PrependUOffsetTRelative(segment)
    segments = builder.EndVector()
    builder.StartObject(5)
    builder.PrependUOffsetTRelativeSlot(4, segments, 0)
    builder.Finish(builder.EndObject(), file_identifier=b"ET12")
    body = bytes(builder.Output())
    root = struct.unpack_from("<I", body)[0] + 32
    size = len(body) + 32
    header = struct.pack(
        "<4sIQQQ", b"eh00", said["length"], said["program"] or size, said["begin"] or size, said["segments"]
    )
    return struct.pack("<I", root) + body[4:8] + header + body[8:] + bytes(64)


def _jumping_to(destination: int) -> bytes:
    """The program with a branch, whose first jump leads elsewhere: a value and a place in a row."""
    with opened(FOLDER / "branches.pte", b"ET12", 4) as container:
        [method] = program.methods(container)
    jump = next(item for item in method.chains[0] if isinstance(item, JumpIfFalse))
    return _changed("branches", "<2i", (jump.destination, jump.condition), (destination, jump.condition))


def _cut(name: str, bytes_: int) -> bytes:
    return (FOLDER / f"{name}.pte").read_bytes()[:-bytes_]


def _planned(size: int) -> bytes:
    return _changed("convolutions", "<2q", (0, EXPORTER["convolutions"]["planned_bytes"]), (0, size))


def _weight(*shape: int) -> bytes:
    return _changed("convolutions", "<4i", (8, 3, 3, 3), shape)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut in the middle": (lambda: _cut("convolutions", 3000), "is damaged: its program ends at byte 5,008, and the file has 4,176: fetch it again, or"),
    "cut after the identifier": (lambda: b"\x20\0\0\0ET12", "is damaged: the root at byte 32 needs 4 bytes"),
    "another version": (lambda: b"\x20\0\0\0ET13" + bytes(64), "is of version ET13 of its format, and ET12 is read"),
    "dims that are negative": (lambda: _weight(8, 3, 3, -3), "a tensor has the sizes 8, 3, 3, -3"),
    "dims that are huge": (lambda: _weight(*(2**31 - 1,) * 4), "a tensor of 85,070,591,"),
    "a weight too large": (lambda: _weight(9, 3, 3, 3), "a tensor of 972 bytes has 8.. in the file"),
    "planned memory that is negative": (lambda: _planned(-1), "a planned memory has a negative size"),
    "planned memory too small": (lambda: _planned(64), "ends at byte .* of a planned memory of 64"),
    "a value that is not there": (
        lambda: _changed("convolutions", "<4i", (12, 0, 14, 17), (99999, 0, 14, 17)), "it names value 99,999, and has 80"
    ),
    "a jump that leads nowhere": (lambda: _jumping_to(999), "it jumps to instruction 999 of 12"),
    "a segment that ends outside": (lambda: _headed(size=65), "segment 0 ends at byte"),
    "a segment that begins outside": (lambda: _headed(offset=2**63), "segment 0 ends at byte 9,223,"),
    "a program that ends outside": (lambda: _headed(program=10**6), "its program ends at byte 1,000,000"),
    "segments that end outside": (lambda: _headed(segments=10**12), "its segments end at byte"),
    "segments in the program": (lambda: _headed(begin=8), "its segments begin at byte 8, which is in the program"),
    "a short header": (lambda: _headed(length=3), "its header has 3 bytes in place of 24"),
    "a delegate that is larger than it is": (
        lambda: _changed("convolutions-delegated", "<II", (32, 2136), (32, 2**31)), "a delegate of .* bytes says that it"
    ),
    "a constant that a delegate lacks": (
        lambda: _changed("convolutions-delegated", "<I4I", (4, 8, 3, 3, 3), (4, 8, 3, 3, 9)), "of 2,592 bytes has 864"
    ),
    "no method": (_headed, "it has no method"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_program_is_refused(tmp_path: Path, name: str) -> None:
    """With one sentence."""
    make, words = HOSTILE[name]
    (tmp_path / "model.pte").write_bytes(make())
    with pytest.raises(DamagedFile, match=words):
        executorch.read(tmp_path / "model.pte")


def test_any_byte_may_be_wrong(tmp_path: Path) -> None:
    """It is read or refused, and nothing else happens."""
    data = (FOLDER / "branches.pte").read_bytes()
    path = tmp_path / "model.pte"
    refused = 0
    for position in range(0, len(data), 61):
        path.write_bytes(data[:position] + b"\xff" + data[position + 1 :])
        try:
            executorch.read(path)
        except DamagedFile:
            refused += 1
    assert refused


def test_branches_in_branches_are_bounded() -> None:
    """Two hundred of them are no program."""
    chain = [JumpIfFalse(0, 400 - position) for position in range(200)] + [_A] * 200
    with pytest.raises(DamagedFile, match="its branches stand in each other more than 100 times"):
        steps(chain, (0,))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        pytest.param(
            (), r"has 8 of its tensors \('frozen.weight'\) in a .ptd file that is not beside it: put it", id="none"
        ),
        pytest.param(("a.ptd", "b.ptd"), r"which .*a.ptd and .*b.ptd have: keep one of them", id="two"),
        pytest.param(("model.ptd", "other.ptd"), "", id="its own and another"),
    ],
)
def test_tensors_in_other_files_are_found_beside_it(tmp_path: Path, files: tuple[str, ...], words: str) -> None:
    """In one file, or the one of the program's name; anything else would be a wrong number of bytes."""
    path = tmp_path / "model.pte"
    path.write_bytes((FOLDER / "attention-external.pte").read_bytes())
    tensors = (FOLDER / "attention-external.ptd").read_bytes()
    for file in files:
        (tmp_path / file).write_bytes(tensors)
    if words:
        with pytest.raises(ModelBudgetError, match=words):
            summarize(path)
    else:
        assert summarize(path).file.file_bytes == path.stat().st_size + len(tensors)


def test_tensors_in_a_damaged_file(tmp_path: Path) -> None:
    """Are named with it; a link out of the folder is not followed."""
    path = tmp_path / "model.pte"
    path.write_bytes((FOLDER / "attention-external.pte").read_bytes())
    (tmp_path / "linked.ptd").symlink_to(FOLDER / "attention-external.ptd")
    with pytest.raises(DamagedFile, match="not beside it"):
        executorch.read(path)
    (tmp_path / "model.ptd").write_bytes((FOLDER / "attention-external.ptd").read_bytes()[:-500])
    with pytest.raises(DamagedFile, match=r"has tensors in .*model.ptd, which is damaged: its segments end at byte"):
        executorch.read(path)
