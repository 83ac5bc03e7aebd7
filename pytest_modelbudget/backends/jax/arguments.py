"""The arguments of a call: which of them are tensors of a trace, and which are plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from pytest_modelbudget.backends.jax.abstract_model import is_key, spec_of
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import Inputs, concrete_shape, tensors_in
from pytest_modelbudget.summary import Fill, Input, TensorSpec


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The arguments of a call as the leaves of a tree: `specs` are those of the tensors, by their places in it."""

    tree: Any
    leaves: tuple[Any, ...]
    specs: Mapping[int, jax.ShapeDtypeStruct]
    names: tuple[str, ...]

    def filled(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`(args, kwargs)` with these tensors."""
        by_place = dict(zip(self.specs, tensors, strict=True))
        args, kwargs = jax.tree.unflatten(
            self.tree, [by_place.get(place, leaf) for place, leaf in enumerate(self.leaves)]
        )
        return args, kwargs


def ports(inputs: Inputs) -> tuple[Input, ...]:
    """The tensors that a model is called with; a key of random numbers is what is in it, as it would be written."""
    keys = {} if inputs.example is None else dict(filter(_is_key, tensors_in(inputs.example)))
    return tuple(Input(port.name, _key_data(keys[port.name])) if port.name in keys else port for port in inputs.ports)


def _is_key(named: tuple[str, Any]) -> bool:
    return isinstance(named[1], jax.Array) and is_key(named[1].dtype)


def _key_data(key: Any) -> TensorSpec:
    data = jax.eval_shape(jax.random.key_data, spec_of(key))
    return TensorSpec(tuple(data.shape), str(data.dtype))


@dataclass(frozen=True, slots=True)
class _NamedSpec:
    name: str
    spec: jax.ShapeDtypeStruct


def call_arguments(inputs: Inputs, sizes: Mapping[str, int]) -> CallArguments:
    """The declared arguments at these sizes of their dimensions; a tensor with a declared value is a constant."""
    if inputs.example is None:
        tree: Any = inputs.build(lambda name, spec: _argument(name, spec, sizes))
    else:
        names = {id(tensor): name for name, tensor in tensors_in(inputs.example)}
        tree = jax.tree.map(lambda leaf: _example_argument(names.get(id(leaf), ""), leaf), inputs.example)
    leaves, structure = jax.tree.flatten(tree)
    named = {place: leaf for place, leaf in enumerate(leaves) if isinstance(leaf, _NamedSpec)}
    return CallArguments(
        structure,
        tuple(leaves),
        {place: leaf.spec for place, leaf in named.items()},
        tuple(leaf.name for leaf in named.values()),
    )


def _argument(name: str, declared: TensorSpec, sizes: Mapping[str, int]) -> Any:
    shape, dtype = concrete_shape(declared, sizes), _dtype(name, declared.dtype)
    if not isinstance(declared.values, Fill):
        return _NamedSpec(name, jax.ShapeDtypeStruct(shape, dtype))
    value = declared.values.value
    return np.full(shape, sizes[value] if isinstance(value, str) else value, dtype)


def _example_argument(name: str, leaf: Any) -> Any:
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        return leaf
    dtype = leaf.dtype if isinstance(leaf, jax.Array) else _dtype(name, str(leaf.dtype))
    return _NamedSpec(name, jax.ShapeDtypeStruct(leaf.shape, dtype))


def _dtype(name: str, dtype: str) -> Any:
    """The dtype that JAX gives such a tensor: one of 64 bits only where these are switched on."""
    try:
        return jax.dtypes.canonicalize_dtype(jax.numpy.dtype(dtype))
    except TypeError:
        raise ModelBudgetError(f"input {name}: JAX has no tensors of dtype {dtype!r}") from None
