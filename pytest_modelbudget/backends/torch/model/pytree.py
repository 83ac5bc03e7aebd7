"""Finding the tensors in whatever a module takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

import torch

from pytest_modelbudget.summary import TensorSpec

_PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format})

TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})
"""The classes of nearly all tensors."""


lies_on_meta: Callable[[torch.Tensor], bool] = torch._C.TensorBase.is_meta.__get__
"""Whether a tensor is on meta: `is_meta` as torch has it, quicker than what the code of models sees there."""


def tensors(value: Any) -> list[torch.Tensor]:
    """Every tensor in nested sequences, mappings and dataclasses, in order; anything else holds none."""
    collected: list[torch.Tensor] = []
    _collect(value, collected, 0)
    return collected


def _collect(value: Any, collected: list[torch.Tensor], depth: int) -> None:
    kind = type(value)
    if kind in _PLAIN or depth > 16:  # deeper is a structure that holds itself
        return
    if kind in TENSORS or isinstance(value, torch.Tensor):
        collected.append(value)
    elif isinstance(value, (tuple, list)):
        for item in value:
            kind = type(item)  # the common cases without a call: this is asked for every operator
            if kind in TENSORS:
                collected.append(item)
            elif kind not in _PLAIN and not (kind is list and _PLAIN.issuperset(map(type, item))):
                _collect(item, collected, depth + 1)
    elif isinstance(value, (dict, Mapping)):  # to ask an abstract class alone is slow
        for item in value.values():
            _collect(item, collected, depth + 1)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            _collect(getattr(value, field.name, None), collected, depth + 1)


@cache
def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float32` as `float32`."""
    return str(dtype).removeprefix("torch.")


def shape_of(tensor: torch.Tensor) -> tuple[int | None, ...]:
    """The sizes of a tensor; None where its rows have lengths of their own, as those of nested tensors do."""
    if not tensor.is_nested:
        return tuple(tensor.shape)
    return tuple(_size(tensor, axis) for axis in range(tensor.dim()))


def described(tensor: torch.Tensor) -> str:
    """Its dtype and shape as text: `float32[2, 3]`."""
    return str(TensorSpec(shape_of(tensor), dtype_name(tensor.dtype)))


def _size(tensor: torch.Tensor, axis: int) -> int | None:
    try:
        size = tensor.size(axis)
    except RuntimeError:
        return None
    return size if isinstance(size, int) else None


def storage_key(tensor: torch.Tensor) -> int:
    """The same for all tensors that share memory."""
    try:
        key: int = tensor.untyped_storage()._cdata
        return key
    except (NotImplementedError, RuntimeError, ValueError):  # sparse tensors, some subclasses, and lazy parameters
        return -id(tensor)
