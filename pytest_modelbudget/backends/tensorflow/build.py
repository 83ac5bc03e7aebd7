"""Building without memory for weights: variables that know their shape and dtype, and read as zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import tensorflow as tf

from pytest_modelbudget.backends.tensorflow.private import UninitializedVariable, func_graph_from_py_func

_KEPT_VALUE_BYTES = 1 << 16
"""Bytes up to which a value that is already there is kept: counters, seeds, tables."""


@contextmanager
def abstract() -> Iterator[None]:
    """Inside, no `tf.Variable` gets memory for its value, except small ones that are made from a value."""
    with tf.variable_creator_scope(_make_variable):
        yield


@contextmanager
def global_state_restored() -> Iterator[None]:
    """Nothing: Keras' backend, which every process with TensorFlow has, restores TensorFlow's global random state."""
    yield


def _make_variable(next_creator: Callable[..., Any], **options: Any) -> Any:
    """A variable without a value in the place of the one that is asked for."""
    spec = _spec_of_options(options)
    if spec is None:
        return next_creator(**options)
    names = ("name", "constraint", "synchronization", "aggregation", "trainable")
    return VariableWithoutValue(shape=spec.shape, dtype=spec.dtype, **{name: options.get(name) for name in names})


def _spec_of_options(options: dict[str, Any]) -> Any:
    """Shape and dtype of a variable; None when it is to be made for real."""
    value, shape, dtype = options.get("initial_value"), options.get("shape"), options.get("dtype")
    known_shape = tf.TensorShape(shape)
    if not callable(value):
        tensor = value if isinstance(value, tf.Tensor) else tf.convert_to_tensor(value, dtype)
        size = prod(tensor.shape) * tensor.dtype.size if tensor.shape.is_fully_defined() else 0
        in_graph = isinstance(value, tf.Tensor) and not hasattr(value, "numpy")
        if size <= _KEPT_VALUE_BYTES and not in_graph:
            return None
        return tf.TensorSpec(tensor.shape if shape is None else known_shape, dtype or tensor.dtype)
    if dtype is not None and known_shape.is_fully_defined():
        return tf.TensorSpec(known_shape, dtype)
    traced_value = func_graph_from_py_func("initial_value", value, (), {}).outputs[0]  # runs nothing
    return tf.TensorSpec(traced_value.shape if shape is None else known_shape, dtype or traced_value.dtype)


class VariableWithoutValue(UninitializedVariable):  # type: ignore[misc]
    """A variable that never holds a value; outside graphs it reads as zeros and forgets what it is assigned."""

    def _zeros(self) -> Any:
        return tf.zeros(self.shape, self.dtype)

    def _read_variable_op(self, no_copy: bool = False) -> Any:
        return self._zeros() if tf.executing_eagerly() else super()._read_variable_op(no_copy)

    def sparse_read(self, indices: Any, name: str | None = None) -> Any:
        """Rows of it."""
        return tf.gather(self._zeros(), indices) if tf.executing_eagerly() else super().sparse_read(indices, name)

    def gather_nd(self, indices: Any, name: str | None = None) -> Any:
        """Elements of it."""
        return tf.gather_nd(self._zeros(), indices) if tf.executing_eagerly() else super().gather_nd(indices, name)

    def assign(self, value: Any, *args: Any, **options: Any) -> Any:
        """Nothing, outside graphs."""
        return self if tf.executing_eagerly() else super().assign(value, *args, **options)

    def assign_add(self, delta: Any, *args: Any, **options: Any) -> Any:
        """Nothing, outside graphs."""
        return self if tf.executing_eagerly() else super().assign_add(delta, *args, **options)

    def assign_sub(self, delta: Any, *args: Any, **options: Any) -> Any:
        """Nothing, outside graphs."""
        return self if tf.executing_eagerly() else super().assign_sub(delta, *args, **options)
