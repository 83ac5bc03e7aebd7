"""LiteRT files written by hand, of graphs as short as a test can say them; no converter is needed.

litert(Graph("x", "y", {"x": "float32[1, 4]", "w": Stored("float32[2, 4]"), "y": "float32[1, 2]"},
             [("FULLY_CONNECTED", "x w -", "y")]))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from pytest_modelbudget.backends.exported.litert.schema import (
    DTYPES,
    OPERATORS,
    Buffer,
    Code,
    Model,
    Operator,
    Quantization,
    SubGraph,
    Tensor,
)
from pytest_modelbudget.summary import ITEM_BYTES, TensorSpec
from tests.backends.exported.flatbuffer_writer import Longs, flatbuffer

FIRST_OPTIONS, MORE_OPTIONS = Operator.OPTIONS_TYPE, Operator.MORE_OPTIONS_TYPE


@dataclass(frozen=True)
class Stored:
    """A constant, of zeros or of `values`; `scales` make it a quantised one, `fields` are further ones of its table."""

    spec: str
    values: Sequence[int] | None = None
    scales: int = 0
    fields: Mapping[int, Any] = field(default_factory=dict)
    buffer: Mapping[int, Any] | None = None


@dataclass(frozen=True)
class Graph:
    """Names of inputs and outputs, tensors by their names, and operators: type, inputs (`-` for none), outputs, options.

    A dimension `B` is left open. Options are fields by their numbers.
    """

    inputs: str
    outputs: str
    tensors: Mapping[str, str | Stored | Mapping[int, Any]]
    operators: Sequence[tuple[Any, ...]]


def litert(*graphs: Graph, **changed: Any) -> bytes:
    """The file of these graphs; `changed` are fields of the root by their names in the schema."""
    types = sorted({operator[0] for graph in graphs for operator in graph.operators})
    buffers: list[Mapping[int, Any]] = [{}]
    tables = [_graph(graph, types, buffers) for graph in graphs]
    root = {Model.CODES: [_code(name) for name in types], Model.SUBGRAPHS: tables, Model.BUFFERS: buffers}
    return flatbuffer(root | {Model[name]: value for name, value in changed.items()}, b"TFL3")


def _code(name: str) -> Mapping[int, Any]:
    if name in OPERATORS:
        return {Code.OLD_BUILTIN: min(OPERATORS.index(name), 127), Code.BUILTIN: OPERATORS.index(name)}
    return {Code.BUILTIN: OPERATORS.index("CUSTOM"), Code.CUSTOM_NAME: name.removeprefix("custom ")}


def _graph(graph: Graph, types: list[str], buffers: list[Mapping[int, Any]]) -> Mapping[int, Any]:
    names = list(graph.tensors)

    def indices(text: str) -> list[int]:
        return [-1 if name == "-" else names.index(name) for name in text.split()]

    operators = []
    for kind, inputs, outputs, *options in graph.operators:
        table = {Operator.CODE: types.index(kind), Operator.INPUTS: indices(inputs), Operator.OUTPUTS: indices(outputs)}
        for union, fields in options:
            table |= {union: 1, union + 1: fields}
        operators.append(table)
    return {
        SubGraph.TENSORS: [_tensor(name, tensor, buffers) for name, tensor in graph.tensors.items()],
        SubGraph.INPUTS: indices(graph.inputs),
        SubGraph.OUTPUTS: indices(graph.outputs),
        SubGraph.OPERATORS: operators,
    }


def _tensor(name: str, tensor: Any, buffers: list[Mapping[int, Any]]) -> Mapping[int, Any]:
    if isinstance(tensor, Mapping):
        return {Tensor.NAME: name, **tensor}
    spec = TensorSpec.parse(tensor if isinstance(tensor, str) else tensor.spec)
    shape = [size if isinstance(size, int) else 1 for size in spec.shape]
    table: dict[int, Any] = {Tensor.NAME: name, Tensor.SHAPE: shape, Tensor.TYPE: DTYPES.index(spec.dtype)}
    if shape != list(spec.shape):
        table[Tensor.SIGNATURE] = [size if isinstance(size, int) else -1 for size in spec.shape]
    if isinstance(tensor, Stored):
        table[Tensor.BUFFER] = len(buffers)
        buffers.append(tensor.buffer if tensor.buffer is not None else {Buffer.DATA: _content(tensor, spec, shape)})
        if tensor.scales:
            table[Tensor.QUANTIZATION] = {Quantization.SCALE: [1] * tensor.scales}
        table |= tensor.fields
    return table


def _content(tensor: Stored, spec: TensorSpec, shape: Sequence[int]) -> bytes:
    item = ITEM_BYTES[spec.dtype]
    if tensor.values is None:
        return bytes(-int(-prod(shape) * item // 1))
    return b"".join(value.to_bytes(int(item), "little", signed=True) for value in tensor.values)


__all__ = ["FIRST_OPTIONS", "MORE_OPTIONS", "Graph", "Longs", "Stored", "litert"]
