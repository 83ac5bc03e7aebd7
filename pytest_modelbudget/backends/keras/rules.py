"""FLOPs of one Keras operation or layer: its call as a rule of `flop_rules` takes it.

The same products are counted whatever layer asks for them: layers are looked into until only operations are left.
Operations in `free/keras.py` cost nothing by rule (elementwise work, reductions, normalisation, pooling, look-ups,
views, copies); an operation in neither table has no formula, and makes the total a lower bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras

from pytest_modelbudget.backends.costs import FlopsCount, summed
from pytest_modelbudget.backends.costs.flop_rule import FlopRule, OperatorCall
from pytest_modelbudget.backends.costs.flop_rules import rules_of
from pytest_modelbudget.backends.costs.formulas import Shape
from pytest_modelbudget.backends.costs.free.keras import WITH_WEIGHTS, ZERO, ZERO_LAYERS
from pytest_modelbudget.backends.keras.calls import LayerCall

_RULES = rules_of("keras")
_NEVER_SYMBOLIC = frozenset({"Conv1D", "Conv2D", "Conv3D", "MelSpectrogram"})
"""Layers with a rule of their own, whose code cannot take symbolic tensors in some cases, as grouped convolutions."""


def total(calls: Iterable[LayerCall]) -> FlopsCount:
    """The FLOPs of several calls, each as often as it runs."""
    return summed((cost(call), call.times) for call in calls)


def cost(call: LayerCall) -> FlopsCount:
    """What one run of a call costs, without the calls below it; what has no formula is named."""
    if call.own is not None:
        return call.own
    if call.is_layer and not call.opaque:
        return FlopsCount()  # what it did is in the calls below it
    value = _cost(call)
    return FlopsCount(0, ((type(call.operation).__name__, 1),)) if value is None else FlopsCount(value)


def _cost(call: LayerCall) -> int | None:
    operation = call.operation
    if not type(operation).__module__.startswith("keras.src."):
        return None
    name = keras_class(operation) if call.is_layer else type(operation).__name__
    key = f"layers.{name}" if call.is_layer else f"ops.{name}"
    rule = _RULES.get(key) if has_formula(operation) or not call.is_layer else None
    if rule is None:
        return 0 if name in ZERO else None
    operands = [shape for value in keras.tree.flatten((call.args, call.kwargs)) if (shape := _shape(value)) is not None]
    results = [tuple(tensor.shape) for tensor in call.outputs]
    if any(size is None for shape in (*operands, *results) for size in shape):
        return None
    return rule.flops(as_call(operation, operands, results), of_complex=any(map(_is_complex, call.outputs)))


def as_call(operation: Any, operands: Sequence[Shape], results: Sequence[Shape]) -> OperatorCall:
    """A call of an operation or layer, as a rule takes it."""
    kernel = _shape(getattr(operation, "kernel", None))
    inputs = operands if kernel is None else [*operands, kernel]
    return OperatorCall(inputs, results, lambda name: getattr(operation, name, None))


def _is_complex(value: Any) -> bool:
    return bool(keras.backend.standardize_dtype(value.dtype).startswith("complex"))


def _shape(value: Any) -> Any:
    shape = getattr(value, "shape", None)
    return None if shape is None else tuple(shape)


_FREE = FlopRule(lambda _: 0)


def plain_rule(layer: Any) -> FlopRule | None:
    """What the cost of a layer of Keras follows from without looking into it; None for any that may hold more."""
    kinds = type(layer)
    if not kinds.__module__.startswith("keras.src.") or getattr(layer, "lora_enabled", False):
        return None
    if kinds.__name__ in ZERO_LAYERS:
        return _FREE
    rule = _RULES.get(f"layers.{kinds.__name__}")
    if rule is None or getattr(layer, "quantization_mode", None) is not None or layer.compute_dtype == "complex64":
        return None
    activation = getattr(layer, "activation", None)
    keeps_shape = activation is not keras.activations.glu
    return rule if keeps_shape and getattr(activation, "__module__", "").startswith("keras.src.") else None


def is_free_operation(operation: Any) -> bool:
    """Whether an operation is one of Keras' own that cost nothing by rule, whatever it is called with."""
    kind = type(operation)
    return kind.__module__.startswith("keras.src.") and kind.__name__ in ZERO and f"ops.{kind.__name__}" not in _RULES


def has_formula(layer: Any) -> bool:
    """Whether a layer that cannot be looked into has a formula of its own, the same on every backend."""
    return keras_class(layer) in _NEVER_SYMBOLIC


def costs_nothing(layer: Any) -> bool:
    """Whether a layer is one of Keras' own that are zero by rule; with LoRA, looking up rows takes a product."""
    return keras_class(layer) in ZERO_LAYERS and not getattr(layer, "lora_enabled", False)


def weightless(layer: Any) -> bool:
    """Whether a layer is one of Keras' own that never hold weights."""
    return keras_class(layer) in ZERO_LAYERS - WITH_WEIGHTS


def keras_class(layer: Any) -> str:
    """The Keras class whose `call` a layer runs, also through a subclass; empty when the `call` is the user's own."""
    if not type(layer).call.__module__.startswith("keras.src."):
        return ""
    return next((cls.__name__ for cls in type(layer).__mro__ if cls.__module__.startswith("keras.src.")), "")
