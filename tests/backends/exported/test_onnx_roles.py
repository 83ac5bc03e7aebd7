"""What of the tensors of an ONNX file is a weight; the graphs are those that torch's older exporter writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from pytest_modelbudget.api import summarize
from pytest_modelbudget.backends.exported.onnx import read
from pytest_modelbudget.summary.metrics import METRICS
from tests.backends.exported.onnx_files import graph, number, save, weight

node = helper.make_node


def _params(path: Path) -> set[str]:
    return {name for name, constant in read(path).constants.items() if constant.role == "param"}


def _recurrent(type_: str, gates: int, state: str, *moves: Any) -> Any:
    """A layer of 8 features and 16 units whose first state is `state`, as it is or made from it by `moves`."""
    last = moves[-1].output[0] if moves else state
    inputs = ["x", "onnx::W", "onnx::R", "", "lengths", last, *([last] if type_ == "LSTM" else [])]
    return graph(
        [*moves, node(type_, inputs, ["y"], hidden_size=16)],
        {"x": [7, 2, 8]},
        {"y": [7, 1, 2, 16]},
        {
            "onnx::W": (1, gates * 16, 8), "onnx::R": (1, gates * 16, 16), state: (1, 2, 16), "axes": number("axes", 0),
            "lengths": number("lengths", 7, 7, dtype=TensorProto.INT32),
        },
    )  # fmt: skip


@pytest.mark.parametrize(
    ("made", "states"),
    [
        pytest.param(_recurrent("LSTM", 4, "/Constant_output_0"), set(), id="LSTM"),
        pytest.param(
            _recurrent("GRU", 3, "/C", node("Unsqueeze", ["/C", "axes"], ["u"]), node("Concat", ["u", "u"], ["h"], axis=0)),
            set(), id="GRU, by way of other operators",
        ),
        pytest.param(
            _recurrent("RNN", 1, "/C", node("Expand", ["/C", "axes"], ["h"]), node("Relu", ["/C"], ["z"])), {"/C"},
            id="what another operator works with too",
        ),
        pytest.param(_recurrent("GRU", 3, "h0"), {"h0"}, id="a state that the source has as its own"),
    ],
)  # fmt: skip
def test_first_states_are_no_weights(tmp_path: Path, made: Any, states: set[str]) -> None:
    """The zeros before the first step are of the size of the batch, and no params."""
    path = save(tmp_path / "m.onnx", made, producer_name="pytorch")
    assert _params(path) == {"onnx::W", "onnx::R"} | states


@pytest.mark.parametrize(
    ("name", "dims", "type_", "producer", "is_param"),
    [
        pytest.param("block.scale", (), "Mul", "pytorch", True, id="a scalar that was learnt"),
        pytest.param("s", (), "Mul", "pytorch", True, id="one of the whole model"),
        pytest.param("block.scale", (), "Mul", "onnx.quantize", True, id="one in a file that was worked on"),
        pytest.param("eps", (), "Add", "", False, id="a constant of nobody"),
        pytest.param("/Constant_2_output_0", (1,), "Div", "pytorch", False, id="a constant of attention"),
        pytest.param("onnx::Mul_5", (), "Mul", "pytorch", False, id="a constant that was folded"),
        pytest.param("val_3", (1,), "Mul", "pytorch", False, id="a constant of the newer exporter"),
        pytest.param("onnx::MatMul_9", (1, 1), "MatMul", "pytorch", True, id="the folded weight of one unit"),
        pytest.param("/Constant_3_output_0", (4,), "Mul", "pytorch", True, id="more than one number"),
    ],
)
def test_small_tensors(
    tmp_path: Path, name: str, dims: tuple[int, ...], type_: str, producer: str, is_param: bool
) -> None:
    """A tensor of one number is a weight by its name, or as that of a layer."""
    made = graph([node(type_, ["x", name], ["y"])], {"x": [4, 1]}, {"y": None}, {name: weight(name, *dims)})
    assert bool(_params(save(tmp_path / "m.onnx", made, producer_name=producer))) is is_param


@pytest.mark.parametrize(
    ("weights", "params"),
    [
        pytest.param({"norm.weight": (8,)}, {"norm.weight"}, id="beside parameters"),
        pytest.param({}, {"/Constant_output_0"}, id="in a frozen script, that has no parameters by name"),
    ],
)
def test_constants_among_the_operators(tmp_path: Path, weights: dict[str, Any], params: set[str]) -> None:
    """What torch's exporter makes for itself, as the scale of a group norm, is no parameter of the source."""
    name = "/Constant_output_0"
    constant = node("Constant", [], [name], value=weight("", 8))
    scaled = [node("Mul", ["h", other], ["y"]) for other in weights] or [node("Identity", ["h"], ["y"])]
    made = graph([constant, node("Mul", ["x", name], ["h"]), *scaled], {"x": [4, 8]}, {"y": None}, weights)
    assert _params(save(tmp_path / "m.onnx", made, producer_name="pytorch")) == params


@pytest.mark.parametrize(
    ("nodes", "inputs", "missing"),
    [
        pytest.param([node("Gemm", ["x", "weight", "bias"], ["y"])], {"weight": [8, 8], "bias": [8]}, "weight, bias", id="Gemm"),
        pytest.param(
            [node("Transpose", ["weight"], ["t"]), node("MatMul", ["x", "t"], ["y"])], {"weight": [8, 8]}, "weight",
            id="a product with the transposed weight",
        ),
        pytest.param([node("MatMul", ["x", "keys"], ["y"])], {"keys": [1, 8, 8]}, "", id="a product of two inputs"),
        pytest.param([node("MatMul", ["x", "keys"], ["y"])], {"keys": [8, "T"]}, "", id="an input of any length"),
    ],
)  # fmt: skip
def test_weights_that_are_inputs(tmp_path: Path, nodes: list[Any], inputs: dict[str, Any], missing: str) -> None:
    """Of a file that was exported without its weights, params are not known, and a note names these."""
    path = save(tmp_path / "m.onnx", graph(nodes, {"x": ["B", 8], **inputs}, {"y": None}))
    summary = summarize(path)
    assert METRICS["params"].get(summary) == (None if missing else 0)
    assert any(f"gives them as the inputs {missing}, and" in note for note in summary.notes) is bool(missing)
