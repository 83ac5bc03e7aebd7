"""The weights of a layer as plain data."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any

import keras

from pytest_modelbudget.backends.assemble import HeldWeight, unique
from pytest_modelbudget.backends.keras import labels, private, wrapped
from pytest_modelbudget.summary import Weight

NamedVariable = tuple[str, Any, Any]
"""A variable, with its name in its row before it and the layer that holds it after it."""


def held(named: Iterable[NamedVariable], trainable: Collection[int]) -> Iterator[HeldWeight]:
    """Variables as rows show them; `trainable` are the identities of those that training changes."""
    for name, variable, layer in named:
        beside = is_beside(variable, layer)
        weight = Weight(
            name=name,
            shape=tuple(int(size) for size in variable.shape),
            dtype=keras.backend.standardize_dtype(variable.dtype),
            trainable=id(variable) in trainable and not beside,
            role="buffer" if beside else "param",
        )
        if wrapped.is_wrapper(layer):
            weight = wrapped.as_stored(weight, variable)
        weight = unpacked_weight(weight, private.packed_shape(layer, variable))
        yield HeldWeight(id(variable), wrapped.parameter_identity(variable, layer), weight)


_QUANTIZED = ("kernel", "embeddings", "reverse_embeddings", "inputs", "outputs_grad")
_QUANTIZATION_NAMES = {f"{of}_{what}" for of in _QUANTIZED for what in ("scale", "zero", "amax_history")}
_QUANTIZATION_NAMES |= {"zero_point", "g_idx", "awq_scales"}


def is_beside(variable: Any, layer: Any) -> bool:
    """Whether what a layer holds is no param: a buffer of torch, or what only serves to read a quantised weight.

    That is a scale, a zero point, a history of maxima: a quantised layer has as many params as before, and needs other
    bytes.
    """
    if not isinstance(variable, keras.Variable):
        return True
    return variable.name in _QUANTIZATION_NAMES and getattr(layer, "quantization_mode", None) is not None


def unpacked_weight(weight: Weight, shape: tuple[int, ...] | None) -> Weight:
    """A weight that stores two 4-bit numbers in each byte, as what it stands for."""
    if shape is None:
        return weight
    return replace(weight, shape=shape, dtype="int4", packed_bytes=weight.bytes)


def own_variables(layer: Any) -> Iterator[NamedVariable]:
    """The variables a layer holds itself, with their names; of a torch module that it wraps the buffers, too."""
    if wrapped.is_wrapper(layer):
        yield from ((name, variable, layer) for name, variable in wrapped.named_tensors(layer))
        return
    for variable in private.own_variables(layer):
        yield _variable_name(variable), variable, layer


def all_variables(layer: Any, prefix: str = "", visited: set[int] | None = None) -> Iterator[NamedVariable]:
    """The variables of a layer and all layers below it, named by the way to them, each once."""
    visited = set() if visited is None else visited
    for name, variable, _ in own_variables(layer):
        if id(variable) not in visited:
            visited.add(id(variable))
            yield f"{prefix}{name}", variable, layer
    used_names: set[str] = set()
    for sublayer in private.sublayers(layer):
        part = labels.sublayer_name(layer, sublayer, keras.layers)
        step = f"{unique(part, used_names)}/" if part else ""
        yield from all_variables(sublayer, f"{prefix}{step}", visited)


def _variable_name(variable: Any) -> str:
    """A variable's name, without Keras' number where it has no name of its own."""
    kind = type(variable).__name__
    name = variable.name
    return str(name) if labels.automatic_number(kind, name) is None else "variable"
