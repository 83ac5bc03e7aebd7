"""What kernels take inside themselves while they run, as far as rules are known; the rest counts as nothing.

What the CPU's kernels copy before they begin is in `operand_copies`.
Attention on CUDA follows torch's own source. Convolutions on the CPU follow the allocations of oneDNN 3.13 in float32,
measured with torch.profiler on x86 CPUs with AVX-512 and with AVX2, two threads: other CPUs reorder other things,
more threads take more scratch. On AVX2 gradients of dilated and of strided pointwise ones have kernels of their own,
whose scratch is not known. Convolutions on CUDA take what cuDNN's choice of an algorithm takes: no rule is here for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from pytest_modelbudget.backends.torch.kernels.operand_copies import copied_bytes

THREADS = 2
"""Threads of the CPU for which scratch is counted; a fixed number, so that plans are the same everywhere."""

_FLOAT = 4
_PLAIN_CHANNELS = 3  # images are read as they are
_WIDEST_KERNEL = 14  # wider kernels run as products of matrices


@dataclass(frozen=True, slots=True)
class Cpu:
    """What differs between CPUs: `lanes` are the channels of a block, `copies` those of the weights of a depthwise
    convolution, channels last, whose gradients are then summed up."""

    lanes: int
    copies: int

    def round_up(self, channels: int) -> int:
        """Channels in whole blocks."""
        return -(-channels // self.lanes) * self.lanes

    def blocked_bytes(self, tensor: torch.Tensor) -> int:
        """Bytes of a tensor of floats in blocks of channels."""
        batch, channels, *spatial = map(int, tensor.shape)
        return _FLOAT * batch * self.round_up(channels) * prod(spatial)


CPUS = {"cpu": Cpu(16, 256), "cpu-avx2": Cpu(8, 64)}
"""Those whose kernels are known, by their names in recipes: with AVX-512, and with AVX2."""


def workspace(op: str, args: tuple[Any, ...], out: Any, cpu: Cpu | None) -> int:
    """Bytes that a kernel takes beside its operands and its result; those of a `cpu`, where one is given."""
    if op == "aten._scaled_dot_product_flash_attention_backward":
        # dq is summed in float32, and one number for each row: flash_api.cpp, `mha_bwd`, rows rounded to 128.
        query = args[1]
        batch, heads, rows, size = query.shape
        rounded = -(-rows // 128) * 128
        return _FLOAT * int(batch * heads * rounded * (-(-size // 32) * 32 + 1))
    if op == "aten._scaled_dot_product_efficient_attention_backward":
        batch, heads, rows, _ = args[1].shape
        return _FLOAT * int(batch * heads * rows)
    if op == "bitsandbytes.gemm_4bit":
        return _dequantized_bytes(*args[:5])
    if cpu and op == "aten._scaled_dot_product_flash_attention_for_cpu":
        return _cpu_attention_workspace(args[0], args[1])
    if cpu and op == "aten._scaled_dot_product_flash_attention_for_cpu_backward":
        return _cpu_attention_backward_workspace(args[0], args[1], args[2])
    if cpu and op == "aten.convolution":
        convolution = _Convolution.of(cpu, args[0], args[1], out, args[3], args[6], args[8])
        return _convolution_workspace(convolution) + _reordered_operands(convolution, args[0])
    if cpu and op == "aten.convolution_backward":
        gradient, input, weight = args[:3]
        convolution = _Convolution.of(cpu, input, weight, gradient, args[4], args[7], args[9])
        return _convolution_backward_workspace(convolution, *args[10][:2]) + _reordered_operands(
            convolution, gradient, input
        )
    return copied_bytes(op, args, out) if cpu else 0


def _dequantized_bytes(input: torch.Tensor, codes: torch.Tensor, shape: Any, scales: torch.Tensor, block: int) -> int:
    """The weight of 4 bits made anew in the input's dtype, and its scales where these are quantised, too.

    bitsandbytes 0.50, backends/default/ops.py, `_gemm_4bit_default_impl`; some GPUs do without for few rows.
    """
    elements = prod(shape)
    blocks = -(-elements // block)
    return int(elements * input.element_size() + (_FLOAT * blocks if scales.numel() < blocks else 0))


def _cpu_attention_workspace(query: torch.Tensor, key: torch.Tensor) -> int:
    """For each thread a block of the scores, two numbers for each of its rows, and what the block gives.

    In float32 at least; a block of half precision is there in that, too: cpu/FlashAttentionKernel.cpp,
    `cpu_flash_attention`, on CPUs without matrix units (AMX), for which operands are packed.
    """
    rows, columns = _cpu_attention_block(query, key)
    itemsize, size = query.element_size(), query.shape[3]
    halved = itemsize * rows * columns if itemsize < _FLOAT else 0
    return int(THREADS * (max(itemsize, _FLOAT) * rows * (columns + 2 + size) + halved))


def _cpu_attention_block(query: torch.Tensor, key: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of the scores that a thread has at a time: up to 256 and 512."""
    rows, columns = query.shape[2], key.shape[2]
    return min(rows, 256 if rows >= 768 else 64 if rows >= 192 else 32), min(columns, 512)


