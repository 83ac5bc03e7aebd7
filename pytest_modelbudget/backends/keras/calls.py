"""What a trace writes down: each call of a layer or operation, in order, with its tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import keras

from pytest_modelbudget.backends.costs import FlopsCount
from pytest_modelbudget.backends.keras import private


@dataclass(slots=True)
class LayerCall:
    """One call of a layer or operation: `inside` which layers (outermost first), how many times, and on what.

    `sources` are the layers that made its input tensors, looked up before anything else runs. `own` is what one run of
    it cost without the calls below it, where that was counted otherwise than by its rule.
    """

    operation: Any
    inside: tuple[Any, ...]
    times: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sources: tuple[Any, ...] = ()
    outputs: tuple[Any, ...] = ()
    opaque: bool = False
    own: FlopsCount | None = None

    @property
    def input_tensors(self) -> tuple[Any, ...]:
        """Its input tensors."""
        return tuple(keras_tensors_in((self.args, self.kwargs)))

    @property
    def chain(self) -> tuple[int, ...]:
        """The identities of the layers around it, outermost first, and of what was called."""
        return (*map(id, self.inside), id(self.operation))

    @property
    def is_layer(self) -> bool:
        """Whether a layer was called, not an operation."""
        return isinstance(self.operation, keras.layers.Layer)


@dataclass(slots=True)
class CallTrace:
    """All calls in the order they began, and what the model gave back."""

    calls: list[LayerCall] = field(default_factory=list)
    outputs: Any = None


def keras_tensors_in(value: Any) -> list[Any]:
    """Every Keras tensor in nested arguments or results."""
    if isinstance(value, keras.KerasTensor):
        return [value]
    return [leaf for leaf in keras.tree.flatten(value) if isinstance(leaf, keras.KerasTensor)]


def symbolic_arguments(values: Any) -> Any:
    """Nested arguments with a symbolic tensor in the place of each array or tensor of the backend."""
    return keras.tree.map_structure(symbolic_like, values)


def symbolic_like(value: Any) -> Any:
    """A symbolic tensor like an array or tensor of the backend; anything else as it is."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return value
    return keras.KerasTensor(tuple(value.shape), keras.backend.standardize_dtype(value.dtype))


def fresh_tensor(value: Any) -> Any:
    """A tensor of its own for each call, so that a layer which returns its input does not rewrite the input's past."""
    if not isinstance(value, keras.KerasTensor):
        return value
    return keras.KerasTensor(value.shape, value.dtype, sparse=value.sparse)


def source_layers(tensors: list[Any]) -> tuple[Any, ...]:
    """The layers that made `tensors`, seen through operations, each once, in order."""
    by_id: dict[int, Any] = {}
    visited: set[int] = set()
    pending = list(reversed(tensors))
    while pending:
        tensor = pending.pop()
        if id(tensor) in visited or (history := private.history(tensor)) is None:
            continue
        visited.add(id(tensor))
        operation, node = history
        if isinstance(operation, keras.layers.Layer):
            by_id.setdefault(id(operation), operation)
        else:
            pending.extend(reversed(node.input_tensors))
    return tuple(by_id.values())
