"""From a built model to rows: its layers in Keras' own order, nested models opened, each weight at its layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import keras

from pytest_modelbudget.backends import assemble
from pytest_modelbudget.backends.assemble import HeldWeight, PartCalls, Row, call_positions
from pytest_modelbudget.backends.dimensions import Specs
from pytest_modelbudget.backends.keras import private, weights
from pytest_modelbudget.backends.keras.calls import LayerCall
from pytest_modelbudget.backends.keras.labels import Labels
from pytest_modelbudget.inputs import BATCH
from pytest_modelbudget.summary import TensorSpec


@dataclass(frozen=True, slots=True)
class TraceShapes:
    """What one trace shows: the calls, what they got and gave with named dimensions, and the model's inputs."""

    calls: Sequence[LayerCall]
    call_inputs: Sequence[Specs]
    outputs: Sequence[Specs]
    inputs: Mapping[int, TensorSpec]
    from_graph: bool
    """Whether the shapes that a graph remembers are as good as those of the trace."""


class KerasStructure:
    """What a Keras model is made of; operations have their `labels` where there are any, else their own names."""

    def __init__(self, model: Any, trace_shapes: TraceShapes, labels: Labels) -> None:
        self._trace_shapes = trace_shapes
        self._labels = labels
        self._trainable = {id(variable) for variable in model.trainable_weights}
        self._graphs: dict[int, Any] = {}

    def rows(self, model: Any) -> list[Row]:
        """See `assemble.rows`."""
        return assemble.rows(model, self, call_positions(call.chain for call in self._trace_shapes.calls))

    def name(self, part: Any) -> str:
        """What an operation is called here."""
        return self._labels.get(id(part), part.name)

    def is_model(self, part: Any) -> bool:
        """Whether it is opened."""
        return isinstance(part, keras.Model)

    def parts(self, model: Any) -> list[Any]:
        """The layers of a model, with the operations of its graph; layers outside the graph come last."""
        graph = self._graphs[id(model)] = private.graph_of(model)
        if graph is None:
            return layers(model)
        operations = _operations(model, graph)
        in_graph = {id(operation) for operation in operations}
        beside = [layer for layer in private.sublayers(model) if id(layer) not in in_graph and not _is_input(layer)]
        return [*operations, *beside]

    def calls_of(self, model: Any, part: Any, positions: Sequence[int]) -> PartCalls:
        """From the graph of its model, from the trace, or of an input of the outermost model as it is declared."""
        trace_shapes, graph = self._trace_shapes, None if model is None else self._graphs[id(model)]
        nodes = private.nodes_of(graph, part) if graph is not None else []
        makers = [_input_makers(node) for node in nodes] or [
            [*map(id, trace_shapes.calls[position].sources)] for position in positions
        ]
        inputs: Iterable[Specs] = ()
        outputs: Iterable[Specs]
        if id(part) in trace_shapes.inputs:
            outputs = [(trace_shapes.inputs[id(part)],)]
        elif nodes and (trace_shapes.from_graph or not positions):
            outputs = [tuple(map(tensor_spec, node.output_tensors)) for node in nodes]
            inputs = [tuple(map(tensor_spec, node.input_tensors)) for node in nodes]
        else:
            outputs = [trace_shapes.outputs[position] for position in positions]
            inputs = [trace_shapes.call_inputs[position] for position in positions]
        return PartCalls(inputs, outputs, makers, len(positions) or len(nodes))

    def weights(self, part: Any, *, deep: bool) -> Iterator[HeldWeight]:
        """None of an operation."""
        if isinstance(part, keras.layers.Layer):
            yield from weights.held(
                weights.all_variables(part) if deep else weights.own_variables(part), self._trainable
            )

    def all_weights(self, model: Any) -> Iterator[tuple[int, str]]:
        """Those that Keras counts."""
        return ((id(variable), variable.path) for variable in model.weights)


def tensor_spec(tensor: Any) -> TensorSpec:
    """A Keras tensor as plain data: the open first axis is the batch."""
    dims = tuple(BATCH if axis == 0 and size is None else size for axis, size in enumerate(tuple(tensor.shape)))
    return TensorSpec(dims, keras.backend.standardize_dtype(tensor.dtype))


def all_layers(layer: Any) -> Iterator[Any]:
    """`layer` and every layer below it, each once."""
    visited: set[int] = set()
    pending = [layer]
    while pending:
        part = pending.pop()
        if id(part) not in visited:
            visited.add(id(part))
            yield part
            pending.extend(reversed(private.sublayers(part)))


def unbuilt(
    layer: Any, weightless: Callable[[Any], bool], path: str = "", visited: set[int] | None = None
) -> list[str]:
    """The paths of the layers that would make weights in `build` and never did."""
    visited = set() if visited is None else visited
    paths: list[str] = []
    for sublayer in private.sublayers(layer):
        if id(sublayer) in visited:
            continue
        visited.add(id(sublayer))
        sublayer_path = f"{path}{sublayer.name}"
        if not sublayer.built and private.overrides_build(sublayer) and not weightless(sublayer):
            paths.append(sublayer_path)
        else:
            paths.extend(unbuilt(sublayer, weightless, f"{sublayer_path}/", visited))
    return paths


def graphs_tell_shapes(model: Any, calls: Sequence[LayerCall], batch: int) -> bool:
    """Whether the shapes in the graphs of functional models say all that these `calls` at this batch size show.

    They do not where a layer that a model merely holds was called by another, where another axis than the first is
    open, or where an open first axis is not the batch, as after a reshape.
    """
    graphs = [(outer, graph) for outer in all_layers(model) if (graph := private.graph_of(outer)) is not None]
    if _called_beside(graphs, calls):
        return False
    of_batch: set[int] = set()
    for operation, shape in chain.from_iterable(private.shapes_in(graph) for _, graph in graphs):
        if None in shape[1:]:
            return False
        if None in shape:
            of_batch.add(id(operation))
    first_axes = (tensor.shape[:1] for call in calls if id(call.operation) in of_batch for tensor in call.outputs)
    return all(axis == (batch,) for axis in first_axes)


def _called_beside(graphs: Sequence[tuple[Any, Any]], calls: Sequence[LayerCall]) -> bool:
    called = {id(call.operation) for call in calls}
    for outer, graph in graphs:
        in_graph = {id(operation) for operation in graph.operations}
        if any(id(layer) in called and id(layer) not in in_graph for layer in private.sublayers(outer)):
            return True
    return False


def layers(model: Any) -> list[Any]:
    """The layers of a class; of a functional model with a call of its own also those beside its graph, no inputs."""
    by_id = {id(layer): layer for layer in model.layers}
    if private.function_of(model) is not None:
        by_id.update((id(layer), layer) for layer in private.sublayers(model))
    return [layer for layer in by_id.values() if not _is_input(layer)]


def _operations(model: Any, graph: Any) -> list[Any]:
    """A functional model shows its input layers, a Sequential one does not."""
    operations = list(graph.operations)
    if isinstance(model, keras.Sequential):
        return [operation for operation in operations if not _is_input(operation)]
    return operations


def _input_makers(node: Any) -> list[int]:
    """The identities of the operations that made the inputs of one call in a graph."""
    histories = [private.history(tensor) for tensor in node.input_tensors]
    return [id(history[0]) for history in histories if history is not None]


def _is_input(operation: Any) -> bool:
    return isinstance(operation, keras.layers.InputLayer)
