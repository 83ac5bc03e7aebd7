"""What each library of JAX models is brought to before it is run: parts with weights, and a call of plain arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax

from pytest_modelbudget.backends.jax.recorder import CallRecorder
from pytest_modelbudget.summary import Weight

ROOT = "(root)"
"""The path of the model itself, when it needs a row."""

UNKNOWN_TYPE = "Module"
"""The type of a module of which nothing but its weights is known."""

InitialCall = Callable[[Callable[..., Any]], Any]
"""Runs a function of a model's arguments without memory, and says what it gives."""


@dataclass(frozen=True, slots=True)
class Part:
    """A module of a model: its path, its class, whether other modules are in it, and what it holds itself.

    `type` is empty where only a call shows it.
    """

    path: str
    type: str
    container: bool
    weights: tuple[Weight, ...] = ()


def with_containers(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The parts; those that others are in by their paths are containers."""
    parts = tuple(parts)
    holders = {part.path[:end] for part in parts for end, letter in enumerate(part.path) if letter == "."}
    holders |= {ROOT} if len(parts) > 1 else set()
    return tuple(replace(part, container=part.container or part.path in holders) for part in parts)


@dataclass(frozen=True, slots=True)
class Value:
    """One array of a model that its call takes: shape and dtype, whether a gradient step moves it, and its name.

    `path` is that of its module, `is_param` whether it is one of the model's parameters, moved or not.
    """

    spec: jax.ShapeDtypeStruct
    trained: bool
    path: str = ROOT
    name: str = ""
    is_param: bool = False

    @property
    def full_name(self) -> str:
        """`blocks.0.norm.scale`."""
        return self.name if self.path == ROOT else f"{self.path}.{self.name}"


class AbstractModel(Protocol):
    """A model of which nothing but shapes and dtypes is left; calling it changes nothing."""

    @property
    def kind(self) -> type:
        """Its class."""
        ...

    @property
    def per_example(self) -> bool:
        """Whether it takes one example, without a batch."""
        ...

    @property
    def trains_by_argument(self) -> bool:
        """Whether its arguments say that it trains, and not a mode of its modules."""
        ...

    @property
    def parts(self) -> Sequence[Part]:
        """Its modules in the order of the rows, holders before what they hold."""
        ...

    @property
    def values(self) -> Sequence[Value]:
        """All its arrays."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What is to be said of how it is called."""
        ...

    def call(self, values: Sequence[Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool) -> Any:
        """What the model gives back with these arrays in the place of its own, as for inference or for training."""
        ...

    def call_with_values(
        self, values: Sequence[Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool
    ) -> tuple[Any, Sequence[Any]]:
        """What `call` gives, and all arrays of the model after it: averages, counters and caches have moved."""
        ...

    def watched(self, recorder: CallRecorder) -> AbstractContextManager[None]:
        """Inside, `recorder` is told of every call of a part."""
        ...


def spec_of(array: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array, be it a real one or one of a trace."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def is_key(dtype: Any) -> bool:
    """Whether it is the dtype of keys of random numbers, whose storage is an affair of JAX."""
    return bool(jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key))


def is_inexact(dtype: Any) -> bool:
    """Whether gradients flow through arrays of this dtype."""
    return bool(jax.dtypes.issubdtype(dtype, jax.numpy.inexact))


def after_call(before: Any, after: Any) -> Any:
    """An array as a call left it, where that is an array like the one before; else the one before."""
    is_like = getattr(after, "shape", None) == before.shape and getattr(after, "dtype", None) == before.dtype
    return after if is_like else before
