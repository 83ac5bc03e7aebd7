"""Reading ONNX files, of exporters and of nobody; the numbers are those of the models that they were made from."""

from __future__ import annotations

import tracemalloc
from math import prod
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from pytest_modelbudget.api import summarize
from pytest_modelbudget.backends.exported.graph import ExportedModel, Operator
from pytest_modelbudget.backends.exported.onnx import read, shapes
from tests.backends.exported.onnx_files import (
    HEAD,
    SCALES,
    external,
    field,
    graph,
    number,
    raw_tensor,
    save,
    stored,
    value,
    varint,
    weight,
)  # fmt: skip

node = helper.make_node

RESNET18 = 3_628_146_688
"""FLOPs of torchvision's ResNet-18 of one picture of 224 pixels, as `torch.utils.flop_counter` counts them."""

GPT2 = 16 * (2 * (2 * 128 * (384 + 128 + 512 + 512) + 2 * 2 * 16 * 128) + 2 * 128 * 5000)
"""Two blocks of width 128 at 16 positions: four products and the full square of attention, and the head of 5,000 words."""

CNN = 2 * 32 * 32 * (16 * 27 + 16 * 9 + 32 * 16) + 2 * 32 * 10


@pytest.mark.parametrize(
    ("name", "params", "flops"),
    [
        pytest.param("resnet18", 11_689_512 - 9_600, RESNET18, id="torch, batch norm without training folded away"),
        pytest.param("resnet18_int8", 11_689_512 - 9_600, RESNET18, id="8 bits of onnxruntime"),
        pytest.param("gpt2", 1_053_184 - 2_304 - 1_024, GPT2, id="torch, tied head, zero biases and equal norms gone"),
        pytest.param("cnn", 16 * 27 + 16 * 9 + 32 * 16 + 320, CNN, id="Keras by way of tf2onnx"),
    ],
)
def test_files_of_exporters_have_the_numbers_of_their_source(
    tmp_path: Path, name: str, params: int, flops: int
) -> None:
    """Params and FLOPs are those of the model, less what its exporter leaves out."""
    summary = summarize(stored(name, tmp_path), dims={"T": 16})
    assert (summary.params, summary.flops.value, summary.flops.uncounted) == (params, flops, ())


def test_rows_are_the_modules_of_the_source(tmp_path: Path) -> None:
    """A convolution into which batch norm was folded is that of its weight, and classes are those of the source."""
    rows = {layer.path: layer for layer in summarize(stored("resnet18", tmp_path)).layers}
    assert [weight.name for weight in rows["layer1.0.conv1"].weights] == ["weight"]
    assert rows["layer1.0"].type == "BasicBlock"
    assert str(rows["fc"].outputs[0][0]) == "float32[B, 1000]"


def test_quantised_weights_are_those_of_their_layer(tmp_path: Path) -> None:
    """Weights behind a DequantizeLinear are params of the convolution, their scales and zero points buffers."""
    rows = {layer.path: layer for layer in summarize(stored("resnet18_int8", tmp_path)).layers}
    assert {weight.name: (weight.dtype, weight.role) for weight in rows["fc"].weights} == {
        "weight_quantized": ("int8", "param"), "weight_scale": ("float32", "buffer"),
        "weight_zero_point": ("int8", "buffer"), "bias_quantized": ("int32", "param"),
        "bias_quantized_scale": ("float32", "buffer"), "bias_quantized_zero_point": ("int32", "buffer"),
    }  # fmt: skip
    assert list(rows).index("conv1") < list(rows).index("layer1.0.conv1") < list(rows).index("fc")


def test_what_the_exporter_left_out_is_named(tmp_path: Path) -> None:
    """A note says which parameters of the source are not in the file."""
    [note] = read(stored("resnet18", tmp_path)).notes
    assert note.startswith("40 of the 62 parameters of the source are not in the file (bn1.weight, bn1.bias, ")


