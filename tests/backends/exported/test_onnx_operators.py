"""What operators of ONNX and onnxruntime cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from pytest_modelbudget.api import summarize
from pytest_modelbudget.backends.costs.flop_rules import rules_of
from pytest_modelbudget.backends.costs.free.onnx import ZERO
from tests.backends.exported.onnx_files import SCALES, graph, save, weight

node = helper.make_node


def _flops(folder: Path, made: Any, inputs: dict[str, Any], weights: dict[str, Any], output: Any) -> int | None:
    summary = summarize(save(folder / "m.onnx", graph([made], inputs, {"y": output}, weights), opset=23))
    assert not summary.flops.uncounted
    return summary.flops.value


INT8 = TensorProto.INT8


@pytest.mark.parametrize(
    ("made", "inputs", "weights", "output", "flops"),
    [
        pytest.param(
            node("Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1], group=2),
            {"x": [2, 4, 9, 9]}, {"w": (6, 2, 3, 3)}, [2, 6, 5, 5], 2 * (2 * 6 * 5 * 5) * (2 * 9), id="Conv of groups",
        ),
        pytest.param(
            node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]),
            {"x": [2, 4, 5, 5]}, {"w": (4, 3, 2, 2)}, [2, 3, 10, 10], 2 * (2 * 4 * 25) * (3 * 4), id="ConvTranspose",
        ),
        pytest.param(
            node("Gemm", ["x", "w"], ["y"], transA=1, transB=1), {"x": [5, 3]}, {"w": (7, 5)}, [3, 7], 2 * 3 * 5 * 7,
            id="Gemm of transposed",
        ),
        pytest.param(
            node("Einsum", ["x", "w"], ["y"], equation="bij,jk->bik"), {"x": [2, 3, 5]}, {"w": (5, 7)}, [2, 3, 7],
            2 * 2 * 3 * 5 * 7, id="Einsum",
        ),
        pytest.param(
            node("LSTM", ["x", "w", "r"], ["y"], hidden_size=6, direction="bidirectional"),
            {"x": [9, 2, 4]}, {"w": (2, 24, 4), "r": (2, 24, 6)}, [9, 2, 2, 6], 2 * 9 * 2 * 2 * 24 * 10, id="LSTM both ways",
        ),
        pytest.param(
            node("QLinearConv", ["x", "s", "z", "w", "s", "z", "s", "z"], ["y"]),
            {"x": [1, 4, 6, 6]}, {"w": weight("w", 8, 4, 3, 3, dtype=INT8), **SCALES}, [1, 8, 4, 4], 2 * 8 * 16 * 36, id="QLinearConv",
        ),
        pytest.param(
            node("QLinearMatMul", ["x", "s", "z", "w", "s", "z", "s", "z"], ["y"]),
            {"x": [3, 5]}, {"w": weight("w", 5, 7, dtype=INT8), **SCALES}, [3, 7], 2 * 3 * 5 * 7, id="QLinearMatMul",
        ),
        pytest.param(
            node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft", transA=1, transB=1),
            {"x": [2, 5, 3]}, {"w": (7, 5)}, [2, 3, 7], 2 * 2 * 3 * 5 * 7, id="FusedMatMul of transposed",
        ),
        pytest.param(
            node("MultiHeadAttention", ["x", "k", "v", "", "", "", "past", "past"], ["y"], domain="com.microsoft", num_heads=2),
            {"x": [2, 5, 8], "k": [2, 7, 8], "v": [2, 7, 6], "past": [2, 2, 3, 4]}, {}, [2, 5, 6], 2 * 2 * 5 * 10 * (8 + 6),
            id="MultiHeadAttention with a past, after inputs that are left out",
        ),
        pytest.param(
            node("Attention", ["x", "w", "b"], ["y"], domain="com.microsoft", num_heads=2),
            {"x": [2, 5, 8]}, {"w": (8, 24), "b": (24,)}, [2, 5, 8], 2 * 2 * 5 * 8 * 24 + 2 * 2 * 5 * 5 * 16,
            id="Attention of onnxruntime, with its projection",
        ),
        pytest.param(
            node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=32, N=6, bits=4, block_size=32),
            {"x": [3, 32]}, {"w": weight("w", 6, 1, 16, dtype=TensorProto.UINT8), "s": (6,)}, [3, 6], 2 * 3 * 32 * 6,
            id="MatMulNBits",
        ),
        pytest.param(
            node("DFT", ["x"], ["y"], axis=1, onesided=1), {"x": [3, 16, 1]}, {}, [3, 9, 2], int(2.5 * 3 * 16 * 4), id="DFT of reals"
        ),
    ],
)  # fmt: skip
def test_operators(
    tmp_path: Path, made: Any, inputs: dict[str, Any], weights: dict[str, Any], output: list[int], flops: int
) -> None:
    """An operator costs two FLOPs for each multiply-add."""
    assert _flops(tmp_path, made, inputs, weights, output) == flops


@pytest.mark.parametrize(
    ("shape", "past", "flops", "attributes"),
    [
        pytest.param((2, 4, 5, 8), None, 2 * 2 * 4 * 5 * 5 * 16, {}, id="heads as an axis"),
        pytest.param((2, 4, 5, 8), (2, 4, 3, 8), 2 * 2 * 4 * 5 * 8 * 16, {}, id="with keys of earlier steps"),
        pytest.param(
            (2, 5, 32), None, 2 * 2 * 5 * 5 * 64, {"q_num_heads": 4, "kv_num_heads": 4}, id="heads side by side"
        ),
    ],
)
def test_attention_of_the_standard(
    tmp_path: Path, shape: tuple[int, ...], past: tuple[int, ...] | None, flops: int, attributes: dict[str, int]
) -> None:
    """Attention is the full square of queries and keys, in both layouts."""
    inputs = {name: list(shape) for name in "qkv"} | ({"p": list(past)} if past else {})
    made = node("Attention", [*"qkv", *(["", "p", "p"] if past else [])], ["y"], **attributes)
    assert _flops(tmp_path, made, inputs, {}, list(shape)) == flops


def test_every_operator_of_the_standard_has_a_rule_or_is_free() -> None:
    """What is in no list is what nobody can count from shapes, or runs graphs."""
    schemas = onnx.defs.get_all_schemas_with_history()
    names = {f"{schema.domain}.{schema.name}".removeprefix(".") for schema in schemas}
    rules = set(rules_of("onnx"))
    control = {"If", "Loop", "Scan", "SequenceMap"}
    unknown = {
        "Det", "LinearAttention", "ai.onnx.ml.LinearClassifier", "ai.onnx.ml.LinearRegressor",
        "ai.onnx.ml.SVMClassifier", "ai.onnx.ml.SVMRegressor", "ai.onnx.preview.FlexAttention",
        *(f"ai.onnx.preview.training.{name}" for name in ("Adagrad", "Adam", "Gradient", "Momentum")),
    }  # fmt: skip
    assert names - rules - ZERO <= control | unknown
    assert not rules & ZERO
