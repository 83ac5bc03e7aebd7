"""Remembering what an operator makes of operands without values: a model repeats itself, and torch's answer is slow.

The shape, strides and dtype of a result on meta follow from those of the operands and from the plain arguments.
Views are never remembered, and nothing is from one pass to the next.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from pytest_modelbudget.backends.torch.ghosts import META
from pytest_modelbudget.backends.torch.trees import storage_key

_Made = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]


class Memo:
    """Runs operators on meta tensors, each combination of operator and arguments once."""

    def __init__(self) -> None:
        self._made: dict[Hashable, tuple[_Made, ...] | None] = {}

    def run(self, func: Any, read: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of `func`, made anew from what is known, or asked of torch."""
        if func.is_view:
            return func(*args, **kwargs)
        try:
            key = (func, _key(args), _key(tuple(kwargs.items())))
            known = self._made.get(key)
        except TypeError:  # an argument that is not plain
            return func(*args, **kwargs)
        if known is None and key not in self._made:
            return self._ask(key, func, read, args, kwargs)
        if known is None:
            return args[0]
        out = tuple(torch.empty_strided(shape, strides, dtype=dtype, device=META) for shape, strides, dtype in known)
        return out if len(func._schema.returns) > 1 else out[0]

    def _ask(self, key: Hashable, func: Any, read: list[torch.Tensor], args: Any, kwargs: Any) -> Any:
        before = _made(args[0]) if args and isinstance(args[0], torch.Tensor) else None
        out = func(*args, **kwargs)
        if func._schema.is_mutable:
            if out is args[0] and _made(out) == before:  # in place, as `relu_`: only its argument comes back
                self._made[key] = None
            return out
        parts = out if isinstance(out, tuple) else (out,)
        if len(parts) == len(func._schema.returns) and all(map(_plain, parts)) and _apart(read, parts):
            self._made[key] = tuple(map(_made, parts))
        return out


def _key(value: Any) -> Hashable:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.stride(), value.dtype, type(value).__name__
    if isinstance(value, (tuple, list)):
        return tuple(map(_key, value))
    return type(value), value  # 1, 1.0 and True are equal, and not the same argument


def _made(tensor: torch.Tensor) -> _Made:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


def _plain(value: Any) -> bool:
    return type(value) is torch.Tensor and value.is_meta and value.layout == torch.strided and not value.is_conj()


def _apart(read: list[torch.Tensor], made: tuple[torch.Tensor, ...]) -> bool:
    """Whether no result shares memory with an operand or with another result."""
    keys = [storage_key(tensor) for tensor in made]
    return len(set(keys)) == len(keys) and not set(keys) & {storage_key(tensor) for tensor in read}
