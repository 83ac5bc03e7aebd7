"""Attention on the meta device with the kernel that the CPU would use; torch itself takes the unfused one there.

The two differ in what they hold for the backward pass: the fused kernel keeps no scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.backends.torch.compat import no_modes

_ALL_BACKENDS = [
    SDPBackend.MATH,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
]


@dataclass(slots=True)
class AttentionUsage:
    """What attention was asked for: `dropout` alone kept a call from the fused kernel, which GPUs have for it, too."""

    dropout: bool = False


@contextmanager
def cpu_attention() -> Iterator[AttentionUsage]:
    """Inside, `torch.nn.functional.scaled_dot_product_attention` of tensors on meta runs as on the CPU.

    Kernels that the caller switched off are on; what the model's own code says still holds. Code that imported the
    function by its name before keeps the unfused one.
    """
    original = functional.scaled_dot_product_attention
    usage = AttentionUsage()
    choosing = _with_kernel_choice(original, usage)
    with patched(functional, "scaled_dot_product_attention", choosing), sdpa_kernel(_ALL_BACKENDS):
        yield usage


def _with_kernel_choice(original: Callable[..., torch.Tensor], usage: AttentionUsage) -> Callable[..., torch.Tensor]:
    def attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        query, key, value, attn_mask = map(_autocast, (query, key, value, attn_mask))
        if query.is_meta and _is_fused(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa):
            return _cpu_flash_attention(query, key, value, attn_mask, is_causal, scale)
        if query.is_meta and dropout_p and not usage.dropout:
            usage.dropout = _is_fused(query, key, value, attn_mask, 0.0, is_causal, scale, enable_gqa)
        return original(
            query,
            key,
            value,
            attn_mask=attn_mask,
            dropout_p=dropout_p,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
        )

    return attention


def _autocast(operand: Any) -> Any:
    """An operand of attention as autocast hands it to the choice of a kernel: all of one precision."""
    if not torch.is_autocast_enabled("cpu") or operand is None or operand.dtype is not torch.float32:
        return operand
    return operand.to(torch.get_autocast_dtype("cpu"))


def _is_fused(query: Any, key: Any, value: Any, mask: Any, dropout: float, causal: bool, scale: Any, gqa: bool) -> bool:
    """Whether torch would choose its fused kernel on the CPU; asked of stand-ins that take no memory."""
    with no_modes():
        stand_ins = [_stand_in(tensor) for tensor in (query, key, value)]
        try:
            backend = torch._fused_sdp_choice(
                *stand_ins,
                attn_mask=None if mask is None else _stand_in(mask),
                dropout_p=dropout,
                is_causal=causal,
                scale=scale,
                enable_gqa=gqa,
            )
        except RuntimeError:  # operands that do not fit: attention itself says so best
            return False
    return int(backend) == int(SDPBackend.FLASH_ATTENTION)


def _stand_in(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor of the same shape, dtype and `requires_grad`; all rows are one.

    Its columns lie one behind the other where those of `tensor` do: the fused kernel takes no others.
    """
    row = torch.empty(tensor.shape[-1:], dtype=tensor.dtype, device="cpu", requires_grad=tensor.requires_grad)
    if tensor.stride(-1) != 1:
        row = row.repeat_interleave(2)[::2]
    return row.expand(tensor.shape)


def _cpu_flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    if query.dim() == 3:  # torch gives the kernel a batch of one
        query, key, value = (tensor.unsqueeze(0) for tensor in (query, key, value))
        mask = None if mask is None else mask[(None,) * (4 - mask.dim())]
        return _cpu_flash_attention(query, key, value, mask, causal, scale).squeeze(0)
    mask = None if mask is None else additive_mask(mask, query.dtype)
    out = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=mask, scale=scale
    )
    result: torch.Tensor = out[0]
    return result


def additive_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask as kernels read it: what is added to the scores."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask.logical_not(), float("-inf"))
