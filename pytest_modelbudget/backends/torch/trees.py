"""Finding the tensors in whatever a module takes and gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch


def tensors(value: Any, depth: int = 0) -> Iterator[torch.Tensor]:
    """Every tensor in nested sequences, mappings, sets and dataclasses, in order; anything else holds none."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth > 16:  # a structure that holds itself
        return
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item, depth + 1)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item, depth + 1)
    elif is_dataclass(value) and not isinstance(value, type):
        for item in fields(value):
            yield from tensors(getattr(value, item.name, None), depth + 1)


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float32` as `float32`."""
    return str(dtype).removeprefix("torch.")


def storage_key(tensor: torch.Tensor) -> int:
    """The same for all tensors that share memory."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse tensors and some subclasses have no storage of their own
        return -id(tensor)
