"""From a tf_keras model to rows: its layers in its own order, nested models opened, each weight at its layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import tensorflow as tf
import tf_keras

from pytest_modelbudget.backends.keras import labels
from pytest_modelbudget.backends.keras.weights import unique
from pytest_modelbudget.backends.tensorflow.legacy_trace import Trace
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Layer, TensorSpec, Weight

Specs = tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a trace shows: for each call what it got and gave, with named dimensions, and the spec of each input."""

    trace: Trace
    given: Sequence[Specs]
    outputs: Sequence[Specs]
    inputs: Mapping[int, TensorSpec]
    names: Mapping[int, str]


@dataclass(slots=True)
class Walk:
    """Makes the rows of one model; `paths` then has the path of each layer that is a row."""

    model: Any
    seen: Seen
    taken: set[str] = field(default_factory=set)
    owners: dict[int, str] = field(default_factory=dict)
    paths: dict[tuple[int, int], str] = field(default_factory=dict)

    def rows(self) -> list[Layer]:
        """All rows of the model; a layer that is no model is one row.

        Raises:
            ModelBudgetError: a weight of the model would be in no row.
        """
        found = list(self._whole() if isinstance(self.model, tf_keras.Model) else self._alone())
        held = {*self.owners, *_of_metrics(self.model)}
        lost = [one.name for one in self.model.weights if id(one) not in held]
        if lost:
            raise ModelBudgetError(f"{self.model.name}: the weight {lost[0]!r} belongs to no layer of the model")
        return found

    def _whole(self) -> Iterator[Layer]:
        """The rows of a model; it has one itself when it holds weights of its own."""
        if own := list(_own(self.model)):
            path = self._root()
            yield Layer(path, type(self.model).__name__, weights=self._weights(path, own))
        yield from self._inside(self.model, "")

    def _alone(self) -> Iterator[Layer]:
        """The row of a layer that stands in no model."""
        path = self._root()
        bare = self._bare(self.model, path, self._positions(None, self.model), ())
        yield replace(bare, weights=self._weights(path, _deep(self.model)))

    def _root(self) -> str:
        path = unique(self.seen.names.get(id(self.model), self.model.name), self.taken)
        self.paths[0, id(self.model)] = path
        return path

    def _inside(self, model: Any, prefix: str) -> Iterator[Layer]:
        layers = [one for one in model.layers if not isinstance(one, tf_keras.metrics.Metric)]
        paths = {id(one): unique(f"{prefix}{self.seen.names.get(id(one), one.name)}", self.taken) for one in layers}
        for one in layers:
            path = self.paths[id(model), id(one)] = paths[id(one)]
            self.paths.setdefault((0, id(one)), path)
            at = self._positions(model, one)
            bare = self._bare(one, path, at, self._sources(model, one, at, paths))
            own = _own(one) if bare.container else _deep(one)
            yield replace(bare, weights=self._weights(path, own))
            if bare.container:
                yield from self._inside(one, f"{path}/")

    def _bare(self, layer: Any, path: str, at: list[int], sources: Iterable[tuple[str, ...]]) -> Layer:
        """The row of a layer, without its weights."""
        return Layer(
            path=path,
            type=type(layer).__name__,
            outputs=tuple(dict.fromkeys(self._outputs(layer, at))),
            connected_to=tuple(dict.fromkeys(filter(None, sources))),
            inputs=tuple(dict.fromkeys(filter(None, (self.seen.given[position] for position in at)))),
            calls=len(at) or int(_is_input(layer)),
            container=isinstance(layer, tf_keras.Model),
        )

    def _positions(self, model: Any, layer: Any) -> list[int]:
        """The calls of a layer in this model; where a model is called by a layer of another kind, any calls."""
        calls = self.seen.trace.calls
        mine = [at for at, call in enumerate(calls) if call.layer is layer]
        here = [at for at in mine if calls[at].inside and calls[at].inside[-1] is model]
        return here or mine

    def _outputs(self, layer: Any, at: list[int]) -> list[Specs]:
        if _is_input(layer):
            return [(spec,)] if (spec := self.seen.inputs.get(id(layer)) or _input_spec(layer)) else []
        return [self.seen.outputs[position] for position in at]

    def _sources(self, model: Any, layer: Any, at: list[int], paths: Mapping[int, str]) -> list[tuple[str, ...]]:
        if model._is_graph_network:
            nodes = [
                node
                for index, node in enumerate(layer._inbound_nodes)
                if f"{layer.name}_ib-{index}" in model._network_nodes and not node.is_input
            ]
            makers = [[maker for maker, *_ in node.iterate_inbound()] for node in nodes]
        else:
            makers = [self.seen.trace.sources(self.seen.trace.calls[position]) for position in at]
        return [tuple(paths[id(one)] for one in call if id(one) in paths) for call in makers]

    def _weights(self, path: str, named: Iterator[tuple[str, Any]] | list[tuple[str, Any]]) -> tuple[Weight, ...]:
        trainable = {id(one) for one in self.model.trainable_weights}
        found: list[Weight] = []
        taken: set[str] = set()
        for wanted, variable in named:
            name = unique(wanted, taken)
            owner = self.owners.setdefault(id(variable), full := f"{path}.{name}")
            found.append(
                Weight(
                    name=name,
                    shape=tuple(variable.shape.as_list()),
                    dtype=variable.dtype.name,
                    trainable=id(variable) in trainable,
                    tied_to=None if owner == full else owner,
                )
            )
        return tuple(found)


