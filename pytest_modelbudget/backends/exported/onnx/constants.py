"""What a flat graph does with stored tensors before an operator works with them."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import replace

from pytest_modelbudget.backends.exported.onnx.model import Graph, Node


def without_copies(graph: Graph, tensors: Container[str]) -> Graph:
    """The graph in which each `Identity` of one of the `tensors` is gone, and what it gave has that tensor's name.

    Older exporters write equal tensors once and such a node for each other place. Outputs of the graph stay.
    """
    return _Renamer(tensors, {}).graph(graph)


class _Renamer:
    def __init__(self, tensors: Container[str], names: dict[str, str]) -> None:
        self.tensors, self.names = tensors, names

    def graph(self, graph: Graph) -> Graph:
        outputs = {value.name for value in graph.outputs}
        return replace(graph, nodes=tuple(self._nodes(graph, outputs)))

    def _nodes(self, graph: Graph, outputs: Container[str]) -> Iterator[Node]:
        for node in graph.nodes:
            inputs = tuple([self.names.get(name, name) for name in node.inputs])
            is_copy = node.type == "Identity" and not node.domain and len(inputs) == len(node.outputs) == 1
            if is_copy and inputs[0] in self.tensors and node.outputs[0] not in outputs:
                self.names[node.outputs[0]] = inputs[0]
                continue
            graphs = {key: self.graph(inner) for key, inner in node.graphs.items()}
            yield replace(node, inputs=inputs, graphs=graphs) if graphs or inputs != node.inputs else node


def in_order_of_use(graph: Graph, tensors: Container[str]) -> Graph:
    """The graph in which what only unpacks stored tensors comes right before the first operator that uses it.

    Quantisers write all of these first, and rows would have their order.
    """
    return replace(graph, nodes=tuple(_in_order_of_use(graph, tensors)))


def _in_order_of_use(graph: Graph, tensors: Container[str]) -> Iterator[Node]:
    pending: dict[str, Node] = {}
    for node in graph.nodes:
        if node.type == "DequantizeLinear" and len(node.outputs) == 1 and all(name in tensors for name in node.inputs):
            pending[node.outputs[0]] = node
            continue
        for name in list(pending) if node.graphs else node.inputs:
            if (unpacking := pending.pop(name, None)) is not None:
                yield unpacking
        yield node
    yield from pending.values()