def test_nothing_of_a_large_file_is_read(tmp_path: Path) -> None:
    """4 GB of weights in the file take no memory."""
    path, size = tmp_path / "large.onnx", 4 << 30
    tensor = b"\x08" + varint(1 << 30) + b"\x10\x01" + field(8, b"w") + varint(9 << 3 | 2) + varint(size)
    with path.open("wb") as file:
        file.write(HEAD + varint(7 << 3 | 2) + varint(len(tensor) + size + 6) + varint(5 << 3 | 2))
        file.write(varint(len(tensor) + size) + tensor)
        file.truncate(file.tell() + size)
    tracemalloc.start()
    model = read(path)
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()
    assert prod(model.constants["w"].shape) == 1 << 30


def flat(operators: tuple[Operator, ...]) -> list[Operator]:
    return [inner for operator in operators for inner in (operator, *flat(sum(operator.bodies, ())))]


def _branch(name: str, count: int) -> Any:
    nodes = [node("MatMul", ["x" if step == 0 else f"h{step}", "w"], [f"h{step + 1}"]) for step in range(count)]
    values = [value(f"h{step + 1}", ["B", 8]) for step in range(count)]
    return helper.make_graph(nodes, name, [], values[-1:], value_info=values[:-1])


def _loop(condition_out: str) -> Any:
    """A loop of 5, whose body is one product, and goes on as `condition_out` says."""
    inputs = [value("index", [], TensorProto.INT64), value("goes_on", [], TensorProto.BOOL), value("state", ["B", 8])]
    nodes = [
        node("MatMul", ["state", "w"], ["next"]),
        node("Identity", ["goes_on"], ["same"]),
        node("Not", ["goes_on"], ["other"]),
    ]
    flags = [value(name, [], TensorProto.BOOL) for name in ("same", "other")]
    outputs = [value(condition_out, [], TensorProto.BOOL), value("next", ["B", 8])]
    body = helper.make_graph(nodes, "body", inputs, outputs, value_info=flags)
    weights = {"trips": number("trips", 5, scalar=True), "w": (8, 8)}
    return graph([node("Loop", ["trips", "", "x"], ["y"], body=body)], {"x": ["B", 8]}, {"y": ["B", 8]}, weights)


PRODUCT = 2 * 8 * 8


@pytest.mark.parametrize(
    ("case", "flops", "uncounted"),
    [
        pytest.param("if", PRODUCT, ("If",), id="of two branches the cheaper one"),
        pytest.param("loop", 5 * PRODUCT, (), id="a loop of a constant number"),
        pytest.param("while", PRODUCT, ("Loop",), id="a loop that values end"),
        pytest.param("scan", 7 * PRODUCT, (), id="a scan of a sequence"),
        pytest.param("function", 3 * PRODUCT, (), id="a function in a function"),
    ],
)
def test_control_flow_and_functions(tmp_path: Path, case: str, flops: int, uncounted: tuple[str, ...]) -> None:
    """Bodies count as often as they run, functions where they are called, and names stay apart."""
    path = save(tmp_path / "m.onnx", _CONTROL[case]()) if case != "function" else _with_functions(tmp_path)
    summary, model = summarize(path), read(path)
    assert (summary.flops.value, tuple(kind for kind, _ in summary.flops.uncounted)) == (flops, uncounted)
    operators = flat(model.operators or ())
    outputs = [name for operator in operators for name in operator.outputs]
    assert len(set(outputs)) == len(outputs)
    assert len({operator.name for operator in operators}) == len(operators)


def _if() -> Any:
    condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    branches = {"then_branch": _branch("a", 1), "else_branch": _branch("b", 2)}
    made = node("If", ["c"], ["y"], **branches)
    return graph([made], {"x": ["B", 8]}, {"y": ["B", 8]}, {"c": condition, "w": (8, 8)})


