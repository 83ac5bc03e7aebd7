"""What a differentiated call keeps for its backward pass, as plain data that fits any call like it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Word = tuple[str, int]
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
class Kept:
    """What one call keeps: storages with their bytes, each once, without those of parameters.

    `made` are its results, with the `words` of their storages, and `reached` the arguments that their gradients
    flow to.
    """

    storages: tuple[tuple[Word, int], ...]
    made: tuple[Tensor, ...]
    words: tuple[Word, ...]
    reached: tuple[int, ...]


Call = Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]]
"""Code to differentiate: from the values of parameters and arguments to results, all in the framework's own tensors."""

Keep = Callable[[Call, Sequence[Parameter], Sequence[Tensor]], Kept]
"""Runs a call without memory for its tensors."""


class NotKnown(Exception):
    """What a call keeps cannot be told; the message says why."""
