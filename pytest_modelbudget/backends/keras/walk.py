"""From a built model to rows: its layers in Keras' own order, nested models opened, each weight at its layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras

from pytest_modelbudget.backends.keras import private, weights
from pytest_modelbudget.backends.keras.labels import Labels
from pytest_modelbudget.backends.keras.trace import LayerCall
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import BATCH
from pytest_modelbudget.summary import Layer, TensorSpec

Specs = tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """A row, and the identities of the model it belongs to and of the layer or operation behind it."""

    parent: int
    operation: int
    layer: Layer


@dataclass(frozen=True, slots=True)
class TraceShapes:
    """What one trace shows: the calls, what they got and gave with named dimensions, and the model's inputs."""

    calls: Sequence[LayerCall]
    call_inputs: Sequence[Specs]
    outputs: Sequence[Specs]
    inputs: Mapping[int, TensorSpec]
    from_graph: bool
    """Whether the shapes that a graph remembers are as good as those of the trace."""


def rows(model: Any, trace_shapes: TraceShapes, labels: Labels) -> list[Row]:
    """All rows of `model`, under `labels` where an operation has one, else under its own name.

    A layer that is no model is one row.

    Raises:
        ModelBudgetError: a weight of the model would be in no row.
    """
    walk = _RowWalk(model, trace_shapes, labels)
    listed = list(walk.rows_of_model(model) if isinstance(model, keras.Model) else walk.row_of_layer(model))
    unowned = [variable.path for variable in model.weights if variable not in walk.ledger]
    if unowned:
        raise ModelBudgetError(f"{model.name}: the weight {unowned[0]!r} belongs to no layer of the model")
    return listed


class _RowWalk:
    def __init__(self, model: Any, trace_shapes: TraceShapes, labels: Labels) -> None:
        self.seen = trace_shapes
        self.labels = labels
        self.ledger = weights.WeightOwners(model)
        self.used_paths: set[str] = set()
        self.called: dict[tuple[int, int], list[int]] = {}
        for position, call in enumerate(trace_shapes.calls):
            parent = id(call.inside[-1]) if call.inside else 0
            for scope in {parent, 0}:
                self.called.setdefault((scope, id(call.operation)), []).append(position)

    def name(self, operation: Any) -> str:
        """What an operation is called here."""
        return self.labels.get(id(operation), operation.name)

    def rows_of_model(self, model: Any) -> Iterator[Row]:
        """The rows of a model; it has one itself when it holds weights of its own."""
        if own_weights := list(weights.own_variables(model)):
            path = weights.unique_name(self.name(model), self.used_paths)
            yield Row(0, id(model), Layer(path, type(model).__name__, weights=self.ledger.enter(path, own_weights)))
        yield from self.rows_below(model, "")

    def row_of_layer(self, layer: Any) -> Iterator[Row]:
        """The row of a layer that stands in no model."""
        positions = self.called.get((0, id(layer)), [])
        yield from self._rows(layer, 0, self.name(layer), self._layer(layer, [], positions, []))

    def rows_below(self, model: Any, prefix: str, called: bool = True) -> Iterator[Row]:
        """The rows below one model; below one that was not `called`, the calls in its graph did not happen."""
        graph = private.graph_of(model)
        operations = layers(model) if graph is None else _operations(model, graph)
        in_graph = {id(operation) for operation in operations}
        if graph is not None:  # layers set as attributes, outside the graph
            operations += [
                operation
                for operation in private.sublayers(model)
                if id(operation) not in in_graph and not _is_input(operation)
            ]
        paths = {
            id(operation): weights.unique_name(f"{prefix}{self.name(operation)}", self.used_paths)
            for operation in operations
        }
        for operation in operations:
            nodes = private.nodes_of(graph, operation) if graph is not None and id(operation) in in_graph else []
            positions = self.called.get((id(model), id(operation))) or self.called.get((0, id(operation)), [])
            sources = [_input_makers(node) for node in nodes] or [
                self.seen.calls[position].sources for position in positions
            ]
            connected = [tuple(paths[id(source)] for source in call if id(source) in paths) for call in sources]
            row = self._layer(operation, nodes, positions, connected)
            if not called and not positions:
                row = replace(row, calls=0)
            yield from self._rows(operation, id(model), paths[id(operation)], row)

    def _layer(self, operation: Any, nodes: list[Any], positions: list[int], connected: list[tuple[str, ...]]) -> Layer:
        """The row of one layer or operation, without its path and weights."""
        outputs: list[Specs]
        input_specs: list[Specs] = []
        if id(operation) in self.seen.inputs:
            outputs = [(self.seen.inputs[id(operation)],)]
        elif nodes and (self.seen.from_graph or not positions):
            outputs = [tuple(map(tensor_spec, node.output_tensors)) for node in nodes]
            input_specs = [tuple(map(tensor_spec, node.input_tensors)) for node in nodes]
        else:
            outputs = [self.seen.outputs[position] for position in positions]
            input_specs = [self.seen.call_inputs[position] for position in positions]
        return Layer(
            path="",
            type=type(operation).__name__,
            outputs=tuple(dict.fromkeys(outputs)),
            connected_to=tuple(dict.fromkeys(call for call in connected if call)),
            inputs=tuple(dict.fromkeys(call for call in input_specs if call)),
            calls=len(positions) or len(nodes),
            container=isinstance(operation, keras.Model),
        )

    def _rows(self, operation: Any, parent: int, path: str, row: Layer) -> Iterator[Row]:
        named_variables = (
            weights.own_variables(operation)
            if row.container
            else weights.all_variables(operation)
            if _is_layer(operation)
            else ()
        )
        yield Row(parent, id(operation), replace(row, path=path, weights=self.ledger.enter(path, named_variables)))
        if row.container:
            yield from self.rows_below(operation, f"{path}/", called=bool(row.calls))


def tensor_spec(tensor: Any) -> TensorSpec:
    """A Keras tensor as plain data: the open first axis is the batch."""
    dims = tuple(BATCH if axis == 0 and size is None else size for axis, size in enumerate(tuple(tensor.shape)))
    return TensorSpec(dims, keras.backend.standardize_dtype(tensor.dtype))


def all_layers(layer: Any, visited: set[int] | None = None) -> Iterator[Any]:
    """`layer` and every layer below it, each once."""
    visited = set() if visited is None else visited
    if id(layer) in visited:
        return
    visited.add(id(layer))
    yield layer
    for sublayer in private.sublayers(layer):
        yield from all_layers(sublayer, visited)


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


def called_beside_graphs(model: Any, calls: Sequence[LayerCall]) -> bool:
    """Whether a layer that a functional model merely holds was called by another, so that no graph knows its shapes."""
    called = {id(call.operation) for call in calls}
    for outer in all_layers(model):
        if (graph := private.graph_of(outer)) is not None:
            in_graph = {id(operation) for operation in graph.operations}
            if any(id(operation) in called and id(operation) not in in_graph for operation in private.sublayers(outer)):
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


def _input_makers(node: Any) -> tuple[Any, ...]:
    """The operations that made the inputs of one call in a graph."""
    histories = [private.history(tensor) for tensor in node.input_tensors]
    return tuple(history[0] for history in histories if history is not None)


def _is_input(operation: Any) -> bool:
    return isinstance(operation, keras.layers.InputLayer)


def _is_layer(operation: Any) -> bool:
    return isinstance(operation, keras.layers.Layer)
