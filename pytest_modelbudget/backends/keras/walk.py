"""From a built model to rows: its layers in Keras' own order, nested models opened, each weight at its layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import keras

from pytest_modelbudget.backends.keras import private, weights
from pytest_modelbudget.backends.keras.labels import Labels
from pytest_modelbudget.backends.keras.trace import Call
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
class Seen:
    """What one trace shows: the calls, what they got and gave with named dimensions, and the model's inputs."""

    calls: Sequence[Call]
    given: Sequence[Specs]
    outputs: Sequence[Specs]
    inputs: Mapping[int, TensorSpec]
    from_graph: bool
    """Whether the shapes that a graph remembers are as good as those of the trace."""


def rows(model: Any, seen: Seen, labels: Labels) -> list[Row]:
    """All rows of `model`, under `labels` where an operation has one, else under its own name.

    A layer that is no model is one row.

    Raises:
        ModelBudgetError: a weight of the model would be in no row.
    """
    walk = _Walk(model, seen, labels)
    found = list(walk.whole(model) if isinstance(model, keras.Model) else walk.alone(model))
    lost = [variable.path for variable in model.weights if variable not in walk.ledger]
    if lost:
        raise ModelBudgetError(f"{model.name}: the weight {lost[0]!r} belongs to no layer of the model")
    return found


class _Walk:
    def __init__(self, model: Any, seen: Seen, labels: Labels) -> None:
        self.seen = seen
        self.labels = labels
        self.ledger = weights.Ledger(model)
        self.taken: set[str] = set()
        self.called: dict[tuple[int, int], list[int]] = {}
        for position, call in enumerate(seen.calls):
            parent = id(call.inside[-1]) if call.inside else 0
            for around in {parent, 0}:
                self.called.setdefault((around, id(call.operation)), []).append(position)

    def name(self, one: Any) -> str:
        """What an operation is called here."""
        return self.labels.get(id(one), one.name)

    def whole(self, model: Any) -> Iterator[Row]:
        """The rows of a model; it has one itself when it holds weights of its own."""
        if own := list(weights.own(model)):
            path = weights.unique(self.name(model), self.taken)
            yield Row(0, id(model), Layer(path, type(model).__name__, weights=self.ledger.enter(path, own)))
        yield from self.inside(model, "")

    def alone(self, layer: Any) -> Iterator[Row]:
        """The row of a layer that stands in no model."""
        positions = self.called.get((0, id(layer)), [])
        yield from self._rows(layer, 0, self.name(layer), self._layer(layer, [], positions, []))

    def inside(self, model: Any, prefix: str, called: bool = True) -> Iterator[Row]:
        """The rows below one model; below one that was not `called`, the calls in its graph did not happen."""
        graph = private.graph_of(model)
        operations = layers(model) if graph is None else _operations(model, graph)
        held = {id(one) for one in operations}
        if graph is not None:  # layers set as attributes, outside the graph
            operations += [one for one in private.sublayers(model) if id(one) not in held and not _is_input(one)]
        paths = {id(one): weights.unique(f"{prefix}{self.name(one)}", self.taken) for one in operations}
        for one in operations:
            nodes = private.nodes_of(graph, one) if graph is not None and id(one) in held else []
            positions = self.called.get((id(model), id(one))) or self.called.get((0, id(one)), [])
            sources = [_makers(node) for node in nodes] or [self.seen.calls[at].sources for at in positions]
            connected = [tuple(paths[id(source)] for source in call if id(source) in paths) for call in sources]
            row = self._layer(one, nodes, positions, connected)
            if not called and not positions:
                row = replace(row, calls=0)
            yield from self._rows(one, id(model), paths[id(one)], row)

    def _layer(self, one: Any, nodes: list[Any], positions: list[int], connected: list[tuple[str, ...]]) -> Layer:
        """The row of one layer or operation, without its path and weights."""
        outputs: list[Specs]
        given: list[Specs] = []
        if id(one) in self.seen.inputs:
            outputs = [(self.seen.inputs[id(one)],)]
        elif nodes and (self.seen.from_graph or not positions):
            outputs = [tuple(map(spec, node.output_tensors)) for node in nodes]
            given = [tuple(map(spec, node.input_tensors)) for node in nodes]
        else:
            outputs = [self.seen.outputs[at] for at in positions]
            given = [self.seen.given[at] for at in positions]
        return Layer(
            path="",
            type=type(one).__name__,
            outputs=tuple(dict.fromkeys(outputs)),
            connected_to=tuple(dict.fromkeys(call for call in connected if call)),
            inputs=tuple(dict.fromkeys(call for call in given if call)),
            calls=len(positions) or len(nodes),
            container=isinstance(one, keras.Model),
        )

    def _rows(self, one: Any, parent: int, path: str, bare: Layer) -> Iterator[Row]:
        named = weights.own(one) if bare.container else weights.deep(one) if _is_layer(one) else ()
        yield Row(parent, id(one), replace(bare, path=path, weights=self.ledger.enter(path, named)))
        if bare.container:
            yield from self.inside(one, f"{path}/", called=bool(bare.calls))


