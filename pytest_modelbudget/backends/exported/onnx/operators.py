"""Operators and constants of a flat graph, as plain data for all that counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pytest_modelbudget.backends.exported.graph import Module, Operator
from pytest_modelbudget.backends.exported.onnx.model import (
    FLOAT,
    FLOATS,
    INT,
    INTS,
    STRING,
    STRINGS,
    TENSOR,
    Graph,
    Node,
)  # fmt: skip
from pytest_modelbudget.backends.exported.onnx.modules import ModuleFinder
from pytest_modelbudget.backends.exported.onnx.naming import type_name
from pytest_modelbudget.backends.exported.onnx.tensors import Tensor
from pytest_modelbudget.summary import TensorSpec

_PLAIN = (FLOAT, INT, STRING, FLOATS, INTS, STRINGS)
_BOOL = 9
_READ_INPUTS: dict[str, dict[int, str]] = {"DFT": {1: "dft_length", 2: "axis"}, "STFT": {3: "frame_length"}}
"""Inputs that a FLOP rule needs the values of: they become attributes."""

_DECIDED_BY_VALUES = "decided by values"
"""What such an input is that no constant has: no number, so that a rule refuses it."""

_DFT_OF_LAST_AXIS = 20
"""The opset from which on the axis is an input, and the last of the signal without it."""

INPUT_POSITIONS = "input_positions"
"""The attribute that says which inputs an operator has, where one before another is left out."""


def tensors_of(graph: Graph) -> Iterator[Tensor]:
    """All tensors that a flat graph stores: its initializers and its constants, those of its bodies too."""
    yield from graph.tensors
    for node in graph.nodes:
        if (constant := _constant_of(node)) is not None:
            yield constant
        for inner in node.graphs.values():
            yield from tensors_of(inner)


def _constant_of(node: Node) -> Tensor | None:
    """The tensor of a node that only gives one."""
    if type_name(node) != "Constant" or len(node.outputs) != 1 or len(node.attributes) != 1:
        return None
    [attribute] = node.attributes.values()
    name = node.outputs[0]
    if attribute.kind == TENSOR:
        tensor: Tensor = attribute.value
        return replace(tensor, name=name)
    codes = {FLOAT: (1, 4), FLOATS: (1, 4), INT: (7, 8), INTS: (7, 8)}
    if attribute.kind not in codes or attribute.value is None:
        return None
    code, width = codes[attribute.kind]
    dims = (len(attribute.value),) if isinstance(attribute.value, tuple) else ()
    values = attribute.value if dims else (attribute.value,)
    raw = b"".join(value.to_bytes(8, "little", signed=True) for value in values) if code == 7 else None
    return Tensor(name, dims, code, ("attribute", name), width * len(values), raw)


@dataclass(frozen=True, slots=True)
class OperatorMaker:
    """Makes operators of nodes; `values` are their shapes, `tensors` what the file stores."""

    values: Mapping[str, TensorSpec]
    tensors: Mapping[str, Tensor]
    finder: ModuleFinder
    functions: Mapping[str, tuple[Module, ...]]
    opset: int

    def operators(self, graph: Graph) -> tuple[Operator, ...]:
        """The operators of a graph, without those that only give a constant."""
        return tuple(self._operator(node) for node in graph.nodes if not self._is_constant(node))

    def _is_constant(self, node: Node) -> bool:
        return node.type == "Constant" and node.outputs[:1] != () and node.outputs[0] in self.tensors

    def _operator(self, node: Node) -> Operator:
        type_ = type_name(node)
        return Operator(
            type_,
            node.inputs,
            node.outputs,
            self._attributes(node, type_),
            node.name,
            self.finder.modules(node, self.functions.get(node.name, ())),
            tuple(self.operators(graph) for graph in node.graphs.values()),
            self._trips(node) if node.graphs else 1,
            chooses=type_ == "If",
        )

    def _attributes(self, node: Node, type_: str) -> dict[str, Any]:
        attributes = {name: found.value for name, found in node.attributes.items() if found.kind in _PLAIN}
        for position, name in _READ_INPUTS.get(type_, {}).items():
            if len(node.inputs) > position and node.inputs[position]:
                number = self._whole_number(node.inputs[position])
                attributes[name] = _DECIDED_BY_VALUES if number is None else number
        if type_ == "DFT":
            attributes.setdefault("axis", 1 if self.opset < _DFT_OF_LAST_AXIS else -2)
        if "" in node.inputs:
            attributes[INPUT_POSITIONS] = tuple(position for position, name in enumerate(node.inputs) if name)
        return attributes

    def _whole_number(self, name: str) -> int | None:
        """The value of a constant of one whole number."""
        tensor = self.tensors.get(name)
        numbers = None if tensor is None else tensor.whole_numbers
        return numbers[0] if numbers is not None and len(numbers) == 1 else None

    def _trips(self, node: Node) -> int | None:
        """How often a node runs its graphs, None where its values decide."""
        match type_name(node):
            case "If":
                return 1
            case "Loop":
                return self._loop_trips(node)
            case "Scan" if self.opset >= 9:
                return self._scan_trips(node)
        return None

    def _loop_trips(self, node: Node) -> int | None:
        """The constant number of a loop that nothing ends earlier."""
        body = node.graphs.get("body")
        trips = self._whole_number(node.inputs[0]) if node.inputs else None
        if body is None or trips is None or not body.outputs or len(body.inputs) < 2:
            return None
        starts = len(node.inputs) < 2 or not node.inputs[1] or self._is_true(node.inputs[1])
        made = {name: inner for inner in body.nodes for name in inner.outputs}
        condition = body.outputs[0].name
        while (inner := made.get(condition)) is not None and inner.type == "Identity" and inner.inputs:
            condition = inner.inputs[0]
        goes_on = condition == body.inputs[1].name or self._is_true(condition)
        return max(trips, 0) if starts and goes_on else None

    def _is_true(self, name: str) -> bool:
        tensor = self.tensors.get(name)
        return tensor is not None and tensor.code == _BOOL and tensor.raw == b"\x01"

    def _scan_trips(self, node: Node) -> int | None:
        """The length of the sequences that are scanned."""
        attribute = node.attributes.get("num_scan_inputs")
        if attribute is None or not isinstance(attribute.value, int) or not 0 < attribute.value <= len(node.inputs):
            return None
        axes = node.attributes.get("scan_input_axes")
        axis = axes.value[0] if axes is not None and axes.value else 0
        first = node.inputs[len(node.inputs) - attribute.value]
        spec = self.values.get(first)
        shape = self.tensors[first].dims if first in self.tensors else spec.shape if spec is not None else ()
        length = shape[axis] if -len(shape) <= axis < len(shape) else None
        return length if isinstance(length, int) else None
