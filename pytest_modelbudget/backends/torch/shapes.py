"""What the commonest operators make of contiguous operands, known without asking torch.

On meta torch answers with Python code: the first answer imports its compiler, a second or more, and each later one
takes up to a few milliseconds. A rule here answers for the plain case alone (contiguous operands of one floating
dtype, sizes that fit) and leaves every other, and every error message, to torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch

Made = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Shape, strides and dtype of a result."""

Answer = tuple[Made, ...] | None
"""Each result, or None: ask torch."""

_ELEMENTWISE = """
    add.Tensor sub.Tensor mul.Tensor div.Tensor add.Scalar mul.Scalar div.Scalar neg.default exp.default sqrt.default
    rsqrt.default relu.default gelu.default silu.default sigmoid.default tanh.default hardswish.default
    hardsigmoid.default leaky_relu.default hardtanh.default sin.default cos.default
"""


def answer(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer:
    """The results of `func`, when a rule knows them; every tensor among `args` is on meta."""
    rule = _RULES.get(f"{func._schema.name.removeprefix('aten::')}.{func._overloadname}")
    if rule is None or not kwargs.keys() <= {"approximate", "alpha"} or not _plain(args):
        return None
    return rule(*args)


def _plain(args: tuple[Any, ...]) -> bool:
    """Whether the operands are ordinary contiguous tensors of one floating dtype, without empty dimensions."""
    found = [value for value in args if isinstance(value, torch.Tensor)]
    return (
        bool(found)
        and found[0].dtype.is_floating_point
        and all(type(one) in (torch.Tensor, torch.nn.Parameter) and one.dtype == found[0].dtype for one in found)
        and all(one.numel() > 0 for one in found)
    )


def _new(shape: Sequence[int], dtype: torch.dtype) -> Made:
    strides = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return tuple(shape), strides, dtype


def _elementwise(first: torch.Tensor, *others: Any) -> Answer:
    for other in others:
        if isinstance(other, torch.Tensor):
            if other.shape != first.shape or not other.is_contiguous():
                return None
        elif type(other) not in (int, float):
            return None
    return (_new(first.shape, first.dtype),) if isinstance(first, torch.Tensor) and first.is_contiguous() else None


def _mm(left: torch.Tensor, right: torch.Tensor) -> Answer:
    if left.dim() != 2 or right.dim() != 2 or left.shape[1] != right.shape[0]:
        return None
    return (_new((left.shape[0], right.shape[1]), left.dtype),)


def _addmm(bias: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> Answer:
    return _mm(left, right) if right.dim() == 2 and bias.shape == right.shape[1:] else None


def _bmm(left: torch.Tensor, right: torch.Tensor) -> Answer:
    fits = left.dim() == right.dim() == 3 and left.shape[0] == right.shape[0] and left.shape[2] == right.shape[1]
    return (_new((*left.shape[:2], right.shape[2]), left.dtype),) if fits else None


def _convolution(
    data: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: list[int], padding: list[int],
    dilation: list[int], transposed: bool, output_padding: list[int], groups: int,
) -> Answer:  # fmt: skip
    axes = data.dim() - 2
    if transposed or axes < 1 or weight.dim() != data.dim() or not (data.is_contiguous() and weight.is_contiguous()):
        return None
    if data.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    sizes = _windows(data.shape[2:], weight.shape[2:], stride, padding, dilation)
    return (_new((data.shape[0], weight.shape[0], *sizes), data.dtype),) if sizes else None


def _windows(
    sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """The places of a window along each axis; empty when it does not fit."""
    if any(len(one) not in (1, len(sizes)) for one in (kernel, stride, padding, dilation)):
        return []
    kernel, stride, padding, dilation = (
        list(one) * len(sizes) if len(one) == 1 else list(one) for one in (kernel, stride, padding, dilation)
    )
    if min(stride) < 1:
        return []
    found = [
        (size + 2 * pad - wide * (length - 1) - 1) // step + 1
        for size, length, step, pad, wide in zip(sizes, kernel, stride, padding, dilation, strict=True)
    ]
    return found if min(found) > 0 else []


def _max_pool2d(
    data: torch.Tensor, kernel: list[int], stride: list[int] | None = None, padding: list[int] | None = None,
    dilation: list[int] | None = None, ceil_mode: bool = False,
) -> Answer:  # fmt: skip
    if ceil_mode or data.dim() != 4 or not data.is_contiguous():
        return None
    padding, dilation = padding or [0], dilation or [1]
    if 2 * max(padding) > min(kernel):
        return None
    sizes = _windows(data.shape[2:], kernel, stride or kernel, padding, dilation)
    shape = (*data.shape[:2], *sizes)
    return (_new(shape, data.dtype), _new(shape, torch.int64)) if sizes else None


def _batch_norm(
    data: torch.Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
) -> Answer:
    if data.dim() < 2 or not data.is_contiguous() or data.dtype not in (torch.float32, torch.float64):
        return None
    if mean is None or var is None:
        return None
    if any(one is not None and one.shape != data.shape[1:2] for one in (weight, bias, mean, var)):
        return None
    statistics = _new(data.shape[1:2], data.dtype)
    return _new(data.shape, data.dtype), statistics, statistics


def _layer_norm(data: torch.Tensor, shape: list[int], weight: Any, bias: Any, eps: float) -> Answer:
    kept = data.dim() - len(shape)
    if kept < 0 or not data.is_contiguous() or data.dtype not in (torch.float32, torch.float64):
        return None
    given = [list(one.shape) for one in (weight, bias) if one is not None]
    if any(one != list(shape) for one in (list(data.shape[kept:]), *given)):
        return None
    statistics = _new((*data.shape[:kept], *(1 for _ in shape)), data.dtype)
    return _new(data.shape, data.dtype), statistics, statistics


def _mean(data: torch.Tensor, dim: list[int] | None, keepdim: bool = False) -> Answer:
    if not dim or not data.is_contiguous() or not all(-data.dim() <= axis < data.dim() for axis in dim):
        return None
    gone = {axis % data.dim() for axis in dim}
    if len(gone) != len(dim):
        return None
    shape = [1 if axis in gone else size for axis, size in enumerate(data.shape) if keepdim or axis not in gone]
    return (_new(shape, data.dtype),)


_RULES: dict[str, Callable[..., Answer]] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    "mm.default": _mm,
    "addmm.default": _addmm,
    "bmm.default": _bmm,
    "convolution.default": _convolution,
    "max_pool2d_with_indices.default": _max_pool2d,
    "native_batch_norm.default": _batch_norm,
    "native_layer_norm.default": _layer_norm,
    "mean.dim": _mean,
}
