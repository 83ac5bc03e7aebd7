"""From a tf_keras model to rows: its layers in its own order, nested models opened, each weight at its layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import tensorflow as tf
import tf_keras

from pytest_modelbudget.backends.keras import labels
from pytest_modelbudget.backends.keras.weights import unique_name
from pytest_modelbudget.backends.tensorflow.legacy_trace import LegacyTrace
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Layer, TensorSpec, Weight

Specs = tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class LegacyTraceShapes:
    """What a trace shows: for each call what it got and gave, with named dimensions, and the spec of each input."""

    trace: LegacyTrace
    given: Sequence[Specs]
    outputs: Sequence[Specs]
    inputs: Mapping[int, TensorSpec]
    names: Mapping[int, str]


@dataclass(slots=True)
class LegacyRowWalk:
    """Makes the rows of one model; `paths` then has the path of each layer that is a row."""

    model: Any
    seen: LegacyTraceShapes
    taken: set[str] = field(default_factory=set)
    owners: dict[int, str] = field(default_factory=dict)
    paths: dict[tuple[int, int], str] = field(default_factory=dict)

    def rows(self) -> list[Layer]:
        """All rows of the model; a layer that is no model is one row.

        Raises:
            ModelBudgetError: a weight of the model would be in no row.
        """
        listed = list(self._whole() if isinstance(self.model, tf_keras.Model) else self._alone())
        known_ids = {*self.owners, *_metric_variables(self.model)}
        unowned = [weight.name for weight in self.model.weights if id(weight) not in known_ids]
        if unowned:
            raise ModelBudgetError(f"{self.model.name}: the weight {unowned[0]!r} belongs to no layer of the model")
        return listed

    def _whole(self) -> Iterator[Layer]:
        """The rows of a model; it has one itself when it holds weights of its own."""
        if own_weights := list(_own_variables(self.model)):
            path = self._root()
            yield Layer(path, type(self.model).__name__, weights=self._weights(path, own_weights))
        yield from self._inside(self.model, "")

    def _alone(self) -> Iterator[Layer]:
        """The row of a layer that stands in no model."""
        path = self._root()
        row = self._bare(self.model, path, self._positions(None, self.model), ())
        yield replace(row, weights=self._weights(path, _all_variables(self.model)))

    def _root(self) -> str:
        path = unique_name(self.seen.names.get(id(self.model), self.model.name), self.taken)
        self.paths[0, id(self.model)] = path
        return path

    def _inside(self, model: Any, prefix: str) -> Iterator[Layer]:
        layers = [layer for layer in model.layers if not isinstance(layer, tf_keras.metrics.Metric)]
        paths = {
            id(layer): unique_name(f"{prefix}{self.seen.names.get(id(layer), layer.name)}", self.taken)
            for layer in layers
        }
        for layer in layers:
            path = self.paths[id(model), id(layer)] = paths[id(layer)]
            self.paths.setdefault((0, id(layer)), path)
            positions = self._positions(model, layer)
            row = self._bare(layer, path, positions, self._sources(model, layer, positions, paths))
            own_weights = _own_variables(layer) if row.container else _all_variables(layer)
            yield replace(row, weights=self._weights(path, own_weights))
            if row.container:
                yield from self._inside(layer, f"{path}/")

    def _bare(self, layer: Any, path: str, positions: list[int], sources: Iterable[tuple[str, ...]]) -> Layer:
        """The row of a layer, without its weights."""
        return Layer(
            path=path,
            type=type(layer).__name__,
            outputs=tuple(dict.fromkeys(self._outputs(layer, positions))),
            connected_to=tuple(dict.fromkeys(filter(None, sources))),
            inputs=tuple(dict.fromkeys(filter(None, (self.seen.given[position] for position in positions)))),
            calls=len(positions) or int(_is_input(layer)),
            container=isinstance(layer, tf_keras.Model),
        )

    def _positions(self, model: Any, layer: Any) -> list[int]:
        """The calls of a layer in this model; where a model is called by a layer of another kind, any calls."""
        calls = self.seen.trace.calls
        calls_of_layer = [position for position, call in enumerate(calls) if call.layer is layer]
        calls_in_model = [
            position for position in calls_of_layer if calls[position].inside and calls[position].inside[-1] is model
        ]
        return calls_in_model or calls_of_layer

    def _outputs(self, layer: Any, positions: list[int]) -> list[Specs]:
        if _is_input(layer):
            return [(spec,)] if (spec := self.seen.inputs.get(id(layer)) or _input_spec(layer)) else []
        return [self.seen.outputs[position] for position in positions]

    def _sources(self, model: Any, layer: Any, positions: list[int], paths: Mapping[int, str]) -> list[tuple[str, ...]]:
        if model._is_graph_network:
            nodes = [
                node
                for index, node in enumerate(layer._inbound_nodes)
                if f"{layer.name}_ib-{index}" in model._network_nodes and not node.is_input
            ]
            makers = [[maker for maker, *_ in node.iterate_inbound()] for node in nodes]
        else:
            makers = [self.seen.trace.sources(self.seen.trace.calls[position]) for position in positions]
        return [tuple(paths[id(maker_layer)] for maker_layer in call if id(maker_layer) in paths) for call in makers]

    def _weights(self, path: str, named: Iterator[tuple[str, Any]] | list[tuple[str, Any]]) -> tuple[Weight, ...]:
        trainable = {id(weight) for weight in self.model.trainable_weights}
        weights: list[Weight] = []
        used_names: set[str] = set()
        for wanted_name, variable in named:
            name = unique_name(wanted_name, used_names)
            owner = self.owners.setdefault(id(variable), full_name := f"{path}.{name}")
            weights.append(
                Weight(
                    name=name,
                    shape=tuple(variable.shape.as_list()),
                    dtype=variable.dtype.name,
                    trainable=id(variable) in trainable,
                    tied_to=None if owner == full_name else owner,
                )
            )
        return tuple(weights)


def is_graph(model: Any) -> bool:
    """Whether a graph says what `model` does; never so for a layer that is no model."""
    return bool(getattr(model, "_is_graph_network", False))


def unbuilt(model: Any) -> str | None:
    """The name of a layer that would make weights in `build` and never did; None when there is none."""
    base = tf_keras.layers.Layer.build
    for layer in _sublayers(model):
        if not layer.built and type(layer).build is not base and not isinstance(layer, tf_keras.Model):
            return str(layer.name)
    return None


def live_names(model: Any) -> dict[int, str]:
    """Automatic names in a model of the user's, numbered from the first, as `labels.live_labels` does for Keras 3."""
    numbered: dict[str, dict[int, list[int]]] = {}
    for layer in (model, *_sublayers(model)):
        if (number := labels.automatic_number(type(layer).__name__, layer.name)) is not None:
            numbered.setdefault(labels.automatic_base(type(layer).__name__), {}).setdefault(number, []).append(
                id(layer)
            )
    return {
        identity: f"{name}_{rank}" if rank else name
        for name, by_number in numbered.items()
        for rank, number in enumerate(sorted(by_number))
        for identity in by_number[number]
    }


