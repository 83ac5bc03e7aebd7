"""What oneDNN's convolutions take on the CPU beside operands and result: copies in blocks of channels, and scratch.

As oneDNN 3.12 and 3.13 allocate, measured with torch.profiler on x86 CPUs with AVX-512 and with AVX2, two threads:
other CPUs reorder other things, more threads take more scratch. In float32, and in bfloat16 as `bfloat16_scratch`
says. On AVX2 gradients of dilated ones have kernels of their own, whose scratch is not known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

import torch

from pytest_modelbudget.backends.torch.kernels import bfloat16_scratch as bfloat16
from pytest_modelbudget.backends.torch.kernels.convolution_scratch import PLAIN_CHANNELS, ConvolutionShape
from pytest_modelbudget.backends.torch.kernels.cpus import Cpu
from pytest_modelbudget.backends.torch.kernels.direct_convolutions import lanes_of
from pytest_modelbudget.backends.torch.kernels.gemm_convolutions import (
    forward_columns,
    input_gradient_columns,
    of_weight_gradient,
    weight_gradient_products,
)
from pytest_modelbudget.backends.torch.kernels.native_convolutions import (
    native_backward_workspace,
    native_transposed_backward_workspace,
    native_transposed_workspace,
    native_workspace,
    runs_natively,
)
from pytest_modelbudget.backends.torch.kernels.operand_copies import suggested_format


def convolution_workspace(cpu: Cpu, args: tuple[Any, ...], out: torch.Tensor) -> int:
    """Bytes that `aten.convolution(*args)`, which makes `out`, takes on a `cpu`; 0 where no rule is known."""
    convolution = _Convolution.of(cpu, args[0], args[1], out, args[3], args[4], args[5], args[6], args[8])
    return _forward(convolution) + _reordered_operands(convolution, args[0]) if convolution else 0


def convolution_backward_workspace(cpu: Cpu, args: tuple[Any, ...]) -> int:
    """The same of `aten.convolution_backward(*args)`."""
    gradient, input, weight = args[:3]
    options, with_bias = (args[4], args[5], args[6], args[7], args[9]), bool(args[10][2])
    convolution = _Convolution.of(cpu, input, weight, gradient, *options, with_bias=with_bias)
    if convolution is None:
        return 0
    # What torch's own kernels make is in plain order, and so is its gradient, also where the trace has it otherwise.
    operands = (input,) if convolution.is_native else (gradient, input)
    return _backward(convolution, *args[10][:2]) + _reordered_operands(convolution, *operands)


class _Scratch(NamedTuple):
    """Bytes that a kernel takes beside operands and result: forward, and for each gradient."""

    forward: int = 0
    to_input: int = 0
    to_weight: int = 0


@dataclass(frozen=True, slots=True)
class _Convolution:
    """Sizes of a convolution in bytes: as tensors, and in blocks of channels, as oneDNN's kernels want them.

    `gemm` is the scratch of what runs as products of matrices, `scratch` that of other kernels; a transposed one makes
    forward what others make for the gradient of their input. `copies` are those of the weights that a depthwise one
    sums up, with the sum. `channels_last` says that channels are last in memory, where data needs no reordering.
    `ordered_weight` are the weights once more, where they are not in the order of the data.
    """

    shape: ConvolutionShape
    input: int
    weight: int
    output: int
    blocked_input: int
    blocked_gradient: int
    blocked_weight: int
    gradient_weight: int
    gradient_operands: int
    padded_weight: int
    blocked_output: int
    gemm: _Scratch
    scratch: _Scratch
    copies: int
    is_native: bool
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
        padding: Any,
        dilation: Any,
        transposed: bool,
        groups: int,
        with_bias: bool = False,
    ) -> _Convolution | None:
        """The sizes, `with_bias` for a backward pass to one, too; None for a kernel without a rule."""
        if input.dtype is not weight.dtype or not input.numel():
            return None
        dense, windowed = (output, input) if transposed else (input, output)  # windows of `dense` make `windowed`
        channels, filters, kernel = int(dense.shape[1]), int(windowed.shape[1]), tuple(map(int, weight.shape[2:]))
        shape = ConvolutionShape(
            cpu=cpu,
            batch=int(input.shape[0]),
            channels=channels,
            filters=filters,
            groups=groups,
            kernel=kernel,
            strides=_per_dimension(stride, len(kernel)),
            padding=_per_dimension(padding, len(kernel)),
            dilation=_per_dimension(dilation, len(kernel)),
            size=tuple(map(int, dense.shape[2:])),
            windows=tuple(map(int, windowed.shape[2:])),
        )
        channels_last = _is_channels_last(input) or _is_channels_last(weight)
        is_half = input.dtype is torch.bfloat16 and not (transposed or channels_last) and bfloat16.has_rule(shape)
        if not is_half and input.dtype is not torch.float32:
            return None
        is_native = not is_half and runs_natively(shape, transposed=transposed)
        channels_last = channels_last and (transposed or not is_native)  # data is put in order for torch's own kernels
        is_ordered = prod(kernel) == 1 or _is_channels_last(weight) if channels_last else weight.is_contiguous()
        of_gradient = shape if is_half else of_weight_gradient(shape)
        image_channels = bfloat16.PLAIN_CHANNELS if is_half else PLAIN_CHANNELS
        is_image = channels <= image_channels and groups == 1 and not shape.is_pointwise
        is_plain = is_image if is_half else shape.reads_plain_channels
        itemsize = int(input.element_size())
        blocks = cpu if is_half or shape.is_depthwise else replace(cpu, lanes=lanes_of(shape))
        of_filters = itemsize * blocks.round_up(filters) * prod(kernel)
        padded_weight = of_filters * (blocks.round_up(channels) if groups == 1 else channels // groups)
        plain_weight = of_filters * channels
        sizes = 0 if is_plain else blocks.blocked_bytes(dense), blocks.blocked_bytes(windowed)
        gradient_weight, narrow = plain_weight if is_image else padded_weight, of_gradient.cpu
        if narrow is not cpu:
            per_group = narrow.round_up(channels) if groups == 1 else channels // groups
            gradient_weight = itemsize * narrow.round_up(filters) * per_group * prod(kernel)
        return cls(
            shape=shape,
            input=_bytes(input),
            weight=_bytes(weight),
            output=_bytes(output),
            blocked_input=sizes[transposed],
            blocked_gradient=blocks.blocked_bytes(input),
            blocked_output=sizes[not transposed],
            blocked_weight=plain_weight + (channels % 2 * of_filters if is_half else 0) if is_plain else padded_weight,
            gradient_weight=gradient_weight,
            gradient_operands=(0 if is_image else narrow.blocked_bytes(dense)) + narrow.blocked_bytes(windowed),
            padded_weight=padded_weight,
            gemm=_Scratch(to_weight=bfloat16.weight_gradient_products(shape)) if is_half else _gemm_scratch(shape),
            scratch=_half_scratch(shape, with_bias) if is_half else _scratch(shape, transposed, with_bias),
            copies=(shape.summed_copies + 1) * padded_weight if shape.is_depthwise else 0,
            is_native=is_native,
            transposed=transposed,
            channels_last=channels_last,
            ordered_weight=0 if is_ordered else _bytes(weight),
        )


def _gemm_scratch(shape: ConvolutionShape) -> _Scratch:
    to_weight = weight_gradient_products(of_weight_gradient(shape))
    return _Scratch(forward_columns(shape), input_gradient_columns(shape), to_weight)


def _scratch(shape: ConvolutionShape, transposed: bool, with_bias: bool) -> _Scratch:
    gradient, of_weight = shape.strided_gradient(), of_weight_gradient(shape)
    to_weight = of_weight.gathered_for_weights() + of_weight.summed_weights()
    if transposed:
        return _Scratch(gradient, gradient, to_weight)
    return _Scratch(shape.gathered_places(), gradient, to_weight + (of_weight.summed_bias() if with_bias else 0))


def _half_scratch(shape: ConvolutionShape, with_bias: bool) -> _Scratch:
    forward, gradient = bfloat16.forward_scratch(shape), bfloat16.input_gradient_scratch(shape)
    return _Scratch(forward, gradient, bfloat16.weight_gradient_scratch(shape, with_bias))


def _forward(convolution: _Convolution) -> int:
    """Operands and result are copied into blocks, and the result back once the operands are let go of."""
    if convolution.channels_last:
        return convolution.blocked_weight + (0 if convolution.shape.is_depthwise else convolution.ordered_weight)
    if convolution.is_native:
        native = native_transposed_workspace if convolution.transposed else native_workspace
        return native(convolution.shape) + convolution.ordered_weight
    if not convolution.transposed and (gemm := convolution.gemm.forward):
        return convolution.ordered_weight + max(gemm, convolution.output)
    scratch, output = convolution.scratch.forward, convolution.output
    if convolution.transposed and convolution.shape.is_strided:  # made with channels last, and copied twice
        upstream = convolution.input + convolution.padded_weight + scratch
        return convolution.ordered_weight + max(upstream, 2 * output)
    operands = convolution.blocked_input + convolution.blocked_weight + scratch
    is_deep_depthwise = convolution.shape.is_depthwise and len(convolution.shape.kernel) == 3
    copied_back = convolution.blocked_output * (2 if is_deep_depthwise else 1)
    return convolution.ordered_weight + max(operands + convolution.blocked_output - output, copied_back)


def _backward(convolution: _Convolution, to_input: bool, to_weight: bool) -> int:
    """The gradient of the input comes first, then that of the weights; both are made in blocks and copied back."""
    results = (convolution.input if to_input else 0) + (convolution.weight if to_weight else 0)
    if convolution.channels_last:
        return _backward_of_channels_last(convolution, to_input, to_weight)
    if convolution.is_native and convolution.transposed:
        return native_transposed_backward_workspace(convolution.shape) + convolution.ordered_weight
    if convolution.is_native:
        columns = native_backward_workspace(convolution.shape, convolution.weight, to_input, to_weight)
        return columns + convolution.ordered_weight
    input_peak = _input_gradient_peak(convolution) if to_input else 0
    weight_peak = _weight_gradient_peak(convolution) + (convolution.input if to_input else 0) if to_weight else 0
    return convolution.ordered_weight + max(input_peak, weight_peak, results) - results


def _input_gradient_peak(convolution: _Convolution) -> int:
    """That of a strided one is made with channels last, and copied twice."""
    shape, input = convolution.shape, convolution.input
    data = convolution.blocked_gradient
    if convolution.transposed:
        return max(convolution.blocked_output + convolution.padded_weight + data, data + input)
    if gemm := convolution.gemm.to_input:
        return input + max(gemm, input)
    scratch = convolution.scratch.to_input
    if shape.has_strided_gradient:
        copies = input if shape.channels == 1 else 2 * input
        return max(convolution.output + convolution.padded_weight + input + scratch, input + copies)
    return max(convolution.blocked_output + convolution.padded_weight + data + scratch, data + input)


def _weight_gradient_peak(convolution: _Convolution) -> int:
    weight = convolution.weight
    if gemm := convolution.gemm.to_weight:
        return weight + max(gemm, weight)
    operands = convolution.gradient_operands
    return convolution.gradient_weight + max(operands + convolution.scratch.to_weight, weight)


def _backward_of_channels_last(convolution: _Convolution, to_input: bool, to_weight: bool) -> int:
    """Only weights are reordered: their copies are what is taken."""
    if convolution.shape.is_depthwise:
        return convolution.copies if to_weight else convolution.blocked_weight
    ordered = convolution.ordered_weight
    first = (
        ordered + convolution.padded_weight + convolution.scratch.to_input - (convolution.weight if to_weight else 0)
        if to_input
        else 0
    )
    return max(first, ordered + 2 * convolution.weight if to_weight else 0)


def _reordered_operands(convolution: _Convolution, *operands: torch.Tensor) -> int:
    """Operands that are not in the order of the kernel are copied first, for as long as it runs."""
    return sum(
        _bytes(operand)
        for operand in operands
        if not (_is_channels_last(operand) if convolution.channels_last else operand.is_contiguous())
    )


def _per_dimension(value: Any, dims: int) -> tuple[int, ...]:
    numbers = tuple(int(item) for item in value)
    return numbers if len(numbers) == dims else numbers * dims


def _bytes(tensor: torch.Tensor) -> int:
    return int(tensor.numel() * tensor.element_size())


def _is_channels_last(tensor: torch.Tensor) -> bool:
    """Whether channels are last in memory, as torch decides it for its choice of a kernel: also where there is one."""
    return suggested_format(tensor) is not torch.contiguous_format