def spec(tensor: Any) -> TensorSpec:
    """A Keras tensor as plain data: the open first axis is the batch."""
    named = tuple(BATCH if axis == 0 and size is None else size for axis, size in enumerate(tuple(tensor.shape)))
    return TensorSpec(named, keras.backend.standardize_dtype(tensor.dtype))


def each(layer: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """`layer` and every layer below it, each once."""
    seen = set() if seen is None else seen
    if id(layer) in seen:
        return
    seen.add(id(layer))
    yield layer
    for sublayer in private.sublayers(layer):
        yield from each(sublayer, seen)


def unbuilt(layer: Any, weightless: Callable[[Any], bool], path: str = "", seen: set[int] | None = None) -> list[str]:
    """The paths of the layers that would make weights in `build` and never did."""
    seen = set() if seen is None else seen
    found: list[str] = []
    for sublayer in private.sublayers(layer):
        if id(sublayer) in seen:
            continue
        seen.add(id(sublayer))
        below = f"{path}{sublayer.name}"
        if not sublayer.built and private.overrides_build(sublayer) and not weightless(sublayer):
            found.append(below)
        else:
            found.extend(unbuilt(sublayer, weightless, f"{below}/", seen))
    return found


def graphs_tell_shapes(model: Any, calls: Sequence[Call], batch: int) -> bool:
    """Whether the shapes in the graphs of functional models say all that these `calls` at this batch size show.

    They do not where a layer that a model merely holds was called by another, where another axis than the first is
    open, or where an open first axis is not the batch, as after a reshape.
    """
    graphs = [(outer, graph) for outer in each(model) if (graph := private.graph_of(outer)) is not None]
    if _called_beside(graphs, calls):
        return False
    of_batch: set[int] = set()
    for operation, shape in chain.from_iterable(private.shapes_in(graph) for _, graph in graphs):
        if None in shape[1:]:
            return False
        if None in shape:
            of_batch.add(id(operation))
    made = (tensor.shape[:1] for call in calls if id(call.operation) in of_batch for tensor in call.outputs)
    return all(first == (batch,) for first in made)


def _called_beside(graphs: Sequence[tuple[Any, Any]], calls: Sequence[Call]) -> bool:
    called = {id(call.operation) for call in calls}
    for outer, graph in graphs:
        held = {id(one) for one in graph.operations}
        if any(id(one) in called and id(one) not in held for one in private.sublayers(outer)):
            return True
    return False


def layers(model: Any) -> list[Any]:
    """The layers of a class; of a functional model with a call of its own also those beside its graph, no inputs."""
    found = {id(one): one for one in model.layers}
    if private.function_of(model) is not None:
        found.update((id(one), one) for one in private.sublayers(model))
    return [one for one in found.values() if not _is_input(one)]


def _operations(model: Any, graph: Any) -> list[Any]:
    """A functional model shows its input layers, a Sequential one does not."""
    operations = list(graph.operations)
    if isinstance(model, keras.Sequential):
        return [one for one in operations if not _is_input(one)]
    return operations


def _makers(node: Any) -> tuple[Any, ...]:
    """The operations that made the inputs of one call in a graph."""
    pasts = [private.history(tensor) for tensor in node.input_tensors]
    return tuple(past[0] for past in pasts if past is not None)


def _is_input(one: Any) -> bool:
    return isinstance(one, keras.layers.InputLayer)


def _is_layer(one: Any) -> bool:
    return isinstance(one, keras.layers.Layer)
