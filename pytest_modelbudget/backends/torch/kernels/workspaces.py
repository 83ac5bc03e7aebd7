"""What kernels take inside themselves while they run, as far as rules are known; the rest counts as nothing.

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

THREADS = 2
"""Threads of the CPU for which scratch is counted; a fixed number, so that plans are the same everywhere."""

_FLOAT = 4
_PLAIN_CHANNELS = 3  # images are read as they are
_WIDEST = 14  # wider kernels run as products of matrices


@dataclass(frozen=True, slots=True)
class Cpu:
    """What differs between CPUs: `lanes` are the channels of a block, `copies` those of the weights of a depthwise
    convolution, channels last, whose gradients are then summed up."""

    lanes: int
    copies: int

    def up(self, channels: int) -> int:
        """Channels in whole blocks."""
        return -(-channels // self.lanes) * self.lanes

    def blocked(self, tensor: torch.Tensor) -> int:
        """Bytes of a tensor of floats in blocks of channels."""
        batch, channels, *spatial = map(int, tensor.shape)
        return _FLOAT * batch * self.up(channels) * prod(spatial)


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
    if cpu and op == "aten.convolution":
        found = _Convolution.of(cpu, args[0], args[1], out, args[3], args[6], args[8])
        return _convolution(found) + _copied(found, args[0])
    if cpu and op == "aten.convolution_backward":
        gradient, input, weight = args[:3]
        found = _Convolution.of(cpu, input, weight, gradient, args[4], args[7], args[9])
        return _convolution_backward(found, *args[10][:2]) + _copied(found, gradient, input)
    return 0


@dataclass(frozen=True, slots=True)
class _Convolution:
    """Sizes of a convolution in bytes: as tensors, and in blocks of channels, as oneDNN's kernels want them.

    `scratch` is the buffer of the threads for a strided one of single points, `upstream` that for the gradient of a
    strided one's input, which a transposed one makes forward. `copies` are those of the weights that a depthwise one
    sums up, with the sum. `last` says that channels are last in memory, where data needs no reordering.
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
    last: bool

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
        dense, wide = (output, input) if transposed else (input, output)  # `wide` is made from windows of `dense`
        channels, filters = int(dense.shape[1]), int(wide.shape[1])
        kernel, strides = tuple(weight.shape[2:]), _each(stride, weight.dim() - 2)
        depthwise = groups > 1 and groups == channels
        windows = prod(wide.shape[2:])
        plain = channels <= _PLAIN_CHANNELS and groups == 1
        whole = cpu.up(filters) * prod(kernel) * (cpu.up(channels) if groups == 1 else channels // groups)
        blocked_dense = 0 if plain else cpu.blocked(dense)
        strided = max(strides) > 1 and not depthwise
        reach = prod(int(size) + (k - 1) // s for size, k, s in zip(wide.shape[2:], kernel, strides, strict=True))
        pointwise = prod(kernel) == 1
        sizes = blocked_dense, cpu.blocked(wide)
        return cls(
            input=_bytes(input),
            weight=_bytes(weight),
            output=_bytes(output),
            blocked_input=sizes[transposed],
            blocked_output=sizes[not transposed],
            blocked_weight=_FLOAT * (cpu.up(filters) * prod(kernel) * channels if plain else whole),
            padded_weight=_FLOAT * whole,
            scratch=_FLOAT * THREADS * channels * windows if strided and pointwise else 0,
            upstream=_FLOAT * THREADS * cpu.up(filters) * reach if strided else 0,
            columns=_FLOAT * channels * prod(kernel) * windows if kernel[-1] > _WIDEST else 0,
            copies=(cpu.copies + 1) * _FLOAT * whole if depthwise else 0,
            depthwise=depthwise,
            pointwise=pointwise,
            transposed=transposed,
            last=_is_last(input) or _is_last(weight),
        )


def _convolution(found: _Convolution | None) -> int:
    """Operands and result are copied into blocks, and the result back once the operands are let go of."""
    if found is None:
        return 0
    if found.last:
        return found.blocked_weight + (0 if found.pointwise or found.depthwise else found.weight)
    scratch = found.upstream if found.transposed else found.scratch
    inside = found.blocked_input + found.blocked_weight + found.blocked_output + scratch
    return max(inside - found.output, found.blocked_output * (2 if found.transposed else 1))


def _convolution_backward(found: _Convolution | None, to_input: bool, to_weight: bool) -> int:
    """The gradient of the input comes first, then that of the weights; both are made in blocks and copied back."""
    if found is None:
        return 0
    results = (found.input if to_input else 0) + (found.weight if to_weight else 0)
    if found.last:
        return _backward_of_last(found, to_input, to_weight)
    first = then = 0
    if to_input:
        data = found.blocked_input or found.input
        scratch = 0 if found.transposed else found.upstream
        first = max(found.blocked_output + found.padded_weight + data + scratch, data + found.input)
    if to_weight:
        if found.columns:
            read = THREADS * (4 * found.weight + found.columns)
        else:
            read = found.blocked_output + found.blocked_input + found.scratch
        then = found.blocked_weight + max(read, found.weight) + (found.input if to_input else 0)
    return max(first, then, results) - results


def _backward_of_last(found: _Convolution, to_input: bool, to_weight: bool) -> int:
    """Only weights are reordered: their copies are what is taken."""
    if found.depthwise:
        return found.copies if to_weight else found.blocked_weight
    ordered = 0 if found.pointwise else found.weight
    first = ordered + found.padded_weight + found.upstream - (found.weight if to_weight else 0) if to_input else 0
    return max(first, ordered + 2 * found.weight if to_weight else 0)


def _copied(found: _Convolution | None, *read: torch.Tensor) -> int:
    """Operands that are not in the order of the kernel are copied first, for as long as it runs."""
    if found is None:
        return 0
    return sum(_bytes(one) for one in read if not (_is_last(one) if found.last else one.is_contiguous()))


def _each(value: Any, dims: int) -> Sequence[int]:
    found = [int(one) for one in value]
    return found if len(found) == dims else found * dims


def _bytes(tensor: torch.Tensor) -> int:
    return int(tensor.numel()) * _FLOAT


def _is_last(tensor: torch.Tensor) -> bool:
    """Whether channels are last in memory, as torch decides it for its choice of a kernel."""
    kinds = {4: torch.channels_last, 5: torch.channels_last_3d}
    kind = kinds.get(tensor.dim())
    return kind is not None and tensor.is_contiguous(memory_format=kind) and not tensor.is_contiguous()
