"""A flat graph as a protocol buffer again, without weights: what `onnx.shape_inference` is given."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_modelbudget.backends.exported.onnx.model import (
    FLOAT,
    FLOATS,
    GRAPH,
    INT,
    INTS,
    STRING,
    STRINGS,
    TENSOR,
    Attribute,
    Graph,
    Node,
    Value,
)  # fmt: skip
from pytest_modelbudget.backends.exported.onnx.tensors import DTYPES, Tensor
from pytest_modelbudget.summary import Dim

_OLDEST_VERSION = 8
"""Before the fourth version of the format, weights had to be inputs too."""

_CODES = {name: code for code, (name, _) in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Encoder:
    """Encodes a graph with several shapes of its values; nodes that stay the same are encoded once."""

    opsets: Mapping[str, int]
    ir_version: int
    nodes: dict[int, bytes] = field(default_factory=dict)

    def model(self, graph: Graph) -> bytes:
        """The bytes of a `ModelProto`."""
        domains = (_span(8, _text(1, domain) + _number(2, version)) for domain, version in self.opsets.items())
        return _number(1, max(self.ir_version, _OLDEST_VERSION)) + b"".join(domains) + _span(7, self._graph(graph))

    def _graph(self, graph: Graph) -> bytes:
        return b"".join((
            *map(self._node, graph.nodes),
            _text(2, "graph"),
            *(_span(5, _tensor(tensor)) for tensor in graph.tensors),
            *(_span(11, _value(value)) for value in graph.inputs),
            *(_span(12, _value(value)) for value in graph.outputs),
            *(_span(13, _value(value)) for value in graph.values if value.spec is not None),
        ))  # fmt: skip

    def _node(self, node: Node) -> bytes:
        if node.graphs:
            inner = (_span(6, self._graph(graph)) + _number(20, GRAPH) for graph in node.graphs.values())
            graphs = (_span(5, _text(1, name) + graph) for name, graph in zip(node.graphs, inner, strict=True))
            return _span(1, _node(node) + b"".join(graphs))
        if id(node) not in self.nodes:
            self.nodes[id(node)] = _span(1, _node(node))
        return self.nodes[id(node)]


def _node(node: Node) -> bytes:
    return b"".join((
        *(_text(1, name) for name in node.inputs),
        *(_text(2, name) for name in node.outputs),
        _text(3, node.name),
        _text(4, node.type),
        _text(7, node.domain),
        *(_span(5, _attribute(name, attribute)) for name, attribute in node.attributes.items()),
    ))  # fmt: skip


def _attribute(name: str, attribute: Attribute) -> bytes:
    kind, value = attribute.kind, attribute.value
    if value is None:
        return _text(1, name)
    body = {
        FLOAT: lambda: _float(2, value),
        INT: lambda: _number(3, value),
        STRING: lambda: _text(4, value),
        TENSOR: lambda: _span(5, _tensor(value)),
        FLOATS: lambda: b"".join(_float(7, number) for number in value),
        INTS: lambda: b"".join(_number(8, number) for number in value),
        STRINGS: lambda: b"".join(_text(9, text) for text in value),
    }[kind]()
    return _text(1, name) + body + _number(20, kind)


def _tensor(tensor: Tensor) -> bytes:
    dims = b"".join(_number(1, dim) for dim in tensor.dims)
    data = b"" if tensor.raw is None else _span(9, tensor.raw)
    return dims + _number(2, tensor.code) + _text(8, tensor.name) + data


def _value(value: Value) -> bytes:
    if value.spec is None:
        return _text(1, value.name)
    dims = b"".join(_span(1, _dim(dim)) for dim in value.spec.shape)
    tensor = _number(1, _CODES[value.spec.dtype]) + _span(2, dims)
    return _text(1, value.name) + _span(2, _span(1, tensor))


def _dim(dim: Dim) -> bytes:
    if dim is None:
        return b""
    return _number(1, dim) if isinstance(dim, int) else _text(2, dim)


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    data.append(number)
    return bytes(data)


def _number(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


def _float(field: int, number: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", number)


def _span(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _text(field: int, text: str) -> bytes:
    return _span(field, text.encode("utf-8", "replace"))
