"""Convolutions on the meta device whose results lie in memory as on the CPU; torch itself leaves them contiguous there.

How a result lies decides whether what follows copies it, and a copy may be held for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn import functional

from pytest_modelbudget.backends.patching import patched

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
_NAMES = ("conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d")


@contextmanager
def laid_out() -> Iterator[None]:
    """Inside, a convolution in `torch.nn.functional` of tensors with channels last gives one with channels last."""
    with ExitStack() as stack:
        for name in _NAMES:
            stack.enter_context(patched(functional, name, _keeping(getattr(functional, name))))
        yield


def _keeping(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def convolution(input: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result = original(input, weight, *args, **kwargs)
        layout = _FORMATS.get(result.ndim)
        if layout is None or not result.is_meta or not (_is(input, layout) or _is(weight, layout)):
            return result
        return result.contiguous(memory_format=layout)

    return convolution


def _is(tensor: torch.Tensor, layout: torch.memory_format) -> bool:
    return tensor.is_contiguous(memory_format=layout) and not tensor.is_contiguous()