def _scan() -> Any:
    ports = [value(name, [8]) for name in ("h", "step", "last", "out")]
    nodes = [node("MatMul", ["step", "w"], ["out"]), node("Add", ["out", "h"], ["last"])]
    body = helper.make_graph(nodes, "body", ports[:2], ports[2:])
    made = node("Scan", ["x0", "x"], ["end", "y"], body=body, num_scan_inputs=1)
    return graph([made], {"x": [7, 8], "x0": [8]}, {"y": [7, 8], "end": [8]}, {"w": (8, 8)})


_CONTROL = {"if": _if, "loop": lambda: _loop("same"), "while": lambda: _loop("other"), "scan": _scan}


def _functions(*calls: tuple[str, list[str]]) -> tuple[Any, ...]:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return tuple(
        helper.make_function("own", name, ["a", "b"], ["h"], _chain(inner), opsets, value_info=_between(inner))
        for name, inner in calls
    )


def _between(types: list[str]) -> list[Any]:
    return [value(f"t{index}", ["B", 8]) for index in range(len(types) - 1)]


def _chain(types: list[str]) -> list[Any]:
    names = ["a", *(f"t{index}" for index in range(len(types) - 1)), "h"]
    return [
        node(
            type_, [names[index], "b"], [names[index + 1]], domain="" if type_ == "MatMul" else "own", name=f"n{index}"
        )
        for index, type_ in enumerate(types)
    ]


def _with_functions(folder: Path) -> Path:
    functions = _functions(("Inner", ["MatMul"]), ("Outer", ["Inner", "MatMul", "Inner"]))
    call = node("Outer", ["x", "w"], ["y"], domain="own", name="block")
    return save(folder / "m.onnx", graph([call], {"x": ["B", 8]}, {"y": ["B", 8]}, {"w": (8, 8)}), functions=functions)


def test_functions_are_modules(tmp_path: Path) -> None:
    """The operators of a function lie in a module that has its name."""
    operators = read(_with_functions(tmp_path)).operators or ()
    assert [[(module.path, module.type) for module in operator.modules] for operator in operators] == [
        [("block", "Outer"), ("block.n0", "Inner")], [("block", "Outer")], [("block", "Outer"), ("block.n2", "Inner")],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tensor", "shape", "dtype", "nbytes", "role"),
    [
        pytest.param(weight("w", 3, 5, dtype=TensorProto.BFLOAT16), (3, 5), "bfloat16", 30, "param", id="bfloat16"),
        pytest.param(weight("w", 7, dtype=TensorProto.FLOAT8E5M2), (7,), "float8_e5m2", 7, "param", id="8-bit floats"),
        pytest.param(
            helper.make_tensor("w", TensorProto.INT4, [5], [1, 2, 3, 4, 5]), (5,), "int4", 3, "param", id="4 bits, odd"
        ),
        pytest.param(
            TensorProto(name="w", data_type=TensorProto.UINT4, dims=[3], raw_data=b"\x21\x03"),
            (3,), "uint4", 2, "param", id="4 bits as bytes",
        ),
        pytest.param(helper.make_tensor("w", 1, [2], [1.0, 2.0]), (2,), "float32", 8, "param", id="floats one by one"),
        pytest.param(helper.make_tensor("w", 14, [2], [1j, 2.0]), (2,), "complex64", 16, "param", id="complex numbers"),
        pytest.param(number("w", 1, -2, 3), (3,), "int64", 24, "buffer", id="whole numbers are no weights"),
        pytest.param(helper.make_tensor("w", 8, [2], [b"ab", b"c"]), (2,), "string", 3, "buffer", id="texts"),
        pytest.param(helper.make_tensor("w", 1, [], [0.5]), (), "float32", 4, "buffer", id="a scalar is no weight"),
    ],
)  # fmt: skip
def test_tensors(tmp_path: Path, tensor: Any, shape: tuple[int, ...], dtype: str, nbytes: int, role: str) -> None:
    """A tensor has the shape and type that its elements have, and the bytes that they take."""
    constant = read(save(tmp_path / "m.onnx", graph([], {}, {}, {"w": tensor}))).constants["w"]
    assert (constant.shape, constant.dtype, constant.stored_bytes, constant.role) == (shape, dtype, nbytes, role)


