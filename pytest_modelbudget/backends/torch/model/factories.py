"""Functions of torch that make new tensors of a size: how many elements, and from how many on they go to meta."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch

from pytest_modelbudget.backends.torch.model.meta_tensors import MAX_CONSTANT_ELEMENTS, META_FROM_ELEMENTS

_EMPTY_LARGE = 1_024  # what `empty` holds is never read, it is only written to: a lower limit than for values


def _size(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Elements of `torch.zeros(2, 3)`, `torch.zeros((2, 3))`, `torch.zeros(size=(2, 3))`."""
    size = kwargs.get("size", args[0] if len(args) == 1 else args)
    return prod(size) if isinstance(size, (tuple, list, torch.Size)) else int(size)


def _size_first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    return _size(args[:1], kwargs)


def _last_size(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    return _size((kwargs.get("size", args[-1] if args else ()),), {})


def _steps(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    return int(kwargs.get("steps", args[2] if len(args) > 2 else 0))


def _range(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    start, end, step = (*args, *(None,) * 3)[:3]
    end = kwargs.get("end", end)
    if end is None:
        start, end = 0, start
    start, step = kwargs.get("start", start) or 0, kwargs.get("step", step) or 1
    return max(0, int((end - start) / step))


def _square(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    rows = kwargs.get("n", args[0] if args else 0)
    return int(rows * kwargs.get("m", args[1] if len(args) > 1 else rows))


FACTORIES: dict[Any, tuple[Callable[[tuple[Any, ...], Mapping[str, Any]], int], int]] = {
    torch.empty: (_size, _EMPTY_LARGE),
    torch.empty_strided: (_size_first, _EMPTY_LARGE),
    torch.zeros: (_size, META_FROM_ELEMENTS),
    torch.ones: (_size, META_FROM_ELEMENTS),
    torch.rand: (_size, META_FROM_ELEMENTS),
    torch.randn: (_size, META_FROM_ELEMENTS),
    torch.full: (_size_first, META_FROM_ELEMENTS),
    torch.randint: (_last_size, MAX_CONSTANT_ELEMENTS),
    torch.randperm: (_size_first, MAX_CONSTANT_ELEMENTS),
    torch.arange: (_range, MAX_CONSTANT_ELEMENTS),
    torch.linspace: (_steps, MAX_CONSTANT_ELEMENTS),
    torch.logspace: (_steps, MAX_CONSTANT_ELEMENTS),
    torch.eye: (_square, META_FROM_ELEMENTS),
}
"""The elements that a call would make, and the limit."""
