"""The FLOPs that an operator cannot do without, whatever algorithm runs: at most what its rule counts.

Rules count the direct algorithm. Kernels in use do with less for two kinds: attention leaves out what a mask excludes,
and convolutions whose filter moves by one element may run as Winograd's or by Fourier transforms, which need at least
one multiplication for each pair of channels and position (S. Winograd, Arithmetic Complexity of Computations, 1980:
m outputs of a filter of r take m + r - 1 instead of m * r). Products are taken to run by their definition.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from pytest_modelbudget.backends.torch.costs.complex_convolutions import ComplexConvolutions
from pytest_modelbudget.backends.torch.costs.rules import Cost

# Where attention has its queries, whether it is causal, and its mask (None: it takes none).
_ATTENTION: Mapping[str, tuple[int, int, int | None]] = {
    "aten._scaled_dot_product_flash_attention": (0, 4, None),
    "aten._scaled_dot_product_flash_attention_backward": (1, 11, None),
    "aten._scaled_dot_product_efficient_attention": (0, 6, 3),
    "aten._scaled_dot_product_efficient_attention_backward": (1, 11, 4),
    "aten._scaled_dot_product_cudnn_attention": (0, 6, 3),
    "aten._scaled_dot_product_flash_attention_for_cpu": (0, 4, 5),
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": (1, 7, 8),
}
# Where a convolution has its filters, its strides, and whether it is transposed.
_CONVOLUTIONS = {"aten.convolution": (1, 3), "aten.convolution_backward": (2, 4)}


def least_flops(
    cost: Cost, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, convolutions: ComplexConvolutions
) -> tuple[int, int]:
    """The FLOPs of one call by its rule, and those that it takes at least."""
    flops = cost.flops_of(args, kwargs, out, convolutions)
    if (attention := _ATTENTION.get(cost.name)) is not None:
        return flops, _of_attention(flops, args, kwargs, *attention)
    if (places := _CONVOLUTIONS.get(cost.name)) is not None:
        filters, strides = args[places[0]], args[places[1]]
        return flops, flops // _taps_saved(tuple(filters.shape[2:]), tuple(strides))
    return flops, flops


def _taps_saved(taps: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """The taps along the axes of stride 1, of which one multiplication has to stay."""
    if len(strides) == 1:
        strides *= len(taps)
    return prod(size for size, stride in zip(taps, strides, strict=True) if stride == 1)


def _of_attention(
    flops: int, args: tuple[Any, ...], kwargs: dict[str, Any], first: int, causal: int, mask: int | None
) -> int:
    """Of causal attention the triangle; a mask of unknown values may be causal, and is taken for that."""
    queries, keys = (int(operand.shape[-2]) for operand in args[first : first + 2])
    is_causal = args[causal] if len(args) > causal else kwargs.get("is_causal", False)
    bias = args[mask] if mask is not None and len(args) > mask else kwargs.get("attn_bias", kwargs.get("attn_mask"))
    if not queries * keys or not (is_causal or isinstance(bias, torch.Tensor)):
        return flops
    return flops * _causal_pairs(queries, keys, 0 if is_causal else max(0, keys - queries)) // (queries * keys)


def _causal_pairs(queries: int, keys: int, before: int) -> int:
    """Pairs of a query and a key that it sees: those `before` the first query, itself, and one more each row.

    >>> _causal_pairs(queries=3, keys=4, before=1)
    9
    >>> _causal_pairs(queries=4, keys=2, before=0)
    7
    """
    growing = min(queries, keys - before)
    return growing * before + growing * (growing + 1) // 2 + (queries - growing) * keys
