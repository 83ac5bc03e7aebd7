"""What layers give and cost by the sizes of their inputs alone, and graphs of layers without Keras' own pass.

Keras' pass of a functional model looks for masks, contexts and structures at every call, which takes longer than all
that is counted here. None of it changes what a layer of Keras costs that has a plain rule; a layer that has none is
left to the trace.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import keras

from pytest_modelbudget.backends.costs import FlopsCount
from pytest_modelbudget.backends.keras import fingerprints, loops, private, rules
from pytest_modelbudget.backends.keras.calls import LayerCall, fresh_tensor, keras_tensors_in

RunCall = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""What stands in for a call of an operation with positional and named arguments."""


def layer_output(layer: Any, args: tuple[Any, ...]) -> tuple[Any, FlopsCount] | None:
    """What a layer gives and costs whose sizes say all about it; None for any other."""
    first = args[0] if len(args) == 1 and layer.built else None
    tensors: list[Any] = first if isinstance(first, list) else [first]
    rule = rules.plain_rule(layer) if all(isinstance(tensor, keras.KerasTensor) for tensor in tensors) else None
    if rule is None or private.has_own_call(layer) or private.may_make_mask(layer):
        return None
    try:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        shape = tuple(layer.compute_output_shape(shapes if first is tensors else shapes[0]))
        output = keras.KerasTensor(shape, layer.compute_dtype, name=layer.name)  # to find a free name takes long
        cost = FlopsCount(rule.formula(rules.as_call(layer, shapes, [shape])))
    except Exception:  # it says its sizes otherwise, or has open ones
        return None
    if any(map(private.has_mask, tensors)) and not private.pass_mask(layer, first, output):
        return None
    return output, cost


def operation_output(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, FlopsCount] | None:
    """What an operation of a graph gives that costs nothing by rule; None for any other."""
    if not rules.is_free_operation(operation) or loops.has_bodies(operation):
        return None
    try:
        return operation.compute_output_spec(*args, **kwargs), FlopsCount()
    except Exception:  # the trace says what is wrong
        return None


class TracedLayers:
    """What layers of Keras gave and cost that have no other layers in them, for those that do the same."""

    def __init__(self) -> None:
        self._results: dict[Hashable, tuple[Any, FlopsCount]] = {}

    def key(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
        """Equal for calls that do the same; None for a call of which that cannot be said."""
        tensors = keras_tensors_in(args[0] if len(args) == 1 and not kwargs else (args, kwargs))
        if not fingerprints.is_keras(layer) or private.sublayers(layer) or any(map(private.has_mask, tensors)):
            return None
        return (
            fingerprints.fingerprint(layer),
            fingerprints.arguments_fingerprint((args, kwargs), keras.KerasTensor),
            tuple([(tuple(tensor.shape), tensor.dtype) for tensor in tensors]),
        )

    def add(self, key: Hashable, calls: Sequence[LayerCall]) -> None:
        """Keep what `calls` say, that of a layer and those in it, where the layer gave one tensor."""
        outputs = calls[0].outputs if calls else ()
        if len(outputs) == 1 and not private.has_mask(outputs[0]):
            self._results[key] = outputs[0], rules.total(calls)

    def result(self, key: Hashable) -> tuple[Any, FlopsCount] | None:
        """What a call of that key gives and costs; None before one was added."""
        if (result := self._results.get(key)) is None:
            return None
        output, cost = result
        return fresh_tensor(output), cost


def graph_inputs(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, list[Any]] | None:
    """The graph of a model, and what its inputs are in a call that changes nothing about them; None for any other."""
    graph = private.graph_of(model)
    if graph is None or len(args) != 1 or any(value is not None for value in kwargs.values()):
        return None
    values = keras.tree.flatten(args[0])
    if len(values) != len(graph.inputs) or not all(map(_is_as_built, values, graph.inputs)):
        return None
    return graph, values


def _is_as_built(value: Any, graph_input: Any) -> bool:
    """Whether a graph takes a tensor as it is: one of another rank or dtype is changed first."""
    same_kind = isinstance(value, keras.KerasTensor) and value.dtype == graph_input.dtype
    return same_kind and len(value.shape) == len(graph_input.shape)


def run_graph(graph: Any, inputs: list[Any], run: RunCall) -> Any:
    """The outputs of a graph as its model gives them, where `run` stands in for each of its calls."""
    values = {id(tensor): value for tensor, value in zip(graph.inputs, inputs, strict=True)}
    for node in private.graph_calls(graph):
        if all(id(tensor) in values for tensor in node.input_tensors):
            outputs = run(node.operation, *private.call_arguments(node, values))
            flat_outputs = keras.tree.flatten(outputs) if isinstance(outputs, (list, tuple, dict)) else [outputs]
            values.update(zip(map(id, node.outputs), flat_outputs, strict=False))
    outputs = private.in_output_structure(graph, [values[id(tensor)] for tensor in graph.outputs])
    return outputs[0] if isinstance(outputs, (list, tuple)) and len(outputs) == 1 else outputs
