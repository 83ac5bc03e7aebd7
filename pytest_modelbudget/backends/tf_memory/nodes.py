"""The operators of a graph and of the functions it calls as one list, in the order in which the executor runs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from pytest_modelbudget.backends.costs.tf_functions import FunctionGraph, called_function, needed_operators
from pytest_modelbudget.backends.tf_memory.kernels import CHEAP

_TAPE = "gradient_tape/"
"""The scope of what GradientTape makes."""

_OF_WEIGHTS = frozenset(["MatMul", "BatchMatMulV2", "BatchMatMulV3", "Conv2DBackpropFilter", "BiasAddGrad"])
_PRODUCTS_NAMES = """MatMul BatchMatMulV2 BatchMatMulV3 Einsum Conv2D Conv2DBackpropInput DepthwiseConv2dNative
DepthwiseConv2dNativeBackpropInput ReluGrad MaxPoolGrad"""
_PRODUCTS = frozenset(_PRODUCTS_NAMES.split())
"""What shows that activations still have gradients to come."""

CALLS = frozenset(["PartitionedCall", "StatefulPartitionedCall"])
LOOPS = frozenset(["While", "StatelessWhile"])
BRANCHES = frozenset(["If", "StatelessIf", "Case", "StatelessCase"])


@dataclass(slots=True)
class Node:
    """An operator that runs: the tensors that it reads and makes, by name, and what has to run before it besides."""

    op: Any
    graph: Any
    name: str
    inputs: list[str]
    outputs: list[str]
    after: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """What the operator does: `MatMul`."""
        return str(self.op.type)


@dataclass(slots=True)
class NodeList:
    """All that runs, each after what it needs; `outputs` are what is given back."""

    nodes: list[Node]
    outputs: list[str]


def nodes_of(body: FunctionGraph, inputs: Sequence[str]) -> NodeList:
    """The operators of `body`, whose own inputs are the tensors `inputs`, calls opened."""
    reader = _Reader()
    outputs = reader.read(body, dict(zip((tensor.name for tensor in body.inputs), inputs, strict=False)), "", [])
    return NodeList(_in_order_of_execution(reader.nodes), outputs)


def bytes_of(tensor: Any) -> int | None:
    """What a tensor takes; 0 for a handle, None where a size is open."""
    shape = tensor.shape
    if not tensor.dtype.size:  # handles of variables and lists, and strings
        return 0
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


def _in_order_of_execution(nodes: list[Node]) -> list[Node]:
    """The order of an executor with one thread between operators, with gradients of weights as late as they come.

    A node is ready when the last of what it needs has run. What is cheap runs next, first come, first served; of the
    others that become ready together the last runs after it, and the ones before it wait on a stack
    (`ExecutorState::ScheduleReady`, and `ThreadPool::Schedule` from within the pool, in TensorFlow's source). Which is
    the last depends on how the optimizer of graphs has shuffled them. Profiles of real steps show that most gradients
    of weights wait until the gradients of activations are through, so all of them do here.
    """
    graph = _Dependencies(nodes)
    last_ones = _weight_gradients(nodes, graph)
    waiting = deque(node for node in nodes if not graph.missing[node.name])
    late: list[Node] = []
    ordered: list[Node] = []
    while waiting or late:
        inline = deque([waiting.popleft() if waiting else late.pop()])
        while inline:
            node = inline.popleft()
            ordered.append(node)
            dispatched = [ready for ready in graph.done(node) if not _runs_inline(ready, inline)]
            late += [ready for ready in dispatched if ready.name in last_ones]
            dispatched = [ready for ready in dispatched if ready.name not in last_ones]
            if dispatched and not inline:
                inline.append(dispatched.pop())
            waiting.extendleft(dispatched)
    return ordered


def _runs_inline(node: Node, inline: deque[Node]) -> bool:
    """Whether a node is cheap; it is queued then."""
    if node.kind in CHEAP:
        inline.append(node)
        return True
    return False


def _weight_gradients(nodes: Sequence[Node], graph: _Dependencies) -> frozenset[str]:
    """Products of the backward pass after which no other product follows."""
    followed: dict[str, bool] = {}
    for node in reversed(graph.sorted()):
        followed[node.name] = any(followed[name] or graph.kind_of(name) in _PRODUCTS for name in graph.followers(node))
    return frozenset(
        node.name for node in nodes if node.kind in _OF_WEIGHTS and _TAPE in node.name and not followed[node.name]
    )


class _Dependencies:
    """What each node waits for: `missing` counts what has not run yet."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        maker = {tensor: node.name for node in nodes for tensor in node.outputs}
        self._by_name = {node.name: node for node in nodes}
        self._followers: dict[str, list[str]] = {node.name: [] for node in nodes}
        self.missing: dict[str, int] = {}
        for node in nodes:
            needed = [maker[tensor] for tensor in node.inputs if tensor in maker]
            needed += [name for name in node.after if name in self._by_name]
            self.missing[node.name] = len(needed)
            for name in needed:
                self._followers[name].append(node.name)

    def followers(self, node: Node) -> list[str]:
        """The names of what needs `node`, once for each need."""
        return self._followers[node.name]

    def kind_of(self, name: str) -> str:
        """What the node of this name does."""
        return self._by_name[name].kind

    def sorted(self) -> list[Node]:
        """All nodes, each after what it needs."""
        missing = dict(self.missing)
        ordered = [node for node in self._by_name.values() if not missing[node.name]]
        for node in ordered:  # which grows meanwhile
            for name in self._followers[node.name]:
                missing[name] -= 1
                if not missing[name]:
                    ordered.append(self._by_name[name])
        return ordered

    def done(self, node: Node) -> list[Node]:
        """The nodes that become ready when `node` has run."""
        ready = []
        for name in self._followers[node.name]:
            self.missing[name] -= 1
            if not self.missing[name]:
                ready.append(self._by_name[name])
        return ready


def tensors_by_name(nodes: Sequence[Node]) -> Mapping[str, Any]:
    """The tensor of the graph that each name stands for."""
    return {name: tensor for node in nodes for name, tensor in zip(node.outputs, node.op.outputs, strict=True)}
