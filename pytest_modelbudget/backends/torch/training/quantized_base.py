"""Frozen layers with weights of 4 or 8 bits, as bitsandbytes stores them and multiplies with them.

4 bits: two codes in a byte, a float32 scale for each block, a code book of 16; with double quantisation scales of one
byte, a float32 for 256 of them, one to be added and a code book of 256 (Dettmers et al. 2023, arXiv 2305.14314). The
weight is made anew for each product, forward and backward; bitsandbytes 0.50 has kernels that do without for up to
1,536 rows on some cards, forward alone.

8 bits: a float32 for each row (Dettmers et al. 2022, arXiv 2208.07339); on a GPU the input is quantised by rows,
products are int32, and the weight is made anew in the backward pass. Columns of outliers, which depend on values, are
taken to be none. On the CPU the int8 weight is made anew forward, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.backends.torch.training.linear_layers import LinearLayer
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner.lora import QuantizedBase

_SCALES_IN_BLOCK = 256
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight of `shape` (out, in) as it is stored: its `codes`, its `scales`, and what belongs to these.

    `compute` is the dtype it is made anew in.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    beside: tuple[torch.Tensor, ...]
    shape: tuple[int, int]
    compute: torch.dtype

    @property
    def is_int8(self) -> bool:
        """Whether an element has a byte, and each row a scale."""
        return self.codes.dtype is torch.int8

    @property
    def is_nested(self) -> bool:
        """Whether the scales are quantised, too."""
        return self.scales.dtype is torch.uint8

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight itself, in memory of its own; its scales are made first, where they are quantised."""
        if self.is_int8:
            return self.codes.to(dtype).mul_(self.scales.unsqueeze(1).mul(1.0 / 127.0))
        scales = torch.empty_like(self.scales, dtype=torch.float32) if self.is_nested else self.scales
        weight = torch.empty(self.shape, dtype=dtype, device=self.codes.device)
        del scales
        return weight


