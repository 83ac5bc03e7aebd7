"""The weights of a layer as plain data, each variable counted at the first row that holds it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import keras

from pytest_modelbudget.backends.keras import labels, private, wrapped
from pytest_modelbudget.summary import Weight

NamedVariable = tuple[str, Any, Any]
"""A variable, with its name in its row before it and the layer that holds it after it."""


class WeightOwners:
    """Who owns which variable; rows are entered in the order they are shown."""

    def __init__(self, model: Any) -> None:
        self._trainable = {id(variable) for variable in model.trainable_weights}
        self._owners: dict[int, str] = {}
        self._entered: set[int] = set()

    def __contains__(self, variable: Any) -> bool:
        return id(variable) in self._entered

    def enter(self, path: str, named: Iterable[NamedVariable]) -> tuple[Weight, ...]:
        """The weights of the row at `path`; those an earlier row holds are tied to it."""
        weights: list[Weight] = []
        used_names: set[str] = set()
        for wanted_name, variable, layer in named:
            name = unique_name(wanted_name, used_names)
            self._entered.add(id(variable))
            owner = self._owners.setdefault(wrapped.parameter_identity(variable, layer), full_name := f"{path}.{name}")
            weight = self._weight(name, variable, layer, None if owner == full_name else owner)
            if wrapped.is_wrapper(layer):
                weight = wrapped.as_stored(weight, variable)
            weights.append(unpacked_weight(weight, private.packed_shape(layer, variable)))
        return tuple(weights)

    def _weight(self, name: str, variable: Any, layer: Any, tied_to: str | None) -> Weight:
        beside = is_beside(variable, layer)
        return Weight(
            name=name,
            shape=tuple(int(size) for size in variable.shape),
            dtype=keras.backend.standardize_dtype(variable.dtype),
            trainable=id(variable) in self._trainable and not beside,
            role="buffer" if beside else "param",
            tied_to=tied_to,
        )


_QUANTIZED = ("kernel", "embeddings", "reverse_embeddings", "inputs", "outputs_grad")
_QUANTIZATION_NAMES = {f"{of}_{what}" for of in _QUANTIZED for what in ("scale", "zero", "amax_history")}
_QUANTIZATION_NAMES |= {"zero_point", "g_idx", "awq_scales"}


def is_beside(variable: Any, layer: Any) -> bool:
    """Whether what a layer holds is no param: a buffer of torch, or what only serves to read a quantised weight.

    That is a scale, a zero point, a history of maxima: a quantised layer has as many params as before, and needs other
    bytes.
    """
    if not isinstance(variable, private.Variable):
        return True
    return variable.name in _QUANTIZATION_NAMES and getattr(layer, "quantization_mode", None) is not None


def unpacked_weight(weight: Weight, shape: tuple[int, ...] | None) -> Weight:
    """A weight that stores two 4-bit numbers in each byte, as what it stands for."""
    if shape is None:
        return weight
    return replace(weight, shape=shape, dtype="int4", packed_bytes=weight.bytes)


def unique_name(name: str, used_names: set[str]) -> str:
    """`name`, or `name_1`, `name_2` when it is taken; the result is taken from now on."""
    result, number = name, 0
    while result in used_names:
        number += 1
        result = f"{name}_{number}"
    used_names.add(result)
    return result


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
        step = f"{unique_name(part, used_names)}/" if part else ""
        yield from all_variables(sublayer, f"{prefix}{step}", visited)


def _variable_name(variable: Any) -> str:
    """A variable's name, without Keras' number where it has no name of its own."""
    kind = type(variable).__name__
    return str(variable.name) if labels.automatic_number(kind, variable.name) is None else "variable"