def is_graph(model: Any) -> bool:
    """Whether a graph says what `model` does; never so for a layer that is no model."""
    return bool(getattr(model, "_is_graph_network", False))


def unbuilt(model: Any) -> str | None:
    """The name of a layer that would make weights in `build` and never did; None when there is none."""
    base = tf_keras.layers.Layer.build
    for one in _sublayers(model):
        if not one.built and type(one).build is not base and not isinstance(one, tf_keras.Model):
            return str(one.name)
    return None


def live_names(model: Any) -> dict[int, str]:
    """Automatic names in a model of the user's, numbered from the first, as `labels.of_live` does for Keras 3."""
    numbered: dict[str, dict[int, list[int]]] = {}
    for one in (model, *_sublayers(model)):
        if (number := labels.automatic(type(one).__name__, one.name)) is not None:
            numbered.setdefault(labels.base(type(one).__name__), {}).setdefault(number, []).append(id(one))
    return {
        identity: f"{name}_{rank}" if rank else name
        for name, by_number in numbered.items()
        for rank, number in enumerate(sorted(by_number))
        for identity in by_number[number]
    }


def _sublayers(layer: Any) -> Iterator[Any]:
    """Every layer below `layer`, each once; metrics are layers here, and are left out."""
    for one in layer._flatten_layers(include_self=False):
        if not isinstance(one, tf_keras.metrics.Metric):
            yield one


def _own(layer: Any) -> Iterator[tuple[str, Any]]:
    """The variables a layer holds itself, with their names."""
    seen = {id(one): one for one in (*layer._trainable_weights, *layer._non_trainable_weights)}
    for one in seen.values():
        yield one.name.partition(":")[0].rpartition("/")[2], one


def _deep(layer: Any, prefix: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """The variables of a layer and all layers below it, named by the way to them, each once."""
    seen = set() if seen is None else seen
    for name, one in _own(layer):
        if id(one) not in seen:
            seen.add(id(one))
            yield f"{prefix}{name}", one
    taken: set[str] = set()
    for below in layer._flatten_layers(recursive=False, include_self=False):
        if isinstance(below, tf_keras.metrics.Metric):
            continue
        part = labels.part(layer, below, tf_keras.layers)
        step = f"{unique(part, taken)}/" if part else ""
        yield from _deep(below, f"{prefix}{step}", seen)


def _is_input(layer: Any) -> bool:
    return isinstance(layer, tf_keras.layers.InputLayer)


def _input_spec(layer: Any) -> TensorSpec | None:
    """What an input layer of a nested model was made with."""
    shape = layer.output.shape
    if shape.rank is None:
        return None
    dims = tuple("B" if axis == 0 and size is None else size for axis, size in enumerate(shape.as_list()))
    return TensorSpec(dims, tf.as_dtype(layer.output.dtype).name)


def _of_metrics(model: Any) -> set[int]:
    """The variables of metrics, which tf_keras lists with the weights of the model that holds them."""
    layers = list(model._flatten_layers())
    metrics = [one for one in layers if isinstance(one, tf_keras.metrics.Metric)]
    metrics += [metric for one in layers for metric in getattr(one, "_metrics", ())]
    return {id(variable) for metric in metrics for variable in metric.weights}
