"""What a differentiated call keeps for its backward pass, as plain data that fits any call like it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

StorageRef = tuple[str, int]
"""A storage: that of the `("given", n)`th argument, of the `("made", n)`th result, or the `("inner", n)`th other one.

A result may also lie in that of the `("parameter", n)`th parameter.
"""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An argument or result: its shape and dtype, whether a gradient flows through it, and its storage.

    `storage` is the same number for those that share one, `storage_bytes` is the size of all of it. `strides` and
    `offset` say where in it a tensor lies, for frameworks that have views.
    """

    shape: tuple[int, ...]
    dtype: str
    trained: bool
    storage: int
    storage_bytes: int
    strides: tuple[int, ...] = ()
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Parameter:
    """A variable that a call reads; its values are never kept."""

    shape: tuple[int, ...]
    dtype: str
    trained: bool


@dataclass(frozen=True, slots=True)
class Residuals:
    """What one call keeps: storages with their bytes, each once, without those of parameters.

    `results` are its results, with the `refs` of their storages, and `reached` the arguments that their gradients
    flow to.
    """

    storages: tuple[tuple[StorageRef, int], ...]
    results: tuple[Tensor, ...]
    refs: tuple[StorageRef, ...]
    reached: tuple[int, ...]


Differentiable = Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]]
"""Code to differentiate: from the values of parameters and arguments to results, all in the framework's own tensors."""

FindResiduals = Callable[[Differentiable, Sequence[Parameter], Sequence[Tensor]], Residuals]
"""Runs a call without memory for its tensors."""


class ResidualsUnknown(Exception):
    """What a call keeps cannot be told; the message says why."""