def test_sparse_tensors(tmp_path: Path) -> None:
    """A sparse weight has the shape that it stands for, and the bytes of its values and places."""
    values, places = helper.make_tensor("w", 1, [2], [1.0, 2.0]), number("", 3, 40)
    sparse = helper.make_sparse_tensor(values, places, [10, 10])
    constant = read(save(tmp_path / "m.onnx", graph([], {}, {}, sparse_initializer=[sparse]))).constants["w"]
    assert (constant.shape, constant.stored_bytes) == ((10, 10), 24)


def test_equal_places_in_a_data_file_are_one_storage(tmp_path: Path) -> None:
    """Two names for the same bytes of a data file are stored once."""
    (tmp_path / "w.data").write_bytes(bytes(32))
    tensors = raw_tensor((4,), external("w.data")) + raw_tensor((4,), external("w.data"), name=b"v")
    path = tmp_path / "m.onnx"
    path.write_bytes(HEAD + field(7, tensors))
    model = read(path)
    assert model.constants["w"].storage == model.constants["v"].storage
    assert model.file_bytes == path.stat().st_size + 32


def test_links_of_a_cache(tmp_path: Path) -> None:
    """A model and its data may be links, side by side, to files in one other folder."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "1f").write_bytes(HEAD + field(7, raw_tensor((4,), external("w.data"))))
    (blobs / "2e").write_bytes(bytes(16))
    for link, blob in (("m.onnx", "1f"), ("w.data", "2e")):
        (snapshot / link).symlink_to(Path("../../blobs", blob))
    assert read(snapshot / "m.onnx").file_bytes == (blobs / "1f").stat().st_size + 16


def test_packed_weights_stand_for_their_elements(tmp_path: Path) -> None:
    """Weights of 4 bits in blocks have the shape of the matrix, and the bytes of the file."""
    made = node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=32, N=6, bits=4, block_size=32)
    packed = weight("w", 6, 1, 16, dtype=TensorProto.UINT8)
    constants = read(
        save(tmp_path / "m.onnx", graph([made], {"x": [3, 32]}, {"y": [3, 6]}, {"w": packed, "s": (6,)}))
    ).constants
    assert (constants["w"].shape, constants["w"].dtype, constants["w"].stored_bytes) == ((6, 32), "uint4", 96)
    assert constants["s"].role == "buffer"


def _pyramid(folder: Path) -> Path:
    """Sizes are halved, doubled and halved again; the file says no shape but the input's."""
    nodes = [
        node("Conv", ["x", "a"], ["h"], strides=[2], pads=[1, 1], name="/down/Conv"),
        node("ConvTranspose", ["h", "b"], ["u"], strides=[2], name="/up/up.0/Conv"),
        node("Conv", ["u", "c"], ["y"], strides=[2], name="/up/up.1/Conv"),
    ]
    return save(
        folder / "m.onnx",
        graph(nodes, {"x": ["N", 3, "L"]}, {"y": None}, {"a": (8, 3, 3), "b": (8, 4, 2), "c": (2, 4, 3)}),
    )


def test_shapes_that_the_file_does_not_say(tmp_path: Path) -> None:
    """Inferred dimensions are expressions of the inputs that hold for even and odd sizes."""
    model = read(_pyramid(tmp_path))
    assert [str(model.values[name]) for name in "huy"] == [
        "float32[N, 8, (L+1)//2]", "float32[N, 4, 2*((L+1)//2)]", "float32[N, 2, (L-1)//2]",
    ]  # fmt: skip


def _of_onnxruntime(type_: str, inputs: list[str], **attributes: Any) -> Any:
    return node(type_, inputs, [f"y{type_}"], domain="com.microsoft", **attributes)


