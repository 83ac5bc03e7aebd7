"""`nn.MultiheadAttention` as torch runs it without gradients: in one kernel, which makes the whole table of scores.

So do layers of `nn.TransformerEncoder`. On meta torch takes the way of training, whose softmax is another table, or
whose fused attention makes none at all. The parts of the kernel are those of `native_multi_head_attention_cpu` in
torch's `ATen/native/transformers/attention.cpp`; on CUDA what has no mask and needs no weights is fused attention's.
Not followed: ragged batches, which `nn.TransformerEncoder` makes of a padding mask, and autocast on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pytest_modelbudget.backends.patching import patched

Result = tuple[torch.Tensor, torch.Tensor | None]


@contextmanager
def native_attention(*, on_cuda: bool) -> Iterator[None]:
    """Inside, `nn.MultiheadAttention` on meta takes torch's own kernel where it would on the device."""
    with patched(nn.MultiheadAttention, "forward", _choosing(nn.MultiheadAttention.forward, on_cuda)):
        yield


def _choosing(original: Callable[..., Result], on_cuda: bool) -> Callable[..., Result]:
    def forward(
        self: nn.MultiheadAttention,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        **options: Any,
    ) -> Result:
        masks = [mask for mask in (attn_mask, key_padding_mask) if mask is not None]
        is_fused = on_cuda and not masks and not need_weights
        if query is key is value and not is_fused and _is_native(self, query, masks):
            return _attention(self, query, need_weights, average_attn_weights, masked=bool(masks))
        return original(
            self, query, key, value, key_padding_mask=key_padding_mask, need_weights=need_weights,
            attn_mask=attn_mask, average_attn_weights=average_attn_weights, **options,
        )  # fmt: skip

    return forward


def _is_native(layer: nn.MultiheadAttention, query: torch.Tensor, masks: list[torch.Tensor]) -> bool:
    """Whether the kernel takes the call: the conditions in `nn.MultiheadAttention.forward`, but for the device."""
    weights = (layer.in_proj_weight, layer.in_proj_bias, layer.out_proj.weight, layer.out_proj.bias)
    is_plain = all(weight is not None and type(weight) is nn.Parameter for weight in weights)
    extras = layer.bias_k is not None or layer.bias_v is not None or layer.add_zero_attn
    return (
        query.is_meta
        and query.dim() == 3
        and not (layer.training or extras or any(mask.is_floating_point() for mask in masks))
        and layer.batch_first
        and layer.num_heads % 2 == 0
        and layer._qkv_same_embed_dim
        and is_plain
        and query.dtype is layer.in_proj_weight.dtype
        and not (torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu"))
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, *weights)))
    )


def _attention(layer: nn.MultiheadAttention, x: torch.Tensor, weighted: bool, averaged: bool, masked: bool) -> Result:
    """The kernel's own tensors: heads in one, scores that are overwritten but for a mask, the result over queries."""
    batch, tokens, size = x.shape
    heads = layer.num_heads
    projected = functional.linear(x, layer.in_proj_weight)
    parts = projected.new_empty(3, batch * heads, tokens, size // heads)
    del projected
    query, key, value = parts.unbind(0)
    scores = torch.bmm(query, key.mT)
    scores = torch.softmax(scores, -1) if masked else torch.ops.aten._softmax.out(scores, -1, False, out=scores)
    torch.bmm(scores, value, out=query)
    weights = scores.view(batch, heads, tokens, tokens) if weighted else None
    del scores
    joined = query.view(batch, heads, tokens, -1).transpose(1, 2).contiguous().view(batch, tokens, size)
    result = functional.linear(joined, layer.out_proj.weight, layer.out_proj.bias)
    del joined
    if weights is not None and averaged:
        weights = weights.sum(1).div_(heads)
    return result, weights
