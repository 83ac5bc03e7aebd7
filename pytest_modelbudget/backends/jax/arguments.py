"""The arguments of a call: which of them are tensors of a trace, and which are plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import Inputs, concrete_shape, tensors_in
from pytest_modelbudget.summary import Fill, TensorSpec


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


@dataclass(frozen=True, slots=True)
class _NamedSpec:
    name: str
    spec: jax.ShapeDtypeStruct


def call_arguments(inputs: Inputs, sizes: Mapping[str, int]) -> CallArguments:
    """The declared arguments at these sizes of their dimensions; a tensor with a declared value is a constant."""
    tree: Any = inputs.build(lambda name, spec: _argument(name, spec, sizes))
    if inputs.example is not None:
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
