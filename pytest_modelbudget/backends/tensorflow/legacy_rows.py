"""From a tf_keras model to rows: its layers in its own order, nested models opened, each weight at its layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tf_keras

from pytest_modelbudget.backends import assemble
from pytest_modelbudget.backends.assemble import HeldWeight, PartCalls, Row, call_positions, unique
from pytest_modelbudget.backends.dimensions import Specs
from pytest_modelbudget.backends.keras import labels
from pytest_modelbudget.backends.tensorflow import graphs
from pytest_modelbudget.backends.tensorflow.legacy_trace import LegacyTrace
from pytest_modelbudget.summary import TensorSpec, Weight


@dataclass(frozen=True, slots=True)
class LegacyTraceShapes:
    """What a trace shows: for each call what it got and gave, with named dimensions, and the spec of each input."""

    trace: LegacyTrace
    given: Sequence[Specs]
    outputs: Sequence[Specs]
    inputs: Mapping[int, TensorSpec]


class LegacyStructure:
    """What a model of tf_keras is made of; layers have their `labels` where there are any, else their own names."""

    def __init__(self, model: Any, trace_shapes: LegacyTraceShapes, labels: Mapping[int, str]) -> None:
        self._trace_shapes = trace_shapes
        self._labels = labels
        self._trainable = {id(variable) for variable in model.trainable_weights}

    def rows(self, model: Any) -> list[Row]:
        """See `assemble.rows`."""
        return assemble.rows(model, self, call_positions(call.chain for call in self._trace_shapes.trace.calls))

    def name(self, part: Any) -> str:
        """What a layer is called here."""
        return self._labels.get(id(part), part.name)

    def is_model(self, part: Any) -> bool:
        """Whether it is opened."""
        return isinstance(part, tf_keras.Model)

    def parts(self, model: Any) -> list[Any]:
        """Its layers; metrics are layers here, and are left out."""
        return [layer for layer in model.layers if not isinstance(layer, tf_keras.metrics.Metric)]

    def calls_of(self, model: Any, part: Any, positions: Sequence[int]) -> PartCalls:
        """From the trace; who made what a layer got from the graph of its model, where it has one."""
        trace_shapes = self._trace_shapes
        outputs = [trace_shapes.outputs[position] for position in positions]
        if _is_input(part):
            outputs = [(spec,)] if (spec := trace_shapes.inputs.get(id(part)) or _input_spec(part)) else []
        makers = () if model is None else self._makers(model, part, positions)
        calls = len(positions) or int(_is_input(part))
        return PartCalls([trace_shapes.given[position] for position in positions], outputs, makers, calls)

    def _makers(self, model: Any, layer: Any, positions: Sequence[int]) -> list[list[int]]:
        if not model._is_graph_network:
            trace = self._trace_shapes.trace
            return [[*map(id, trace.sources(trace.calls[position]))] for position in positions]
        nodes = [
            node
            for index, node in enumerate(layer._inbound_nodes)
            if f"{layer.name}_ib-{index}" in model._network_nodes and not node.is_input
        ]
        return [[id(maker) for maker, *_ in node.iterate_inbound()] for node in nodes]

    def weights(self, part: Any, *, deep: bool) -> Iterator[HeldWeight]:
        """Its variables."""
        for name, variable in _all_variables(part) if deep else _own_variables(part):
            shape, dtype = tuple(variable.shape.as_list()), variable.dtype.name
            weight = Weight(name, shape, dtype, trainable=id(variable) in self._trainable)
            yield HeldWeight(id(variable), id(variable), weight)

    def all_weights(self, model: Any) -> Iterator[tuple[int, str]]:
        """All but those of metrics."""
        of_metrics = metric_variables(model)
        return ((id(variable), variable.name) for variable in model.weights if id(variable) not in of_metrics)


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


def live_names(model: Any) -> labels.Labels:
    """Automatic names in a model of the user's, numbered from the first, as `labels.live_labels` does for Keras 3."""
    return labels.numbered((model, *_sublayers(model)))


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
        step = f"{unique(part, used_names)}/" if part else ""
        yield from _all_variables(sublayer, f"{prefix}{step}", visited)


def _is_input(layer: Any) -> bool:
    return isinstance(layer, tf_keras.layers.InputLayer)


def _input_spec(layer: Any) -> TensorSpec | None:
    """What an input layer of a nested model was made with."""
    return None if layer.output.shape.rank is None else graphs.spec_of(layer.output)


def metric_variables(model: Any) -> set[int]:
    """The variables of metrics, which tf_keras lists with the weights of the model that holds them."""
    layers = list(model._flatten_layers())
    metrics = [layer for layer in layers if isinstance(layer, tf_keras.metrics.Metric)]
    metrics += [metric for layer in layers for metric in getattr(layer, "_metrics", ())]
    return {id(variable) for metric in metrics for variable in metric.weights}
