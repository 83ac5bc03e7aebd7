"""The operators of a graph and of the functions it calls as one list."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from pytest_modelbudget.backends.costs.tf_functions import FunctionGraph, called_function, needed_operators

CALLS = frozenset(["PartitionedCall", "StatefulPartitionedCall"])
LOOPS = frozenset(["While", "StatelessWhile"])
BRANCHES = frozenset(["If", "StatelessIf", "Case", "StatelessCase"])


_NUMBERS = {("FusedBatchNormV3", 5), ("_FusedBatchNormEx", 5)}
"""Outputs of kernels whose sizes TensorFlow does not tell, which are one number on a CPU (`FusedBatchNormOpBase`)."""


@dataclass(slots=True)
class Node:
    """An operator that runs: the tensors that it reads and makes, by name, and what has to run before it besides."""

    op: Any
    graph: Any
    name: str
    inputs: list[str]
    outputs: list[str]
    after: list[str] = field(default_factory=list)
    kind: str = ""
    """What the operator does: `MatMul`."""
    cheap_in_loop: Literal["", "always", "perhaps"] = ""
    """For what is in a loop, whether the executor will measure that it is cheap: by its books, or any but products."""
    place: int | None = None
    """Which item of a list it reads or writes, where that is known."""

    def __post_init__(self) -> None:
        self.kind = self.kind or str(self.op.type)


@dataclass(slots=True)
class NodeList:
    """All that runs, in the order of the graph; `outputs` are what is given back."""

    nodes: list[Node]
    outputs: list[str]


def nodes_of(body: FunctionGraph) -> NodeList:
    """The operators of `body`, its inputs among them, calls opened."""
    reader = _Reader()
    outputs = reader.read(body, {}, "", [])
    return NodeList(reader.nodes, outputs)


def bytes_of(tensor: Any) -> int | None:
    """What a tensor takes; 0 for a handle, None where a size is open."""
    shape = tensor.shape
    if not tensor.dtype.size:  # handles of variables and lists, and strings
        return 0
    if (tensor.op.type, tensor.value_index) in _NUMBERS:
        return int(tensor.dtype.size)
    if shape.rank is None or None in (sizes := shape.as_list()):
        return None
    return int(prod(sizes)) * int(tensor.dtype.size)


class _Reader:
    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.ends: dict[str, list[str]] = {}
        """By the scope of a call, the operators with which it is over."""

    def read(self, body: FunctionGraph, names: dict[str, str], scope: str, after: list[str]) -> list[str]:
        """Append what runs for `body`; gives back the names of its outputs."""
        wanted = {op.name for op in needed_operators(body.outputs, body.control)}
        for op in body.graph.get_operations():
            if op.name in wanted and not (op.type == "Placeholder" and op.outputs[0].name in names):
                self._append(op, body.graph, names, scope, after)
        return [names.get(tensor.name, f"{scope}{tensor.name}") for tensor in body.outputs]

    def _append(self, op: Any, graph: Any, names: dict[str, str], scope: str, after: list[str]) -> None:
        inputs = [names.get(tensor.name, f"{scope}{tensor.name}") for tensor in op.inputs]
        controls = [end for control in op.control_inputs for end in self._ends_of(f"{scope}{control.name}")]
        function = op.get_attr("f").name if op.type in CALLS else op.type
        called = called_function(graph, function, op.inputs) if op.type in CALLS or _is_function(graph, op) else None
        if called is None:
            outputs = [f"{scope}{tensor.name}" for tensor in op.outputs]
            node = Node(op, graph, f"{scope}{op.name}", inputs, outputs, [*after, *controls])
            self.nodes.append(node)
            return
        inner_names = dict(zip((tensor.name for tensor in called.inputs), inputs, strict=False))
        first = len(self.nodes)
        results = self.read(called, inner_names, f"{scope}{op.name}/", [*after, *controls])
        self.ends[f"{scope}{op.name}"] = [node.name for node in self.nodes[first:]]
        names.update({tensor.name: result for tensor, result in zip(op.outputs, results, strict=False)})

    def _ends_of(self, name: str) -> list[str]:
        return self.ends.get(name, [name])


def _is_function(graph: Any, op: Any) -> bool:
    return graph._get_function(op.type) is not None