def _cpu_attention_backward_workspace(gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> int:
    """The gradient by (sample, row, head), and for each thread a block of the scores and one of their gradients.

    See cpu/FlashAttentionKernel.cpp, `cpu_flash_attention_backward`.
    """
    rows, columns = _cpu_attention_block(query, key)
    copied = 0 if gradient.transpose(1, 2).is_contiguous() else gradient.numel() * gradient.element_size()
    return int(copied + _FLOAT * (THREADS * 2 * rows * columns + rows))


@dataclass(frozen=True, slots=True)
class _Convolution:
    """Sizes of a convolution in bytes: as tensors, and in blocks of channels, as oneDNN's kernels want them.

    `scratch` is the buffer of the threads for a strided one of single points, `upstream` that for the gradient of a
    strided one's input, which a transposed one makes forward. `copies` are those of the weights that a depthwise one
    sums up, with the sum. `channels_last` says that channels are last in memory, where data needs no reordering.
    `ordered_weight` are the weights once more, where they are not in the order of the data.
    """

    input: int
    weight: int
    output: int
    blocked_input: int
    blocked_weight: int
    padded_weight: int
    blocked_output: int
    scratch: int
    upstream: int
    columns: int
    copies: int
    depthwise: bool
    pointwise: bool
    transposed: bool
    channels_last: bool
    ordered_weight: int

    @classmethod
    def of(
        cls,
        cpu: Cpu,
        input: torch.Tensor,
        weight: torch.Tensor,
        output: torch.Tensor,
        stride: Any,
        transposed: bool,
        groups: int,
    ) -> _Convolution | None:
        """The sizes; None for a kernel that is not oneDNN's in float32."""
        if input.dtype is not torch.float32 or weight.dtype is not torch.float32 or not input.numel():
            return None
        dense, windowed = (output, input) if transposed else (input, output)  # `wide` is made from windows of `dense`
        channels, filters = int(dense.shape[1]), int(windowed.shape[1])
        kernel, strides = tuple(weight.shape[2:]), _per_dimension(stride, weight.dim() - 2)
        depthwise = groups > 1 and groups == channels
        windows = prod(windowed.shape[2:])
        is_plain = channels <= _PLAIN_CHANNELS and groups == 1
        weight_elements = (
            cpu.round_up(filters) * prod(kernel) * (cpu.round_up(channels) if groups == 1 else channels // groups)
        )
        blocked_dense = 0 if is_plain else cpu.blocked_bytes(dense)
        strided = max(strides) > 1 and not depthwise
        reach = prod(int(size) + (k - 1) // s for size, k, s in zip(windowed.shape[2:], kernel, strides, strict=True))
        pointwise = prod(kernel) == 1
        sizes = blocked_dense, cpu.blocked_bytes(windowed)
        channels_last = _is_channels_last(input) or _is_channels_last(weight)
        is_ordered = pointwise or _is_channels_last(weight) if channels_last else weight.is_contiguous()
        return cls(
            input=_bytes(input),
            weight=_bytes(weight),
            output=_bytes(output),
            blocked_input=sizes[transposed],
            blocked_output=sizes[not transposed],
            blocked_weight=_FLOAT * (cpu.round_up(filters) * prod(kernel) * channels if is_plain else weight_elements),
            padded_weight=_FLOAT * weight_elements,
            scratch=_FLOAT * THREADS * channels * windows if strided and pointwise else 0,
            upstream=_FLOAT * THREADS * cpu.round_up(filters) * reach if strided else 0,
            columns=_FLOAT * channels * prod(kernel) * windows if kernel[-1] > _WIDEST_KERNEL else 0,
            copies=(cpu.copies + 1) * _FLOAT * weight_elements if depthwise else 0,
            depthwise=depthwise,
            pointwise=pointwise,
            transposed=transposed,
            channels_last=channels_last,
            ordered_weight=0 if is_ordered else _bytes(weight),
        )


def _convolution_workspace(convolution: _Convolution | None) -> int:
    """Operands and result are copied into blocks, and the result back once the operands are let go of."""
    if convolution is None:
        return 0
    if convolution.channels_last:
        return convolution.blocked_weight + (0 if convolution.depthwise else convolution.ordered_weight)
    scratch = convolution.upstream if convolution.transposed else convolution.scratch
    blocked_bytes = convolution.blocked_input + convolution.blocked_weight + convolution.blocked_output + scratch
    copied_back = convolution.blocked_output * (2 if convolution.transposed else 1)
    return convolution.ordered_weight + max(blocked_bytes - convolution.output, copied_back)


def _convolution_backward_workspace(convolution: _Convolution | None, to_input: bool, to_weight: bool) -> int:
    """The gradient of the input comes first, then that of the weights; both are made in blocks and copied back."""
    if convolution is None:
        return 0
    results = (convolution.input if to_input else 0) + (convolution.weight if to_weight else 0)
    if convolution.channels_last:
        return _backward_of_channels_last(convolution, to_input, to_weight)
    input_peak = weight_peak = 0
    if to_input:
        data = convolution.blocked_input or convolution.input
        scratch = 0 if convolution.transposed else convolution.upstream
        input_peak = max(
            convolution.blocked_output + convolution.padded_weight + data + scratch, data + convolution.input
        )
    if to_weight:
        if convolution.columns:
            operand_bytes = THREADS * (4 * convolution.weight + convolution.columns)
        else:
            operand_bytes = convolution.blocked_output + convolution.blocked_input + convolution.scratch
        weight_peak = (
            convolution.blocked_weight + max(operand_bytes, convolution.weight) + (convolution.input if to_input else 0)
        )
    return convolution.ordered_weight + max(input_peak, weight_peak, results) - results


def _backward_of_channels_last(convolution: _Convolution, to_input: bool, to_weight: bool) -> int:
    """Only weights are reordered: their copies are what is taken."""
    if convolution.depthwise:
        return convolution.copies if to_weight else convolution.blocked_weight
    ordered = convolution.ordered_weight
    first = (
        ordered + convolution.padded_weight + convolution.upstream - (convolution.weight if to_weight else 0)
        if to_input
        else 0
    )
    return max(first, ordered + 2 * convolution.weight if to_weight else 0)


def _reordered_operands(convolution: _Convolution | None, *operands: torch.Tensor) -> int:
    """Operands that are not in the order of the kernel are copied first, for as long as it runs."""
    if convolution is None:
        return 0
    return sum(
        _bytes(operand)
        for operand in operands
        if not (_is_channels_last(operand) if convolution.channels_last else operand.is_contiguous())
    )


def _per_dimension(value: Any, dims: int) -> Sequence[int]:
    numbers = [int(item) for item in value]
    return numbers if len(numbers) == dims else numbers * dims


def _bytes(tensor: torch.Tensor) -> int:
    return int(tensor.numel()) * _FLOAT


def _is_channels_last(tensor: torch.Tensor) -> bool:
    """Whether channels are last in memory, as torch decides it for its choice of a kernel."""
    kinds = {4: torch.channels_last, 5: torch.channels_last_3d}
    kind = kinds.get(tensor.dim())
    return kind is not None and tensor.is_contiguous(memory_format=kind) and not tensor.is_contiguous()