def quantized(shape: tuple[int, int], base: QuantizedBase, compute: torch.dtype, device: Any) -> QuantizedWeight:
    """The stored weight of `shape` (out, in) on `device`, without values."""
    rows, columns = shape
    if base.format == "int8":
        codes = torch.empty(shape, dtype=torch.int8, device=device)
        return QuantizedWeight(codes, torch.empty(rows, device=device), (), shape, compute)
    codes = torch.empty((-(-rows * columns // 2), 1), dtype=torch.uint8, device=device)
    blocks = -(-rows * columns // base.block)
    book = torch.empty(16, device=device)
    if not base.double_quant:
        return QuantizedWeight(codes, torch.empty(blocks, device=device), (book,), shape, compute)
    scales = torch.empty(blocks, dtype=torch.uint8, device=device)
    scales_of_scales = torch.empty(-(-blocks // _SCALES_IN_BLOCK), device=device)
    beside = book, scales_of_scales, torch.empty(256, device=device), torch.empty((), device=device)
    return QuantizedWeight(codes, scales, beside, shape, compute)


@contextmanager
def base_quantized(
    layers: Sequence[LinearLayer], base: QuantizedBase, compute: torch.dtype | None, cuda: bool
) -> Iterator[dict[int, QuantizedWeight]]:
    """Inside, the weights of `layers` are stored as `base` says; gives them by `id` of their module.

    `compute` is the dtype of products where `base` names none (None: that of the weights); `cuda` says whose kernels
    multiply with int8.

    Raises:
        ModelBudgetError: a glob of `skip` that matches no layer, or no layer that is left.
    """
    chosen = _not_skipped(layers, base.skip)
    weights: dict[int, QuantizedWeight] = {}
    with ExitStack() as stack:
        for layer in chosen:
            module = layer.module
            dtype = _DTYPES.get(base.compute) or compute or module.weight.dtype
            weight = quantized((layer.out_features, layer.in_features), base, dtype, module.weight.device)
            weights[id(module)] = weight
            stack.callback(module._parameters.__setitem__, "weight", module.weight)
            module._parameters["weight"] = nn.Parameter(weight.codes, requires_grad=False)
            stack.enter_context(patched(module, "quantized_base", [weight.scales, *weight.beside]))
            stack.enter_context(patched(module, "forward", product_with(module, weight, cuda)))
        yield weights


def _not_skipped(layers: Sequence[LinearLayer], globs: Sequence[str]) -> list[LinearLayer]:
    for glob in globs:
        if not any(fnmatchcase(layer.name, glob) for layer in layers):
            raise ModelBudgetError(f"training.lora: base: skip: no layer that would be quantised matches {glob!r}")
    chosen = [layer for layer in layers if not any(fnmatchcase(layer.name, glob) for glob in globs)]
    if not chosen:
        raise ModelBudgetError("training.lora: base: the model has no linear layer, but for its head, to be quantised")
    return chosen


def product_with(module: Any, weight: QuantizedWeight, cuda: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """The forward of a linear layer with this weight, as bitsandbytes has it, on a GPU or (not `cuda`) on a CPU.

    Weights of 4 bits compute in their own dtype, whatever the input's.
    """

    def forward_4bit(input: torch.Tensor) -> torch.Tensor:
        bias = None if module.bias is None else module.bias.to(weight.compute)
        out: torch.Tensor = _DequantizedProduct.apply(input.to(weight.compute), bias, weight)
        return out.to(input.dtype)

    def forward_int8(input: torch.Tensor) -> torch.Tensor:
        bias = None if module.bias is None else module.bias.to(input.dtype)
        out: torch.Tensor = (_Int8Product if cuda else _Int8ProductOnCpu).apply(input, bias, weight)
        return out

    return forward_int8 if weight.is_int8 else forward_4bit


class _DequantizedProduct(torch.autograd.Function):  # type: ignore[misc]
    """A product with the weight made anew for it, and again for the gradient of the input."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, bias: torch.Tensor | None, weight: QuantizedWeight) -> torch.Tensor:
        ctx.weight = weight
        return functional.linear(input, weight.dequantized(input.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        bias = gradient.sum(tuple(range(gradient.dim() - 1))) if ctx.needs_input_grad[1] else None
        weight: QuantizedWeight = ctx.weight
        to_input = ctx.needs_input_grad[0]
        return torch.matmul(gradient, weight.dequantized(gradient.dtype)) if to_input else None, bias, None


class _Int8ProductOnCpu(_DequantizedProduct):
    """The same, which keeps its input."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, bias: torch.Tensor | None, weight: QuantizedWeight) -> torch.Tensor:
        ctx.input = input
        return _DequantizedProduct.forward(ctx, input, bias, weight)


class _Int8Product(_DequantizedProduct):
    """A product of int8 rows and int8 weights in int32, brought to the input's dtype; it keeps its input."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, bias: torch.Tensor | None, weight: QuantizedWeight) -> torch.Tensor:
        ctx.weight, ctx.input = weight, input
        rows = input.reshape(-1, input.shape[-1])
        codes, row_scales = _quantized_rows(rows.to(torch.float16))
        product = torch.empty((rows.shape[0], weight.shape[0]), dtype=torch.int32, device=rows.device)
        out = torch.empty(product.shape, dtype=torch.float16, device=rows.device)
        if bias is not None and bias.dtype is not torch.float16:
            out.add_(bias)
        del codes, row_scales
        return out.to(input.dtype).reshape(*input.shape[:-1], weight.shape[0])


def _quantized_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row in int8 with its scale; what is above the threshold is looked for on the way."""
    scales = torch.empty(rows.shape[0], device=rows.device)
    codes = torch.empty_like(rows, dtype=torch.int8)
    torch.ge(rows.abs(), 6.0)
    return codes, scales
