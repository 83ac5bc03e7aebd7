"""Convolutions and norms on the meta device whose results lie in memory as on the CPU; torch's own lie otherwise there.

How a result lies decides whether what follows copies it, and a copy may be held for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn import functional

from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.backends.torch.kernels.operand_copies import suggested_format

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
_CONVOLUTIONS = ("conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d")


@contextmanager
def channels_last_kept() -> Iterator[None]:
    """Inside, a convolution in `torch.nn.functional` of tensors with channels last gives one with channels last."""
    with ExitStack() as stack:
        for name in _CONVOLUTIONS:
            stack.enter_context(patched(functional, name, _keeping_channels_last(getattr(functional, name))))
        yield


def _keeping_channels_last(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def convolution(input: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result = original(input, weight, *args, **kwargs)
        memory_format = _FORMATS.get(result.ndim)
        if (
            memory_format is None
            or not result.is_meta
            or not (_has_layout(input, memory_format) or _has_layout(weight, memory_format))
        ):
            return result
        return result.contiguous(memory_format=memory_format)

    return convolution


def _has_layout(tensor: torch.Tensor, memory_format: torch.memory_format) -> bool:
    return tensor.is_contiguous(memory_format=memory_format) and not tensor.is_contiguous()


def _batch_norm(args: tuple[Any, ...], out: Any) -> Any:
    return _like_suggested(args[0], out)


def _batch_norm_backward(args: tuple[Any, ...], out: Any) -> Any:
    return _like_suggested(args[1], out)


def _like_suggested(data: torch.Tensor, out: Any) -> Any:
    """The first result in the order that torch suggests for `data`: plain or with channels last, without gaps."""
    memory_format = suggested_format(data)
    first = out[0]
    if first is None or first.is_contiguous(memory_format=memory_format):
        return out
    return torch.empty_like(first, memory_format=memory_format), *out[1:]


CPU_LAYOUTS: Mapping[Any, Callable[[tuple[Any, ...], Any], Any]] = {
    torch.ops.aten.native_batch_norm.default: _batch_norm,
    torch.ops.aten.native_batch_norm_backward.default: _batch_norm_backward,
}
"""What puts the results of an operator in the order of the CPU's kernel, from its arguments and what meta made.

Meta keeps the order of what was transposed, as CUDA's kernels do; those of the CPU do not: `Normalization.cpp`.
"""
