"""What kernels take inside themselves while they run, as far as rules are known; the rest counts as nothing.

What the CPU's kernels copy before they begin is in `operand_copies`, what they make for themselves in `temporaries`,
its convolutions are in `convolutions`. Attention on CUDA follows torch's own source. Convolutions on CUDA take what
cuDNN's choice of an algorithm takes: no rule is here for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Any

import torch

from pytest_modelbudget.backends.torch.kernels.convolutions import (
    convolution_backward_workspace,
    convolution_workspace,
)
from pytest_modelbudget.backends.torch.kernels.cpus import FLOAT, THREADS, Cpu
from pytest_modelbudget.backends.torch.kernels.operand_copies import (
    batched_product_bytes,
    copied_bytes,
    transform_bytes,
)
from pytest_modelbudget.backends.torch.kernels.temporaries import temporary_bytes


def workspace(
    op: str, args: tuple[Any, ...], out: Any, cpu: Cpu | None, kwargs: Mapping[str, Any] = MappingProxyType({})
) -> int:
    """Bytes that a kernel takes beside its operands and its result; those of a `cpu`, where one is given."""
    if op == "aten._scaled_dot_product_flash_attention_backward":
        # dq is summed in float32, and one number for each row: flash_api.cpp, `mha_bwd`, rows rounded to 128.
        query = args[1]
        batch, heads, rows, size = query.shape
        rounded = -(-rows // 128) * 128
        return FLOAT * int(batch * heads * rounded * (-(-size // 32) * 32 + 1))
    if op == "aten._scaled_dot_product_efficient_attention_backward":
        batch, heads, rows, _ = args[1].shape
        return FLOAT * int(batch * heads * rows)
    if op == "bitsandbytes.gemm_4bit":
        return _dequantized_bytes(*args[:5])
    if op == "aten._ctc_loss_backward":
        return int(args[6].nbytes)  # the table of the way back, as large as that of the way forward: LossCTC.cpp
    if op in ("aten.im2col", "aten.col2im"):
        return _unfolding_bytes(args[0], out)
    if cpu and op == "aten._scaled_dot_product_flash_attention_for_cpu":
        return _cpu_attention_workspace(args[0], args[1]) + _copied_mask_bytes(
            args[0], args[1], kwargs.get("attn_mask")
        )
    if cpu and op == "aten._scaled_dot_product_flash_attention_for_cpu_backward":
        mask_bytes = _copied_mask_bytes(args[1], args[2], kwargs.get("attn_mask"))
        return _cpu_attention_backward_workspace(args[0], args[1], args[2]) + mask_bytes
    if cpu and op == "aten.convolution":
        return convolution_workspace(cpu, args, out)
    if cpu and op == "aten.convolution_backward":
        return convolution_backward_workspace(cpu, args)
    if cpu and op == "aten.bmm":
        return batched_product_bytes(*args[:2]) if cpu.is_wide or args[0].dtype is not torch.bfloat16 else 0
    if cpu and op in ("aten._fft_r2c", "aten._fft_c2c", "aten._fft_c2r"):
        return transform_bytes(op, *args[:2])
    return copied_bytes(op, args, out) + temporary_bytes(op, args, out) if cpu else 0


def _unfolding_bytes(data: torch.Tensor, out: torch.Tensor) -> int:
    """Their operand in plain order, and for columns a tensor like it, which gives way to the larger result.

    Im2Col.cu and Col2Im.cu, and the same for the CPU.
    """
    copied = 0 if data.is_contiguous() else int(data.nbytes)
    return copied + (int(data.nbytes) if out.nbytes > data.nbytes else 0)


def _dequantized_bytes(input: torch.Tensor, codes: torch.Tensor, shape: Any, scales: torch.Tensor, block: int) -> int:
    """The weight of 4 bits made anew in the input's dtype, and its scales where these are quantised, too.

    bitsandbytes 0.50, backends/default/ops.py, `_gemm_4bit_default_impl`; some GPUs do without for few rows.
    """
    elements = prod(shape)
    blocks = -(-elements // block)
    return int(elements * input.element_size() + (FLOAT * blocks if scales.numel() < blocks else 0))


def _cpu_attention_workspace(query: torch.Tensor, key: torch.Tensor) -> int:
    """For each thread a block of the scores, two numbers for each of its rows, and what the block gives.

    In float32 at least; a block of half precision is there in that, too: cpu/FlashAttentionKernel.cpp,
    `cpu_flash_attention`, on CPUs without matrix units (AMX), for which operands are packed.
    """
    rows, columns = _cpu_attention_block(query, key)
    itemsize, size = query.element_size(), query.shape[3]
    halved = itemsize * rows * columns if itemsize < FLOAT else 0
    return int(THREADS * (max(itemsize, FLOAT) * rows * (columns + 2 + size) + halved))


def _copied_mask_bytes(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> int:
    """A mask whose columns lie apart in memory, as a table of biases by distance gives it, is put in order first.

    All rows of the scores are written out, and as many heads and samples as it has itself.
    """
    if mask is None or mask.shape[-1] == 1 or mask.stride(-1) in (0, 1):
        return 0
    return int(prod(mask.shape[:-2]) * query.shape[2] * key.shape[2] * mask.element_size())


def _cpu_attention_block(query: torch.Tensor, key: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of the scores that a thread has at a time: up to 256 and 512."""
    rows, columns = query.shape[2], key.shape[2]
    return min(rows, 256 if rows >= 768 else 64 if rows >= 192 else 32), min(columns, 512)


def _cpu_attention_backward_workspace(gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> int:
    """The gradient by (sample, row, head), and for each thread a block of the scores and one of their gradients.

    In float32, and once more in the dtype of half precision.

    See cpu/FlashAttentionKernel.cpp, `cpu_flash_attention_backward`.
    """
    rows, columns = _cpu_attention_block(query, key)
    copied = 0 if gradient.transpose(1, 2).is_contiguous() else gradient.numel() * gradient.element_size()
    itemsize = query.element_size()
    halved = itemsize * THREADS * 2 * rows * columns if itemsize < FLOAT else 0
    return int(copied + FLOAT * (THREADS * 2 * rows * columns + rows) + halved)
