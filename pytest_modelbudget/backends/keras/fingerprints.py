"""When two layers do the same with tensors of the same sizes: what is measured at one then holds for the other."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import Any

import keras

from pytest_modelbudget.backends.keras import private, walk

_ANY_CODE = frozenset({"Lambda", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "TFSMLayer"})
_PLAIN = (bool, int, float, str, type(None))
_IRRELEVANT = (
    keras.initializers.Initializer,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
    keras.InputSpec,
)
"""What a built layer holds that says nothing of how its call runs."""

_TRACKED = "_self_"
"""What the names begin with under which TensorFlow notes for checkpoints what an object holds."""


def runs_only_keras_code(model: Any) -> bool:
    """Whether all that a model runs is Keras' own code, which follows from what its layers hold."""
    for layer in walk.all_layers(model):
        graph = private.graph_of(layer) if isinstance(layer, keras.Model) else None
        if isinstance(layer, keras.Model) and graph is None:
            return False
        if graph is None and not is_keras(layer):
            return False
        if graph is not None and not all(map(_is_keras_or_model, graph.operations)):
            return False
    return True


def _is_keras_or_model(operation: Any) -> bool:
    return isinstance(operation, keras.Model) or is_keras(operation)


def is_keras(operation: Any) -> bool:
    """Whether all that an operation or layer runs by itself is Keras' own code."""
    if not type(operation).__module__.startswith("keras.src.") or type(operation).__name__ in _ANY_CODE:
        return False
    functions = [vars(operation).get(name) for name in ("activation", "recurrent_activation")]
    return all(function is None or _is_keras_function(function) for function in functions)


def _is_keras_function(function: Any) -> bool:
    home = function if hasattr(function, "__module__") and hasattr(function, "__name__") else type(function)
    return str(home.__module__).startswith("keras.src.")


def fingerprint(operation: Any) -> Hashable:
    """The same for operations of the same class with the same settings and weights of the same sizes."""
    is_layer = isinstance(operation, keras.layers.Layer)
    skipped = _attributes_of_every_layer() if is_layer else _attributes_of_every_operation()
    attributes = [
        (name, _value_fingerprint(name, value, operation))
        for name, value in vars(operation).items()
        if name not in skipped and not name.startswith(_TRACKED)
    ]
    if not is_layer:
        return type(operation), tuple(attributes)
    variables = tuple(_value_fingerprint("", variable, operation) for variable in private.own_variables(operation))
    return (
        type(operation),
        _value_fingerprint("", operation.dtype_policy, operation),
        operation.autocast,
        operation._convert_input_args,
        variables,
        tuple(attributes),
    )


def arguments_fingerprint(arguments: Any, tensor: type) -> Hashable:
    """Nested arguments without their tensors, which are of the class `tensor`."""
    args, kwargs = arguments
    if not kwargs and len(args) == 1 and isinstance(args[0], tensor):
        return "one tensor"
    return _value_fingerprint(
        "", keras.tree.map_structure(lambda leaf: tensor if isinstance(leaf, tensor) else leaf, arguments), None
    )


def _value_fingerprint(name: str, value: Any, owner: Any) -> Hashable:
    kind = type(value)
    if kind in _PLAIN:
        if name == "rate" and type(owner) is keras.layers.Dropout and 0 < value < 1:
            return "some"  # however many are dropped, as much is kept
        return kind, value
    if isinstance(value, (tuple, list)):  # Keras' own lists among them
        return kind, tuple([_value_fingerprint("", item, owner) for item in value])
    if isinstance(value, dict):
        return kind, tuple([(key, _value_fingerprint("", item, owner)) for key, item in value.items()])
    if isinstance(value, keras.Variable):
        return kind, tuple(value.shape), str(value.dtype), value.trainable
    if isinstance(value, keras.layers.Layer):
        return fingerprint(value)
    if isinstance(value, _IRRELEVANT):
        return kind.__name__
    if kind is keras.dtype_policies.DTypePolicy:
        return kind, value.name
    if kind is keras.random.SeedGenerator:
        return kind, value._initial_seed is None
    return kind, id(value)


@cache
def _attributes_of_every_layer() -> frozenset[str]:
    return frozenset(vars(keras.layers.Layer(name="any")))


@cache
def _attributes_of_every_operation() -> frozenset[str]:
    return frozenset(vars(keras.Operation(name="any")))
