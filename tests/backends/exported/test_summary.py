"""What is made of an exported model, whatever file it was read from; graphs are written by hand here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_modelbudget.backends import exported
from pytest_modelbudget.backends.exported.costs import Dialect
from pytest_modelbudget.backends.exported.graph import Constant, ExportedModel, Module, Operator
from pytest_modelbudget.backends.exported.ports import solution
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.snapshot import text
from pytest_modelbudget.summary import FileFacts, Input, Summary, TensorSpec

LAYER, BLOCK = Module("layer1", "Sequential"), Module("layer1.0", "Block")
OPERATORS = (
    Operator("aten.conv2d", ("x", "conv1.weight"), ("a",), modules=(Module("conv1", "Conv2d"),)),
    Operator("aten.relu", ("a",), ("b",), modules=(Module("conv1", "Conv2d"),)),
    Operator("aten.dequantize", ("layer1.0.conv.q", "scale"), ("w",), modules=(LAYER, BLOCK)),
    Operator("aten.conv2d", ("b", "w"), ("c",), modules=(LAYER, BLOCK, Module("layer1.0.conv", "Conv2d"))),
    Operator("aten.add", ("c", "b"), ("d",), modules=(LAYER, BLOCK)),
)
CONSTANTS = {
    "conv1.weight": Constant((8, 3, 3, 3), "float32", "s1"),
    "layer1.0.conv.q": Constant((8, 8, 3, 3), "int4", "s2", stored_bytes=288),
    "scale": Constant((8,), "float32", "s3", role="buffer"),
    "again": Constant((8, 3, 3, 3), "float32", "s1"),
}
VALUES = {
    "x": "float32[N, 3, 32, 32]", "a": "float32[N, 8, 30, 30]", "b": "float32[N, 8, 30, 30]", "w": "float32[8, 8, 3, 3]",
    "c": "float32[N, 8, 28, 28]", "d": "float32[N, 8, 28, 28]",
}  # fmt: skip
VALUES_X = TensorSpec.parse(VALUES["x"])
FLOPS = 2 * 8 * 30 * 30 * 27 + 2 * 8 * 28 * 28 * 72
"""Of one example: each output element is a sum over one filter."""


@pytest.fixture(autouse=True)
def dialect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators of this file, whatever the formats have."""
    free = frozenset(("aten.relu", "aten.add", "aten.dequantize"))
    monkeypatch.setattr(Dialect, "of", lambda _: Dialect({"aten.conv2d": _convolution()}, free))


def _convolution() -> Any:
    from pytest_modelbudget.backends.costs.flop_rules import rules_of

    return rules_of("torch")["aten.slow_conv_dilated2d"]


def model(operators: tuple[Operator, ...] | None = OPERATORS, **fields: Any) -> ExportedModel:
    values = {name: TensorSpec.parse(spec) for name, spec in VALUES.items()}
    ports = {name: (Input(name, values[name]),) for name in "xd"}
    made = ExportedModel("onnx", 1000, CONSTANTS, "onnx", operators, values, ports["x"], ports["d"])
    return replace(made, **fields)


def counted(subject: ExportedModel, inputs: object = None, **sizes: int) -> Summary:
    return exported.summarize(subject, name="m", inputs=parse(inputs), sizes=sizes, built_here=True)  # type: ignore[arg-type]


def test_a_module_without_modules_in_it_is_a_row_and_its_operators_are_not() -> None:
    summary = counted(model())
    assert [(row.path, row.type, row.container, row.connected_to) for row in summary.layers] == [
        ("conv1", "Conv2d", False, (("x",),)),
        ("layer1", "Sequential", True, (("conv1",),)),
        ("layer1.0", "Block", True, (("conv1",),)),
        ("layer1.0.dequantize", "dequantize", False, ()),
        ("layer1.0.conv", "Conv2d", False, (("conv1", "layer1.0.dequantize"),)),
        ("layer1.0.add", "add", False, (("layer1.0.conv", "conv1"),)),
        ("(root)", "Tensors", False, ()),
    ]
    assert [row.output_text for row in summary.layers[:2]] == ["[B, 8, 30, 30]", "[B, 8, 28, 28]"]


def test_an_operator_or_a_module_without_a_name_is_a_row() -> None:
    """Files that somebody edited have such; none is lost, and none is below itself."""
    nameless = (Operator("", ("x",), ("y",)), Operator("Relu", ("y",), ("z",), modules=(Module(""), Module("b", "B"))))
    assert [layer.path for layer in counted(model(nameless)).layers][:3] == ["operator", "", "b"]


def test_weights_stand_where_they_are_used_once_each_as_stored() -> None:
    summary = counted(model())
    assert {row.path: row.weights_text for row in summary.layers if row.weights} == {
        "conv1": "weight 8x3x3x3 frozen",
        "layer1.0.conv": "q 8x8x3x3 int4 288B frozen + scale 8 buffer",
        "(root)": "again 8x3x3x3 frozen = conv1.weight",
    }
    assert (summary.params, summary.buffers, summary.weight_bytes) == (216 + 576, 8, 864 + 288 + 32)


@pytest.mark.parametrize(("inputs", "sizes", "batch"), [(None, {"B": 3}, 3), ("float32[S, 3, 32, 32]", {"S": 5}, 5)])
def test_flops_follow_the_sizes_of_its_symbols_as_they_are_declared(
    inputs: object, sizes: dict[str, int], batch: int
) -> None:
    summary = counted(model(), inputs, **sizes)
    assert (summary.flops.value, summary.flops.uncounted, summary.sizes) == (batch * FLOPS, (), tuple(sizes.items()))


