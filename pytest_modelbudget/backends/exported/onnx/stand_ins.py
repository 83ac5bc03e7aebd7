"""Operators of the standard whose outputs have the shapes of operators of onnxruntime, which onnx does not know.

They only stand where shapes are inferred. Source: the shapes of ContribOperators.md of onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from pytest_modelbudget.backends.exported.onnx.model import (
    FLOAT,
    INT,
    STRING,
    Attribute,
    Graph,
    Node,
)  # fmt: skip
from pytest_modelbudget.backends.exported.onnx.naming import type_name
from pytest_modelbudget.backends.exported.onnx.tensors import Tensor

_StandIn = Callable[[Node, "StandIns"], "Iterator[Node]"]


class StandIns:
    """Replaces nodes of a flat graph; `tensors` are all that it stores, `added` what stand-ins need beside these."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.added: list[Tensor] = []

    def graph(self, graph: Graph) -> Graph:
        """The graph with stand-ins."""
        nodes = tuple(other for node in graph.nodes for other in self._nodes(node))
        added, self.added = self.added, []
        return replace(graph, nodes=nodes, tensors=(*graph.tensors, *added))

    def _nodes(self, node: Node) -> Iterator[Node]:
        make = _STAND_INS.get(type_name(node))
        if make is not None and node.inputs and node.outputs:
            yield from make(node, self)
        elif graphs := node.graphs:
            outer, self.added = self.added, []
            inner = {key: self.graph(graph) for key, graph in graphs.items()}
            self.added = outer
            yield replace(node, graphs=inner)
        else:
            yield node

    def weight(self, node: Node, rows: int, columns: int) -> str:
        """The name of a new matrix without values."""
        name = f"{node.outputs[0]}/matrix"
        self.added.append(Tensor(name, (rows, columns), FLOAT, name, 4 * rows * columns))
        return name


def _standard(node: Node, type_: str, inputs: tuple[str, ...], *kept: str) -> Node:
    """One of the standard's operators in place of a node, with its first output and some of its attributes."""
    attributes = {name: node.attributes[name] for name in kept if name in node.attributes}
    return Node(type_, "", inputs, node.outputs[:1], node.name, attributes=attributes)


def _as(type_: str, positions: tuple[int, ...], *kept: str) -> _StandIn:
    def make(node: Node, _: StandIns) -> Iterator[Node]:
        if _number(node, "channels_last") or len(node.inputs) <= max(positions):
            yield node
        else:
            yield _standard(node, type_, tuple(node.inputs[position] for position in positions), *kept)

    return make


def _like_first(node: Node, _: StandIns) -> Iterator[Node]:
    """The first output, and the sum that skip layers give as their fourth."""
    for position, output in enumerate(node.outputs):
        if output and position in (0, 3):
            yield Node("Identity", "", node.inputs[:1], (output,), f"{node.name}/{position}")


def _concatenation(node: Node, _: StandIns) -> Iterator[Node]:
    """After the scale and zero point of the output come each part and its own."""
    yield _standard(node, "Concat", node.inputs[2::3], "axis")


def _product(node: Node, stand_ins: StandIns) -> Iterator[Node]:
    if _number(node, "transBatchA") or _number(node, "transBatchB") or len(node.inputs) < 2:
        yield node
    elif not _number(node, "transA") and not _number(node, "transB"):
        yield _standard(node, "MatMul", node.inputs[:2])
    else:
        left = "ji" if _number(node, "transA") else "ij"
        right = "kj" if _number(node, "transB") else "jk"
        weight = stand_ins.tensors.get(node.inputs[1])
        batch = "" if weight is not None and len(weight.dims) == 2 else "..."
        equation = Attribute(STRING, f"...{left},{batch}{right}->...ik")
        yield replace(_standard(node, "Einsum", node.inputs[:2]), attributes={"equation": equation})


def _product_with_blocks(node: Node, stand_ins: StandIns) -> Iterator[Node]:
    columns, rows = _number(node, "N"), _number(node, "K")
    if columns is None or rows is None:
        yield node
    else:
        yield _standard(node, "MatMul", (node.inputs[0], stand_ins.weight(node, rows, columns)))


def _attention(node: Node, _: StandIns) -> Iterator[Node]:
    """`(B, S, width)` and values `(B, L, width)`; queries, keys and values that lie in one have other shapes."""
    if len(node.inputs) > 2 and node.inputs[2]:
        equation = Attribute(STRING, "bsh,blv->bsv")
        inputs = (node.inputs[0], node.inputs[2])
        yield replace(_standard(node, "Einsum", inputs), attributes={"equation": equation})
    else:
        yield node


def _attention_with_projection(node: Node, stand_ins: StandIns) -> Iterator[Node]:
    weight = stand_ins.tensors.get(node.inputs[1]) if len(node.inputs) > 1 else None
    if weight is None or len(weight.dims) != 2:
        yield node
        return
    sizes = node.attributes.get("qkv_hidden_sizes")
    width = sizes.value[2] if sizes is not None and sizes.value else weight.dims[1] // 3
    yield _standard(node, "MatMul", (node.inputs[0], stand_ins.weight(node, weight.dims[0], width)))


def _grouped_attention(node: Node, _: StandIns) -> Iterator[Node]:
    """As the query, where keys do not lie in one with it."""
    yield _standard(node, "Identity", node.inputs[:1]) if len(node.inputs) > 2 and node.inputs[1] else node


def _number(node: Node, name: str) -> int | None:
    attribute = node.attributes.get(name)
    return attribute.value if attribute is not None and attribute.kind == INT else None


_WINDOW = ("auto_pad", "ceil_mode", "count_include_pad", "dilations", "group", "kernel_shape", "pads", "strides")
_LIKE_FIRST = """
    BiasAdd BiasGelu FastGelu Gelu QuickGelu QLinearLeakyRelu QLinearSigmoid QLinearSoftmax RotaryEmbedding
    SkipLayerNormalization SkipSimplifiedLayerNormalization SkipGroupNorm BiasSoftmax GroupNorm
"""

_MICROSOFT: dict[str, _StandIn] = {
    **dict.fromkeys(_LIKE_FIRST.split(), _like_first),
    "QLinearAdd": _as("Add", (0, 3)),
    "QLinearMul": _as("Mul", (0, 3)),
    "QLinearConcat": _concatenation,
    "QLinearAveragePool": _as("AveragePool", (0,), *_WINDOW),
    "QLinearGlobalAveragePool": _as("GlobalAveragePool", (0,)),
    "QLinearConv": _as("Conv", (0, 3), *_WINDOW),
    "FusedConv": _as("Conv", (0, 1), *_WINDOW),
    "QGemm": _as("Gemm", (0, 3), "transA", "transB"),
    "FusedGemm": _as("Gemm", (0, 1), "transA", "transB"),
    "QuantizeLinear": _as("QuantizeLinear", (0, 1, 2), "axis"),
    "DequantizeLinear": _as("DequantizeLinear", (0, 1), "axis"),
    "MatMulIntegerToFloat": _as("MatMul", (0, 1)),
    "DynamicQuantizeMatMul": _as("MatMul", (0, 1)),
    "FusedMatMul": _product,
    "FusedMatMulActivation": _product,
    "TransposeMatMul": _product,
    "MatMulNBits": _product_with_blocks,
    "MatMulBnb4": _product_with_blocks,
    "MultiHeadAttention": _attention,
    "Attention": _attention_with_projection,
    "QAttention": _attention_with_projection,
    "GroupQueryAttention": _grouped_attention,
}
_STAND_INS = {f"com.microsoft.{name}": make for name, make in _MICROSOFT.items()}
