"""While a model is traced, its variables are symbolic tensors like its inputs.

A product of two weights, as of the two small matrices of LoRA, is then an operation that is seen, and nothing is drawn
from an initializer. Code that wants the values of a weight is run on the backend's symbolic tensors instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from pytest_modelbudget.backends.keras import private
from pytest_modelbudget.backends.patching import all_patched, patched

_OPERATORS = frozenset(
    f"__{side}{name}__"
    for name in ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
    for side in ("", "r")
) | {f"__{name}__" for name in ("neg", "abs", "invert", "lt", "le", "gt", "ge", "ne")}

_FUNCTIONS = "any_symbolic_tensors"
_MODULES = ("keras.src.ops.", "keras.src.quantizers.", "keras.src.activations.")
"""Modules that ask `any_symbolic_tensors` whether to run or to infer."""


class WeightValueWanted(Exception):
    """Code asked for the value of a weight, which a trace does not have."""


@contextmanager
def symbolic() -> Iterator[None]:
    """Inside, operations on variables are symbolic, and assigning one has no effect."""
    owner, tensor = keras.Variable, keras.KerasTensor
    patches: list[tuple[Any, str, Any]] = [
        (module, _FUNCTIONS, _asking_variables(getattr(module, _FUNCTIONS)))
        for name, module in list(sys.modules.items())
        if name.startswith(_MODULES) and hasattr(module, _FUNCTIONS)
    ]
    patches += [
        (owner, name, _symbolic_or_original(getattr(owner, name), getattr(tensor, name)))
        for name in sorted(_OPERATORS)
        if hasattr(owner, name) and hasattr(tensor, name)
    ]
    patches.append((owner, "__getitem__", _symbolic_or_original(owner.__getitem__, _item)))
    patches.append((owner, "assign", _assign_nothing(owner.assign)))
    patches.append((owner, "value", property(_refusing_values(owner.value))))
    if (operations := sys.modules.get("keras.src.ops")) is not None:
        patches.append((operations, "custom_gradient", _forward_only(operations.custom_gradient)))
    with all_patched(patches):
        yield


@contextmanager
def zeros() -> Iterator[None]:
    """Inside, a variable without value reads as zeros, which no backend has to draw or to decompose."""
    with patched(keras.Variable, "value", property(_reading_zeros(keras.Variable.value))):
        yield


def is_variable(value: Any) -> bool:
    """Whether `value` is a variable of Keras."""
    return isinstance(value, keras.Variable)


def _asking_variables(original: Callable[..., bool]) -> Callable[..., bool]:
    def any_symbolic_tensors(args: Any = None, kwargs: Any = None) -> bool:
        if original(args, kwargs):
            return True
        if private.in_symbolic_scope():
            return False
        values = (*(args or ()), *(kwargs or {}).values())
        return any(map(is_variable, values)) or any(map(is_variable, keras.tree.flatten(values)))

    return any_symbolic_tensors


def _symbolic_or_original(original: Callable[..., Any], symbolic: Callable[..., Any]) -> Callable[..., Any]:
    def operator(self: Any, *others: Any) -> Any:
        return (original if private.in_symbolic_scope() else symbolic)(self, *others)

    return operator


def _item(variable: Any, key: Any) -> Any:
    """A part of a variable; numpy knows the shape of any, an array without memory stands for the values."""
    if any(isinstance(index, keras.KerasTensor) for index in (key if isinstance(key, tuple) else (key,))):
        return keras.KerasTensor.__getitem__(variable, key)
    part = np.broadcast_to(np.zeros((), "int8"), variable.shape)[key]
    return keras.KerasTensor(part.shape, keras.backend.standardize_dtype(variable.dtype))


def _assign_nothing(original: Callable[..., Any]) -> Callable[..., Any]:
    def assign(self: Any, value: Any) -> Any:
        return original(self, value) if private.in_symbolic_scope() else value

    return assign


def _refusing_values(original: property) -> Callable[..., Any]:
    def value(self: Any) -> Any:
        if not private.in_symbolic_scope() and "float" in str(self.dtype):
            raise WeightValueWanted(self.path)
        return original.__get__(self)

    return value


def _reading_zeros(original: property) -> Callable[..., Any]:
    def value(self: Any) -> Any:
        if private.is_drawn(self):
            return self._maybe_autocast(keras.ops.zeros(self.shape, self.dtype))
        return original.__get__(self)

    return value


def _forward_only(original: Callable[..., Any]) -> Callable[..., Any]:
    def custom_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
        if private.in_symbolic_scope():
            differentiated: Callable[..., Any] = original(function)
            return differentiated
        return lambda *args, **kwargs: function(*args, **kwargs)[0]

    return custom_gradient