def test_declared_numbers_fix_what_the_file_leaves_open() -> None:
    summary = counted(model(), [2, 3, 32, 32])
    assert (summary.flops.value, summary.outputs, summary.sizes) == (2 * FLOPS, (TensorSpec((2, 8, 28, 28)),), ())


@pytest.mark.parametrize(
    "inputs",
    ["float32[B, 1, 32, 32]", "float32[B, 32]", "float16[B, 3, 32, 32]", ["float32[B, 3, 32, 32]", "int64[B]"]],
)
def test_inputs_that_are_not_those_of_the_file_are_an_error_that_names_both(inputs: object) -> None:
    with pytest.raises(
        ModelBudgetError, match=r"m: the file has the inputs? x float32\[B|m: the file has the inputs? x"
    ):
        counted(model(), inputs)


def test_one_symbol_in_two_inputs_has_one_size() -> None:
    """And a part of the names of a file is none of its orders."""
    ports = (Input("x", VALUES_X), Input("y", VALUES_X))
    two = model(inputs=ports, values={**model().values, "y": VALUES_X})
    with pytest.raises(ModelBudgetError, match="the file has one size N in several places, and 2 and 3 are declared"):
        counted(two, ["float32[2, 3, 32, 32]", "float32[3, 3, 32, 32]"])
    with pytest.raises(ModelBudgetError, match=r"the file has the inputs x .*, y .*, and x .*, z .* are declared"):
        counted(two, {"x": "float32[2, 3, 32, 32]", "z": "float32[2, 3, 32, 32]"})


@pytest.mark.parametrize(
    ("dim", "other", "solved"),
    [
        ("B", "N", {"B": "N"}), ("B", 3, {"B": 3}), ("2*T+1", 9, {"T": 4}), ("2*T", 9, None), ("T//2", 4, None), (3, 3, {}),
        (3, 4, None), (None, 4, {}), ("B*T", 4, None), ("2*T", "S", None),
    ],
)  # fmt: skip
def test_what_is_declared_for_an_expression_is_solved(dim: Any, other: Any, solved: Any) -> None:
    assert solution(dim, other) == solved


def test_sizes_that_change_nothing_are_told() -> None:
    assert counted(model(), B=2, Q=4).notes[0] == "Q=4 changes nothing: no input of the file has such a dimension"


def test_a_symbol_without_a_size_makes_flops_unknown_and_not_wrong() -> None:
    specs = {name: replace(spec, shape=(1, *spec.shape[1:])) for name, spec in model().values.items() if name != "w"}
    specs |= {"x": TensorSpec((1, 3, "H", 32)), "w": model().values["w"]}
    summary = counted(model(values=specs, inputs=(Input("x", specs["x"]),)))
    assert summary.flops.value is None
    assert "FLOPs are not known: H has no size: write dims: {H: 128}" in summary.notes
    assert counted(model(values=specs, inputs=(Input("x", specs["x"]),)), H=32).flops.value == FLOPS


@pytest.mark.parametrize(
    ("control", "flops", "uncounted"),
    [
        pytest.param(Operator("Loop", trips=5), 5 * FLOPS, (), id="a loop of known trips"),
        pytest.param(Operator("Loop", trips=0), 0, (), id="one that never runs"),
        pytest.param(Operator("Loop", trips=None), FLOPS, (("Loop", 1),), id="unknown trips count once"),
        pytest.param(
            Operator("If", bodies=(OPERATORS[:1], OPERATORS), chooses=True),
            2 * 8 * 30 * 30 * 27,
            (("If", 1),),
            id="branches that differ count the cheapest",
        ),
        pytest.param(Operator("If", bodies=(OPERATORS,), chooses=True), FLOPS, (), id="one branch"),
    ],
)
def test_bodies_count_as_often_as_they_run(control: Operator, flops: int, uncounted: tuple[object, ...]) -> None:
    operator = control if control.bodies else replace(control, bodies=(OPERATORS,))
    count = counted(model((operator,))).flops
    assert (count.value, count.uncounted) == (flops, uncounted)


def test_an_operator_without_a_rule_or_a_shape_makes_a_lower_bound() -> None:
    unknown = replace(OPERATORS[0], outputs=("nowhere",))
    count = counted(model((*OPERATORS, unknown, Operator("Custom", ("d",), ("e",))))).flops
    assert (count.value, count.uncounted) == (FLOPS, (("Custom", 1), ("aten.conv2d", 1)))


def test_a_file_of_weights_alone_has_its_tensors_by_what_holds_them() -> None:
    summary = counted(model(None, values={}, inputs=(), outputs=()))
    assert [row.path for row in summary.layers] == ["conv1", "layer1.0.conv", "(root)"]
    assert (summary.params, summary.flops.value) == (792, None)
    assert any("FLOPs and shapes are not known" in note for note in summary.notes)


def test_facts_of_the_file_go_through_snapshots_and_json() -> None:
    summary = counted(model(arena_bytes=64, arena_kernels="reference", delegated=2))
    assert summary.file == FileFacts(1000, 5, 2, 64, "reference")
    assert text.read(text.render(summary, declared="here")).file == summary.file
    assert Summary.checked(summary.to_dict()) == summary
