"""The cache of a model, found in what its forward pass returns: what it also takes as an argument.

A field of the result under the name of an argument of `forward` is one (`cache`, `past_key_values`, `cache_params`,
`state`). A result without names is tried: what `forward` takes back as one of its optional arguments, and gives back
grown as a longer pass grows it, is the cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.model.dtensors import local_part
from pytest_modelbudget.backends.torch.model.pytree import storage_key
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner.serving import HeldTensor


@dataclass(frozen=True, slots=True)
class CachePlace:
    """Where a cache is: the argument that `forward` takes it as, and its name or number in the result."""

    argument: str
    field: str | int

    def of(self, out: Any) -> Any:
        """The cache in what the model returned."""
        if isinstance(self.field, int) or isinstance(out, Mapping):
            return out[self.field]
        return getattr(out, self.field)


def optional_arguments(model: nn.Module, given: Collection[str]) -> list[str]:
    """The arguments of `forward` that have a default of None, but for those that are `given`."""
    parameters = inspect.signature(model.forward).parameters
    return [name for name, parameter in parameters.items() if parameter.default is None and name not in given]


def takes(model: nn.Module, argument: str) -> bool:
    """Whether `forward` has an argument of this name."""
    return argument in inspect.signature(model.forward).parameters


def places(model: nn.Module, out: Any, given: Collection[str]) -> list[CachePlace]:
    """Where a cache may be in `out`: a field that has an argument's name, else each number with each argument."""
    arguments = optional_arguments(model, given)
    named = dict(_named_fields(out))
    if named:
        return [CachePlace(name, name) for name in named if name in arguments and _holds_tensors(named[name])]
    if not isinstance(out, (tuple, list)):
        return []
    numbers = [number for number, part in enumerate(out) if number and _holds_tensors(part)]
    return [CachePlace(argument, number) for number in numbers for argument in arguments]


def given_arguments(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> set[str]:
    """The names of the arguments of `forward` that a call gives."""
    by_position = list(inspect.signature(model.forward).parameters)[: len(args)]
    return {*by_position, *kwargs}


def _named_fields(out: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(out, Mapping):
        yield from ((str(name), value) for name, value in out.items())
    elif is_dataclass(out):
        yield from ((field.name, getattr(out, field.name)) for field in fields(out))
    elif hasattr(out, "_asdict"):
        yield from out._asdict().items()


def _holds_tensors(value: Any) -> bool:
    return next(tensors_inside(value), None) is not None


def held_tensors(cache: Any) -> tuple[HeldTensor, ...]:
    """What a cache holds: each tensor once, a part of a larger one as that part, repeated elements once."""
    seen: dict[tuple[Any, ...], HeldTensor] = {}
    for tensor in map(local_part, tensors_inside(cache)):
        elements = 1
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            elements *= size if stride or size == 0 else 1
        key = (storage_key(tensor), tensor.storage_offset(), tensor.shape, tensor.stride())
        seen[key] = HeldTensor(elements, tensor.element_size(), tensor.is_floating_point())
    return tuple(seen.values())


def result_text(out: Any) -> str:
    """What a model returned, in words: the names of its fields, else its class."""
    return ", ".join(name for name, _ in _named_fields(out)) or type(out).__name__


def refusal(name: str, found: list[CachePlace], returned: str) -> ModelBudgetError:
    """The error for a model of which it is not clear what its cache is."""
    if not found:
        return ModelBudgetError(
            f"{name}: serving: the model has no cache of keys and values (or states) that can be seen: its forward "
            f"returned {returned}, and takes nothing of it back: leave serving out, or return the cache under the name "
            "of the argument that takes it"
        )
    candidates = ", ".join(dict.fromkeys(str(place.field) for place in found))
    return ModelBudgetError(
        f"{name}: serving: which part of {returned} is the cache is not clear (candidates: {candidates}): no step of "
        "one token with it gave what a longer pass gives; return it under the name of the argument that takes it"
    )


def tensors_inside(value: Any, depth: int = 0) -> Iterator[torch.Tensor]:
    """Every tensor in an object of whatever class (a cache of keys and values), found by its attributes."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth < 6:
        parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
        for part in parts or getattr(value, "__dict__", {}).values():
            yield from tensors_inside(part, depth + 1)