def _sublayers(layer: Any) -> Iterator[Any]:
    """Every layer below `layer`, each once; metrics are layers here, and are left out."""
    for sublayer in layer._flatten_layers(include_self=False):
        if not isinstance(sublayer, tf_keras.metrics.Metric):
            yield sublayer


def _own_variables(layer: Any) -> Iterator[tuple[str, Any]]:
    """The variables a layer holds itself, with their names."""
    by_id = {id(variable): variable for variable in (*layer._trainable_weights, *layer._non_trainable_weights)}
    for variable in by_id.values():
        yield variable.name.partition(":")[0].rpartition("/")[2], variable


def _all_variables(layer: Any, prefix: str = "", visited: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """The variables of a layer and all layers below it, named by the way to them, each once."""
    visited = set() if visited is None else visited
    for name, variable in _own_variables(layer):
        if id(variable) not in visited:
            visited.add(id(variable))
            yield f"{prefix}{name}", variable
    used_names: set[str] = set()
    for sublayer in layer._flatten_layers(recursive=False, include_self=False):
        if isinstance(sublayer, tf_keras.metrics.Metric):
            continue
        part = labels.sublayer_name(layer, sublayer, tf_keras.layers)
        step = f"{unique_name(part, used_names)}/" if part else ""
        yield from _all_variables(sublayer, f"{prefix}{step}", visited)


def _is_input(layer: Any) -> bool:
    return isinstance(layer, tf_keras.layers.InputLayer)


def _input_spec(layer: Any) -> TensorSpec | None:
    """What an input layer of a nested model was made with."""
    shape = layer.output.shape
    if shape.rank is None:
        return None
    dims = tuple("B" if axis == 0 and size is None else size for axis, size in enumerate(shape.as_list()))
    return TensorSpec(dims, tf.as_dtype(layer.output.dtype).name)


def _metric_variables(model: Any) -> set[int]:
    """The variables of metrics, which tf_keras lists with the weights of the model that holds them."""
    layers = list(model._flatten_layers())
    metrics = [layer for layer in layers if isinstance(layer, tf_keras.metrics.Metric)]
    metrics += [metric for layer in layers for metric in getattr(layer, "_metrics", ())]
    return {id(variable) for metric in metrics for variable in metric.weights}