def test_shapes_of_operators_of_onnxruntime(tmp_path: Path) -> None:
    """Operators that onnx does not know have shapes too."""
    expected = [
        (_of_onnxruntime("Gelu", ["x"]), "[B, 5, 8]"),
        (_of_onnxruntime("SkipLayerNormalization", ["x", "x", "g"]), "[B, 5, 8]"),
        (_of_onnxruntime("QLinearAdd", ["x", "s", "z", "w", "s", "z", "s", "z"]), "[B, 5, 8]"),
        (_of_onnxruntime("FusedMatMul", ["x", "x"], transB=1), "[B, 5, 5]"),
        (_of_onnxruntime("MatMulNBits", ["x", "packed", "g"], K=8, N=6, bits=4, block_size=16), "[B, 5, 6]"),
        (_of_onnxruntime("MultiHeadAttention", ["x", "k", "v"], num_heads=2), "[B, 5, 6]"),
        (_of_onnxruntime("Attention", ["x", "qkv", "g"], num_heads=2), "[B, 5, 8]"),
        (_of_onnxruntime("QLinearGlobalAveragePool", ["i", "s", "z", "s", "z"]), "[B, 3, 1, 1]"),
        (_of_onnxruntime("FusedConv", ["i", "c"], kernel_shape=[3, 3]), "[B, 4, 7, 7]"),
    ]
    weights = {"w": (8,), "g": (8,), "packed": weight("packed", 6, 1, 8, dtype=TensorProto.UINT8), "qkv": (8, 24)}
    inputs = {"x": ["B", 5, 8], "k": ["B", 7, 8], "v": ["B", 7, 6], "i": ["B", 3, 9, 9]}
    outputs = {made.output[0]: None for made, _ in expected}
    made_graph = graph([made for made, _ in expected], inputs, outputs, {**weights, **SCALES, "c": (4, 3, 3, 3)})
    values = read(save(tmp_path / "m.onnx", made_graph)).values
    assert {name: values[name].dims for name in outputs} == {made.output[0]: dims for made, dims in expected}


def test_names_of_the_older_exporter_are_modules(tmp_path: Path) -> None:
    """`/up/up.0/Conv` is the first module of a container."""
    operators = read(_pyramid(tmp_path)).operators or ()
    paths = [[(module.path, module.type) for module in operator.modules] for operator in operators]
    assert paths[1] == [("up", ""), ("up.0", "ConvTranspose")]


def test_without_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, shapes are not known, a note says how to have them, and FLOPs are not 0."""
    monkeypatch.setattr(shapes, "find_spec", lambda _: None)
    summary = summarize(_pyramid(tmp_path), dims={"L": 64})
    assert any("pytest-modelbudget[onnx]" in note for note in summary.notes)
    assert summary.flops.uncounted


@pytest.mark.slow
def test_inference_that_would_take_all_memory(tmp_path: Path) -> None:
    """A list that doubles 32 times ends the inference and nothing else: its shape is not known, and a note says so."""
    doubling = [node("Concat", [f"s{step}", f"s{step}"], [f"s{step + 1}"], axis=0) for step in range(32)]
    nodes = [node("Shape", ["x"], ["s0"]), *doubling, node("ConstantOfShape", ["s32"], ["y"])]
    model = read(save(tmp_path / "m.onnx", graph(nodes, {"x": ["B", 4]}, {"y": None})))
    assert "y" not in model.values
    assert shapes.NOT_INFERRED in model.notes


def test_inputs_that_are_no_tensors_are_named(tmp_path: Path) -> None:
    """An input that is a list, or says no rank, has no line, and a note says so."""
    lists = helper.make_tensor_sequence_value_info("many", TensorProto.FLOAT, None)
    made = graph([node("SequenceLength", ["many"], ["y"])], {}, {"y": []})
    made.input.append(lists)
    model: ExportedModel = read(save(tmp_path / "m.onnx", made))
    assert model.inputs == ()
    assert any(note.startswith("the input many is no tensor") for note in model.notes)
