"""Weights that lie packed in bytes, by the operators that unpack them: as what they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from pytest_modelbudget.backends.exported.graph import Constant
from pytest_modelbudget.backends.exported.onnx.model import Graph, Node
from pytest_modelbudget.backends.exported.onnx.naming import type_name

_BITS = {2: "uint2", 4: "uint4", 8: "uint8"}


def unpacked(constants: Mapping[str, Constant], graph: Graph) -> dict[str, Constant]:
    """The constants with the shapes and types of the weights that they hold.

    `com.microsoft.MatMulNBits` and `MatMulBnb4` have `(N, K)` weights in blocks, of so many bits.
    """
    unpacked = dict(constants)
    for node in _nodes(graph):
        bits = {"com.microsoft.MatMulNBits": _number(node, "bits") or 4, "com.microsoft.MatMulBnb4": 4}
        rows, columns, width = _number(node, "N"), _number(node, "K"), bits.get(type_name(node))
        name = node.inputs[1] if len(node.inputs) > 1 else ""
        if width in _BITS and rows and columns and rows > 0 and columns > 0 and name in unpacked:
            stored = unpacked[name].stored_bytes
            if stored is not None and 8 * stored >= rows * columns * width:
                unpacked[name] = replace(unpacked[name], shape=(rows, columns), dtype=_BITS[width])
    return unpacked


def _nodes(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes:
        yield node
        for inner in node.graphs.values():
            yield from _nodes(inner)


def _number(node: Node, name: str) -> int | None:
    attribute = node.attributes.get(name)
    return attribute.value if attribute is not None and isinstance(attribute.value, int) else None
