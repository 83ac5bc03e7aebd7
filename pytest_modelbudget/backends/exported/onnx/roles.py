"""Which of the tensors of a file are weights: the format does not say it, their exporter, type and use do."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Literal

from pytest_modelbudget.backends.exported.onnx.model import Graph
from pytest_modelbudget.backends.exported.onnx.naming import type_name
from pytest_modelbudget.backends.exported.onnx.tensors import Tensor

Role = Literal["param", "buffer"]

_SIGNATURE = re.compile(r": (PARAMETER|BUFFER|CONSTANT_TENSOR) target='([^']*)'")

_SETTINGS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (3, 4), "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2), "Clip": (1, 2), "Pad": (2,),
    "Resize": (1, 2), "Upsample": (1,), "Dropout": (1,), "OneHot": (2,), "NonMaxSuppression": (3, 4),
    "QLinearConv": (1, 2, 4, 5, 6, 7), "QLinearMatMul": (1, 2, 4, 5, 6, 7), "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3), "com.microsoft.QuantizeLinear": (1, 2), "com.microsoft.DequantizeLinear": (1, 2),
    "com.microsoft.QLinearConv": (1, 2, 4, 5, 6, 7), "com.microsoft.QLinearAdd": (1, 2, 4, 5, 6, 7),
    "com.microsoft.QLinearMul": (1, 2, 4, 5, 6, 7), "com.microsoft.QLinearAveragePool": (1, 2, 3, 4),
    "com.microsoft.QLinearGlobalAveragePool": (1, 2, 3, 4), "com.microsoft.QLinearLeakyRelu": (1, 2, 3, 4),
    "com.microsoft.QLinearSigmoid": (1, 2, 3, 4), "com.microsoft.QLinearSoftmax": (1, 2, 3, 4),
    "com.microsoft.QLinearReduceMean": (1, 2, 3, 4), "com.microsoft.QLinearWhere": (2, 3, 5, 6, 7, 8),
    "com.microsoft.QGemm": (1, 2, 4, 5, 7, 8), "com.microsoft.QAttention": (3, 4, 6, 7),
    "com.microsoft.MatMulIntegerToFloat": (2, 3, 4, 5), "com.microsoft.DynamicQuantizeMatMul": (2, 3),
    "com.microsoft.DynamicQuantizeLSTM": (8, 9, 10, 11), "com.microsoft.MatMulNBits": (2, 3, 4),
    "com.microsoft.MatMulBnb4": (2,), "STFT": (2,), "com.microsoft.GatherBlockQuantized": (2, 3),
}  # fmt: skip
"""Inputs that are scales, zero points, running statistics, bounds: how an operator works, not what it has learnt."""

_WHOLE_NUMBERED_WEIGHTS: dict[str, tuple[int, ...]] = {
    "QLinearConv": (8,), "com.microsoft.QLinearConv": (8,), "com.microsoft.QGemm": (6,), "DequantizeLinear": (0,),
    "com.microsoft.DequantizeLinear": (0,), "com.microsoft.QAttention": (2,),
}  # fmt: skip
"""Inputs of 16 and 32 bits that are weights of a quantised model; all other such numbers are shapes, axes, places."""

_WEIGHT_TYPES = ("float", "bfloat", "complex", "int8", "uint8", "int4", "uint4", "int2", "uint2")
_Uses = Mapping[str, set[tuple[str, int]]]


def roles_of(graph: Graph, tensors: Mapping[str, Tensor]) -> dict[str, Role]:
    """The role of each tensor of a flat graph.

    What torch's exporter wrote down counts first. A scalar is a weight only where it says so.
    """
    signature = signature_of(graph)
    uses: defaultdict[str, set[tuple[str, int]]] = defaultdict(set)
    for name, use in _uses(graph):
        uses[name].add(use)
    return {name: signature.get(name) or _role(tensor, uses.get(name, set())) for name, tensor in tensors.items()}


def signature_of(graph: Graph) -> dict[str, Role]:
    """The roles of the source's tensors, by their names there, as torch's exporter wrote them down."""
    text = graph.metadata.get("pkg.torch.export.ExportedProgram.graph_signature", "")
    return {name: "param" if kind == "PARAMETER" else "buffer" for kind, name in _SIGNATURE.findall(text)}


def _role(tensor: Tensor, uses: set[tuple[str, int]]) -> Role:
    if any(position in _WHOLE_NUMBERED_WEIGHTS.get(type_, ()) for type_, position in uses):
        return "param"
    if not tensor.dims or not tensor.dtype.startswith(_WEIGHT_TYPES):
        return "buffer"
    as_setting = [position in _SETTINGS.get(type_, ()) for type_, position in uses]
    return "buffer" if as_setting and all(as_setting) else "param"


def _uses(graph: Graph) -> Iterator[tuple[str, tuple[str, int]]]:
    for node in graph.nodes:
        for position, name in enumerate(node.inputs):
            yield name, (type_name(node), position)
        for inner in node.graphs.values():
            yield from _uses(inner)
