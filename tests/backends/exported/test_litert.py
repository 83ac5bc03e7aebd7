"""LiteRT files: those that TensorFlow's converter made, held against their models, and short ones written by hand."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget import summarize
from pytest_modelbudget.backends.costs.flop_rules import rules_of
from pytest_modelbudget.backends.costs.free.litert import ZERO
from pytest_modelbudget.backends.exported.costs import operator_costs
from pytest_modelbudget.backends.exported.graph import ExportedModel
from pytest_modelbudget.backends.exported.litert import read
from pytest_modelbudget.backends.exported.litert.schema import OPERATORS as OPERATOR_NAMES
from pytest_modelbudget.backends.exported.litert.schema import (
    Buffer,
    ExternalBuffer,
    Signature,
    Tensor,
)
from tests.backends.exported.litert_files import FIRST_OPTIONS, MORE_OPTIONS, Graph, Longs, Stored, litert

DATA = Path(__file__).parents[2] / "data" / "exported"

SOURCES = {
    "cnn": (4_058, 875_584), "unet": (5_325, 2_170_880), "perceptron": (3_556, 6_912), "sound": (1_547, 65_184),
    "transformer": (2_629, 49_920), "recurrent": (402, 6_752), "volume": (230, 221_200),
}  # fmt: skip
"""Params and FLOPs of the Keras models; a slow test counts them."""

EXPORT_DIFFERENCES = {"cnn": -4 * 8 + 8, "sound": 16}
"""Four numbers for each of 8 channels become one; a depthwise convolution without a bias is given one of 16."""


def made(tmp_path: Path, *graphs: Graph, **changed: Any) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(litert(*graphs, **changed))
    return path


def params(model: ExportedModel) -> int:
    weights = {constant.storage: constant for constant in model.constants.values() if constant.role == "param"}
    return sum(prod(weight.shape) for weight in weights.values())


def flops(model: ExportedModel, **sizes: int) -> tuple[int, list[str]]:
    """FLOPs, and what has no formula."""
    costs = operator_costs(model, {"B": 1, **sizes})
    return (
        sum(cost.cost.flops * cost.times for cost in costs),
        [name for cost in costs if cost.times for name, _ in cost.cost.uncounted],
    )


@pytest.mark.parametrize("path", sorted(DATA.glob("*.tflite")), ids=lambda path: path.stem)
def test_a_converted_model_has_the_params_and_flops_of_its_source(path: Path) -> None:
    """What is different is what the converter folds and adds."""
    name = path.stem.rpartition("_")[0]
    source_params, source_flops = SOURCES[name]
    summary = summarize(path, batch=1)
    assert summary.params == source_params + EXPORT_DIFFERENCES.get(name, 0)
    assert (summary.flops.value, summary.flops.uncounted) == (source_flops, ())
    assert summary.file is not None
    assert summary.file.file_bytes == path.stat().st_size


def test_rows_are_the_layers_of_the_source() -> None:
    """The names of tensors tell them, and each holds its weights."""
    rows = {row.path: row.params for row in summarize(DATA / "perceptron_int8.tflite").layers}
    assert rows == {
        "functional_1": 0,
        "functional_1/dense_1": 20 * 64 + 64,
        "functional_1/dense_2_1": 64 * 32 + 32,
        "functional_1/dense_1_2": 32 * 4 + 4,
    }


@pytest.mark.slow
def test_the_sources_cost_what_the_table_says() -> None:
    """The models of the files, counted by the Keras backend."""
    pytest.importorskip("tensorflow")
    from tests.backends.exported.make_litert import model

    counted = {name: summarize(model(name), batch=1) for name in SOURCES}
    assert {name: (summary.params, summary.flops.value) for name, summary in counted.items()} == SOURCES


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float", "int8"])
def test_a_mobile_network_costs_what_its_source_does(tmp_path: Path, kind: str) -> None:
    """MobileNetV2 of 0.35 of the width, for 96 pixels: each of its 7,040 channels has a bias in place of four numbers."""
    pytest.importorskip("tensorflow")
    if pytest.importorskip("keras").backend.backend() != "tensorflow":
        pytest.skip("the converter takes models of Keras on TensorFlow")
    from tests.backends.exported.make_litert import convert

    path = tmp_path / "mobilenet.tflite"
    path.write_bytes(convert("mobilenet", kind))
    summary = summarize(path)
    assert (summary.params, summary.flops.value) == (423_018 - 3 * 7_040, 21_333_856)


def dense(data: str, weights: str, output: str, *operators: Any, **more: Any) -> Graph:
    """A dense layer from `x` to `y`, and what is added to it."""
    tensors = {"x": data, "w": Stored(weights), "y": output, **more}
    return Graph("x", "y", tensors, [("FULLY_CONNECTED", "x w -", "y"), *operators])


DIMENSIONS = {0: Longs([0]), 1: Longs([0]), 2: Longs([2]), 3: Longs([1])}
LAYOUT = {8: 2, 9: 3, 10: Longs([0, 1]), 2: Longs([1, 1]), 14: 1}
OPERATORS = [
    pytest.param("CONV_2D", ["1, 8, 8, 6", "4, 3, 3, 3", "4"], "1, 6, 6, 4", (), 2 * 144 * 27, id="convolution of two groups"),
    pytest.param("DEPTHWISE_CONV_2D", ["1, 8, 8, 6", "1, 3, 3, 12"], "1, 6, 6, 12", (), 2 * 432 * 9, id="two filters each"),
    pytest.param("TRANSPOSE_CONV", ["4", "5, 3, 3, 2", "1, 4, 4, 2"], "1, 8, 8, 5", (), 2 * 32 * 45, id="transposed"),
    pytest.param("CONV_3D", ["1, 4, 4, 4, 2", "3, 3, 3, 2, 5"], "1, 2, 2, 2, 5", (), 2 * 40 * 54, id="three axes"),
    pytest.param("FULLY_CONNECTED", ["2, 3, 4", "7, 12"], "2, 7", (), 2 * 2 * 12 * 7, id="dense over flattened axes"),
    pytest.param("BATCH_MATMUL", ["2, 5, 3", "2, 5, 4"], "2, 3, 4", (FIRST_OPTIONS, {0: 1}), 2 * 24 * 5, id="left transposed"),
    pytest.param("STABLEHLO_DOT_GENERAL", ["2, 3, 4", "2, 4, 5"], "2, 3, 5", (MORE_OPTIONS, DIMENSIONS), 2 * 30 * 4, id="dot"),
    pytest.param(
        "STABLEHLO_CONVOLUTION", ["1, 8, 8, 3", "3, 3, 3, 4"], "1, 6, 6, 4", (MORE_OPTIONS, LAYOUT), 2 * 144 * 27, id="any layout"
    ),
    pytest.param("RNN", ["2, 3", "5, 3", "5, 5", "5", "2, 5"], "2, 5", (), 2 * 2 * (15 + 25), id="one step, states left out"),
    pytest.param("SVDF", ["2, 3", "8, 3", "8, 10", "4", "2, 80"], "2, 4", (), 2 * 2 * (24 + 80), id="filters of features and time"),
    pytest.param("LSTM", ["2, 3", "2, 5", "20, 8", "20", "2, 5"], "2, 5", (), 2 * 2 * 160, id="all gates in one matrix"),
    pytest.param("RFFT2D", ["1, 8, 16", "= 8 16"], "1, 8, 9", (), 2.5 * 128 * 7, id="real transform"),
    pytest.param("SOFTMAX", ["2, 3"], "2, 3", (), 0, id="free"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "inputs", "output", "options", "expected"), OPERATORS)
def test_operators_cost_their_multiply_adds(
    tmp_path: Path, kind: str, inputs: list[str], output: str, options: Any, expected: int
) -> None:
    """Shapes in the order of the operator's inputs; numbers by hand."""
    tensors: dict[str, Any] = {"y": f"float32[{output}]"}
    for number, shape in enumerate(inputs):
        values = [int(value) for value in shape[2:].split()] if shape.startswith("=") else None
        tensors[f"x{number}"] = f"float32[{shape}]" if values is None else Stored(f"int32[{len(values)}]", values)
    names = " ".join(f"x{number}" for number in range(len(inputs)))
    path = made(tmp_path, Graph("x0", "y", tensors, [(kind, names, "y", *([options] if options else []))]))
    assert flops(read(path)) == (expected, [])


