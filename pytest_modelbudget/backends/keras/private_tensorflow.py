"""Private names of TensorFlow and of Keras on it that it takes to trace a step without memory for weights.

Public TensorFlow has no variable without a value, and its functions run the initialisers of what they make.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import keras

from pytest_modelbudget.backends.keras import private
from pytest_modelbudget.backends.patching import patched


def tensorflow() -> Any:
    """TensorFlow, which is imported where Keras runs on it."""
    return sys.modules["tensorflow"]


def variable_without_value(shape: Sequence[int], dtype: str, trainable: bool) -> Any:
    """A variable that has a handle, a shape and a dtype, and never a value."""
    kind = import_module("tensorflow.python.ops.resource_variable_ops").UninitializedVariable
    return kind(shape=tuple(shape), dtype=dtype, trainable=trainable)


def traced(function: Callable[..., Any], specs: Sequence[Any]) -> Any:
    """The graph of `function` called on tensors of `specs`, which runs nothing."""
    trace = import_module("tensorflow.python.framework.func_graph").func_graph_from_py_func
    return trace("step", function, tuple(specs), {})


def add_inputs(graph: Any, tensors: Sequence[Any], after: int) -> None:
    """Placeholders that were made while `graph` was traced are inputs of it, after the first ones."""
    before = graph.inputs
    graph.inputs = [*before[:after], *tensors, *before[after:]]


@contextmanager
def variables_without_values(variables: Iterable[Any]) -> Iterator[None]:
    """Inside, `variables` that have no value have a handle, and new variables of Keras never get a value."""
    empty = [variable for variable in variables if private.value_of(variable) is None]

    def initialize(self: Any, value: Any) -> None:
        shape = self._shape if callable(value) else keras.ops.shape(value)
        self._value = variable_without_value(shape, self._dtype, self.trainable)

    with patched(keras.Variable, "_initialize", initialize):
        try:
            for variable in empty:
                handle = variable_without_value(variable.shape, variable.dtype, bool(variable.trainable))
                private.set_value(variable, handle)
            yield
        finally:
            for variable in empty:
                private.set_value(variable, None)