def test_each_published_operator_is_counted_free_or_named() -> None:
    """Nothing of the published list falls between; those that run graphs cost what is in these."""
    rules, names = set(rules_of("litert")), set(OPERATOR_NAMES)
    assert rules | ZERO <= names
    assert not rules & ZERO
    assert names - rules - ZERO == {
        "CALL", "CUSTOM", "DELEGATE", "IF", "LSH_PROJECTION", "PLACEHOLDER_FOR_GREATER_OP_CODES", "STABLEHLO_CASE",
        "STABLEHLO_COMPOSITE", "STABLEHLO_CUSTOM_CALL", "STABLEHLO_WHILE", "WHILE",
    }  # fmt: skip


def test_gates_that_an_lstm_leaves_out_are_not_counted(tmp_path: Path) -> None:
    """Coupled gates: three matrices for the input, three for the state; states and peepholes are none."""
    matrices = {f"i{gate}": Stored("float32[5, 3]") for gate in range(3)}
    matrices |= {f"r{gate}": Stored("float32[5, 5]") for gate in range(3)}
    tensors = {"x": "float32[2, 7, 3]", **matrices, "b": Stored("float32[5]"), "y": "float32[2, 7, 5]"}
    tensors |= {state: {Tensor.SHAPE: [2, 5], Tensor.IS_VARIABLE: 1} for state in ("h", "c")}
    inputs = "x - i0 i1 i2 - r0 r1 r2 - - - - b b b - - h c"
    path = made(tmp_path, Graph("x", "y", tensors, [("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, "y")]))
    assert flops(read(path)) == (2 * 14 * 3 * (15 + 25), [])


def test_custom_operators_are_named_by_their_code_and_never_taken_for_built_in_ones(tmp_path: Path) -> None:
    """A compiled part of a model counts as delegated."""
    tensors = dict.fromkeys("xabc", "float32[1, 4]")
    steps = [("custom ADD", "x", "a"), ("FlexErf", "a", "b"), ("edgetpu-custom-op", "b", "c")]
    model = read(made(tmp_path, Graph("x", "c", tensors, steps)))
    assert flops(model) == (0, ["CUSTOM:ADD", "FlexErf", "edgetpu-custom-op"])
    assert (model.delegated, model.arena_bytes) == (1, None)


BRANCHES = (
    dense("float32[1, 4]", "float32[8, 4]", "float32[1, 8]"),
    dense("float32[1, 4]", "float32[8, 4]", "float32[1, 8]"),
)


def _counter(limit: Any, start: int = 0, step: int = 2, compared: str = "n limit") -> tuple[Graph, Graph, Graph]:
    """A loop around a dense layer; the counter begins at `start` and grows by `step`."""
    outer = {"i": Stored("int32[1]", [start]), "x": "float32[1, 4]", "j": "int32[1]", "y": "float32[1, 4]"}
    condition = {"n": "int32[1]", "x": "float32[1, 4]", "limit": limit, "less": "bool[1]"}
    body = {"n": "int32[1]", "x": "float32[1, 4]", "one": Stored("int32[1]", [step]), "m": "int32[1]",
            "w": Stored("float32[4, 4]"), "y": "float32[1, 4]"}  # fmt: skip
    return (
        Graph("x", "y", outer, [("WHILE", "i x", "j y", (FIRST_OPTIONS, {0: 1, 1: 2}))]),
        Graph("n x", "less", condition, [("LESS", compared, "less")]),
        Graph("n x", "m y", body, [("ADD", "n one", "m"), ("FULLY_CONNECTED", "x w -", "y")]),
    )


@pytest.mark.parametrize(
    ("loop", "expected"),
    [
        pytest.param(_counter(Stored("int32[1]", [5])), (3 * 32, []), id="0, 2, 4 are below 5"),
        pytest.param(_counter(Stored("int32[1]", [5]), start=5), (0, []), id="none is"),
        pytest.param(_counter("int32[1]"), (32, ["WHILE"]), id="a limit that nobody knows"),
        pytest.param(_counter(Stored("int32[1]", [5]), step=-1), (32, ["WHILE"]), id="a counter that shrinks"),
        pytest.param(
            _counter(Stored("int32[1]", [5]), compared="limit n"), (32, ["WHILE"]), id="compared the other way"
        ),
    ],
)
def test_loops_count_as_often_as_they_run(
    tmp_path: Path, loop: tuple[Graph, ...], expected: tuple[int, list[str]]
) -> None:
    """Where the file says how often that is; else the body counts once, and the loop is named."""
    assert flops(read(made(tmp_path, *loop))) == expected


def test_what_a_loop_begins_with_is_a_state_and_no_weight(tmp_path: Path) -> None:
    """A constant that goes into a loop and comes out as another tensor."""
    outer, condition, body = _counter(Stored("int32[1]", [5]))
    tensors = {**outer.tensors, "x": Stored("float32[1, 4]")}
    model = read(made(tmp_path, Graph("", "y", tensors, outer.operators), condition, body))
    assert {name: constant.role for name, constant in model.constants.items() if constant.dtype == "float32"} == {
        "x": "buffer", "w": "param",
    }  # fmt: skip


def test_a_choice_costs_one_of_its_branches_and_other_signatures_nothing(tmp_path: Path) -> None:
    """Both graphs of an If are read; a graph that only a signature names gives its weights, and a note."""
    tensors = {"p": "bool[1]", "x": "float32[1, 4]", "y": "float32[1, 8]"}
    outer = Graph("p x", "y", tensors, [("IF", "p x", "y", (FIRST_OPTIONS, {0: 1, 1: 2}))])
    other = dense("float32[1, 4]", "float32[9, 4]", "float32[1, 9]")
    signatures = [{Signature.KEY: "serve"}, {Signature.KEY: "encode", Signature.SUBGRAPH: 3}]
    model = read(made(tmp_path, outer, *BRANCHES, other, SIGNATURES=signatures))
    assert flops(model) == (64, [])
    assert params(model) == 2 * 32 + 36
    assert "encode" in model.notes[0]


OPEN = [
    pytest.param([("FULLY_CONNECTED", "x w -", "y")], "float32[B, 3, 4]", "float32[B, 5]", "3*B", id="dense over rows"),
    pytest.param([("SOFTMAX", "x", "y")], "float32[B, 3, 4]", "float32[B, 3, 4]", "B", id="elementwise"),
    pytest.param([("RESHAPE", "x", "y")], "float32[B, 3, 4]", "float32[B, 2]", "6*B", id="other rows"),
    pytest.param([("CONCATENATION", "x x", "y")], "float32[B, 4]", "float32[B, 4]", "2*B", id="two batches"),
    pytest.param([("WHERE", "x", "y")], "float32[B, 4]", "float32[B, 2]", None, id="nobody knows"),
    pytest.param([("SOFTMAX", "x", "y")], "float32[B, B, 4]", "float32[B, B, 4]", None, id="two open axes"),
]


@pytest.mark.parametrize(("steps", "data", "output", "expected"), OPEN)
def test_an_open_batch_is_followed(tmp_path: Path, steps: Any, data: str, output: str, expected: str | None) -> None:
    """The first axis is some multiple of it, or not known."""
    if steps[0][0] == "CONCATENATION":
        steps = [(*steps[0], (FIRST_OPTIONS, {0: 0, 1: 0}))]
    tensors = {"x": data, "w": Stored("float32[5, 4]"), "y": output}
    model = read(made(tmp_path, Graph("x", "y", tensors, steps)))
    assert model.values["y"].shape[0] == expected


def test_a_tensor_without_a_shape_is_not_one_number(tmp_path: Path) -> None:
    """Of an unknown number of axes: what makes it is named as uncounted, and nothing is planned."""
    tensors = {"x": "float32[1, 8, 8, 3]", "w": Stored("float32[4, 3, 3, 3]"), "y": {Tensor.TYPE: 0}}
    model = read(made(tmp_path, Graph("x", "y", tensors, [("CONV_2D", "x w -", "y", (FIRST_OPTIONS, {1: 1, 2: 1}))])))
    assert flops(model) == (0, ["CONV_2D"])
    assert (model.outputs, model.arena_bytes) == ((), None)


def test_weights_are_told_from_other_constants(tmp_path: Path) -> None:
    """Floats and quantised integers are weights; shapes, axes and single numbers of formulas are not."""
    tensors = {
        "x": "float32[1, 4]", "k": Stored("int8[1, 4]", scales=1), "b": Stored("int32[1]", scales=1),
        "axes": Stored("int32[2]", [1, 1]), "epsilon": Stored("float32[]"), "slope": Stored("float32[4]"),
        "half": Stored("float16[1]"), "whole": "float32[1]", "y": "float32[1, 1]", "z": "float32[1, 1]",
    }  # fmt: skip
    steps = [("FULLY_CONNECTED", "x k b", "y"), ("ADD", "y epsilon", "z"), ("DEQUANTIZE", "half", "whole"),
             ("FULLY_CONNECTED", "x k whole", "z")]  # fmt: skip
    model = read(made(tmp_path, Graph("x", "z", tensors, steps)))
    assert {name for name, constant in model.constants.items() if constant.role == "param"} == {
        "k",
        "b",
        "slope",
        "half",
    }


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        pytest.param(Stored("int4[3, 3]", scales=1), ((3, 3), "int4", None), id="two in a byte"),
        pytest.param(Stored("int2[3, 3]", scales=1), ((3, 3), "int2", None), id="four in a byte"),
        pytest.param(Stored("bfloat16[3]"), ((3,), "bfloat16", None), id="bfloat16"),
        pytest.param(
            Stored("int4[4]", scales=1, buffer={Buffer.DATA: bytes(4)}), ((4,), "int4", 4), id="one in a byte"
        ),
        pytest.param(
            Stored("float32[8, 8]", fields={Tensor.SPARSITY: {}}, buffer={Buffer.DATA: bytes(40)}),
            ((8, 8), "float32", 40),
            id="sparse",
        ),
    ],
)
def test_what_a_weight_takes_is_what_is_stored(tmp_path: Path, stored: Stored, expected: tuple[Any, ...]) -> None:
    """Its shape is that of its elements, its bytes are those in the file where they are not what the shape makes."""
    model = read(made(tmp_path, Graph("x", "x", {"x": "float32[1]", "w": stored}, [])))
    constant = model.constants["w"]
    assert (constant.shape, constant.dtype, constant.stored_bytes) == expected


def test_tensors_of_one_buffer_are_stored_once_and_names_are_never_shared(tmp_path: Path) -> None:
    """Two tensors of one name get two names, those of one buffer one storage."""
    tensors = {name: Stored("float32[4]", fields={Tensor.BUFFER: 1, Tensor.NAME: "w"}) for name in "ab"}
    constants = read(made(tmp_path, Graph("", "", tensors, []))).constants
    assert list(constants) == ["w", "w#2"]
    assert len({constant.storage for constant in constants.values()}) == 1


def _external(name: str, size: int = 400) -> dict[str, Any]:
    group = {ExternalBuffer.ID: 7, ExternalBuffer.GROUP: 0, ExternalBuffer.OFFSET: 16, ExternalBuffer.LENGTH: size}
    return {"EXTERNAL_GROUPS": [{0: name}], "EXTERNAL_BUFFERS": [group]}


ELSEWHERE = Graph("", "", {"w": Stored("float32[100]", fields={Tensor.EXTERNAL_BUFFER: 7})}, [])


def test_weights_may_lie_in_a_file_beside_it(tmp_path: Path) -> None:
    """Its bytes are part of the model's, and it is not read."""
    (tmp_path / "weights.bin").write_bytes(bytes(500))
    path = made(tmp_path, ELSEWHERE, **_external("weights.bin"))
    model = read(path)
    assert (params(model), model.file_bytes) == (100, path.stat().st_size + 500)


def test_gigabytes_of_weights_behind_the_graph_are_not_read(tmp_path: Path) -> None:
    """A buffer may lie behind the flatbuffer; the file has a hole of 4 GB where its weights would be."""
    size = 2**30
    far = Stored(f"float32[{size}]", buffer={Buffer.OFFSET: 4096, Buffer.SIZE: 4 * size})
    path = made(tmp_path, Graph("", "", {"w": far}, []))
    with path.open("r+b") as file:
        file.truncate(4096 + 4 * size)
    assert (params(read(path)), read(path).file_bytes) == (size, 4096 + 4 * size)
