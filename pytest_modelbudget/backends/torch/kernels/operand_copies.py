"""Copies that kernels of the CPU make of their operands before they begin: in another order of memory, or dtype.

Kernels of pooling, interpolation and norms work in one order, with channels last or plain, which one operand decides
(`suggest_memory_format` in torch); what lies otherwise is copied, a result too. So it stands in torch's sources below
`aten/src/ATen/native`: `cpu/MaxPoolKernel.cpp`, `cpu/AvgPoolKernel.cpp`, `cpu/UpSampleKernel.cpp`, `SoftMax.cpp`,
`layer_norm.cpp`, `group_norm.cpp`, `AveragePool3d.cpp`. Pointwise kernels take operands of one dtype
(`TensorIterator.cpp`: on the CPU they are promoted by temporaries), sums those of the result's. Products of batches of
matrices in bfloat16 are oneDNN's, which reads them one behind the other, plain or transposed (`mkldnn/Matmul.cpp`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
_GENERIC_FROM = 129  # height and width of an interpolated map, together, from which plain ones are read as they are
_IMAGE_CHANNELS = 3
_LEAST_PRODUCT = 400  # multiplications of a matrix, from which it goes to BLAS


@dataclass(frozen=True, slots=True)
class _Order:
    """The arguments that a kernel reads in one order, that which decides it (without one it is plain), and whether
    the result is made in it. Where gaps count, a part of a tensor with channels last is read as plain."""

    operands: tuple[int, ...] = (0,)
    decided_by: int | None = 0
    result: bool = False
    gaps_count: bool = False

    def of(self, args: tuple[Any, ...]) -> torch.memory_format:
        """The order for a call."""
        if self.decided_by is None:
            return torch.contiguous_format
        tensor = args[self.decided_by]
        memory_format = suggested_format(tensor)
        has_gaps = not tensor.is_contiguous(memory_format=memory_format)
        return torch.contiguous_format if self.gaps_count and has_gaps else memory_format


_ORDERS = {
    "aten.max_pool2d_with_indices": _Order(),
    "aten.max_pool3d_with_indices": _Order(),
    "aten.max_pool2d_with_indices_backward": _Order((0, 7), result=True),
    "aten.max_pool3d_with_indices_backward": _Order((0, 7), result=True),
    "aten.avg_pool2d": _Order(),
    "aten.avg_pool2d_backward": _Order(result=True),
    "aten.avg_pool3d": _Order(decided_by=None),
    "aten.avg_pool3d_backward": _Order(decided_by=None),
    "aten._adaptive_avg_pool2d": _Order(),
    "aten.replication_pad2d": _Order(),
    "aten.reflection_pad2d": _Order(),
    "aten.upsample_nearest2d_backward": _Order(result=True, gaps_count=True),
    "aten.upsample_bilinear2d_backward": _Order(result=True, gaps_count=True),
    "aten.native_group_norm": _Order(),
    "aten.native_group_norm_backward": _Order((0, 1), decided_by=1),
    "aten.native_layer_norm": _Order(decided_by=None),
    "aten.native_layer_norm_backward": _Order((0, 1), decided_by=None),
    "aten._softmax": _Order(decided_by=None),
    "aten._log_softmax": _Order(decided_by=None),
    "aten._softmax_backward_data": _Order((0, 1), decided_by=None),
    "aten._log_softmax_backward_data": _Order((0, 1), decided_by=None),
}
_PROMOTING = """aten.add aten.sub aten.rsub aten.mul aten.div aten.pow aten.maximum aten.minimum aten.remainder
aten.where aten.eq aten.ne aten.lt aten.le aten.gt aten.ge"""
_PROMOTED = frozenset(_PROMOTING.split())
_PROMOTED_IN_PLACE = frozenset(("aten.add_", "aten.sub_", "aten.mul_", "aten.div_"))
_REDUCED = frozenset(("aten.sum", "aten.prod", "aten.mean", "aten.cumsum"))


def copied_bytes(op: str, args: tuple[Any, ...], out: Any) -> int:
    """Bytes of the copies that a kernel makes, which are there until it ends; 0 for one without a rule."""
    if (order := _ORDERS.get(op)) is not None:
        return _bytes_in_other_order(order, args, out)
    if op in ("aten.upsample_nearest2d", "aten.upsample_bilinear2d"):
        return _interpolation_bytes(args[0], out)
    if op == "aten.native_batch_norm_backward":
        return _batch_norm_bytes(args[0], args[1], args[9][0])
    if op in _PROMOTED:
        return _promoted_bytes(args)
    if op in _PROMOTED_IN_PLACE:  # the result is a temporary, too, until it is written to the first operand
        return _promoted_bytes(args[:2], results=(args[0],))
    if op in _REDUCED and isinstance(out, torch.Tensor) and args[0].dtype is not out.dtype:
        return _elements(args[0]) * int(out.element_size())
    return 0


def _bytes_in_other_order(order: _Order, args: tuple[Any, ...], out: Any) -> int:
    layout = order.of(args)
    tensors = [args[index] for index in order.operands] + ([out] if order.result else [])
    return sum(_bytes(tensor) for tensor in tensors if not tensor.is_contiguous(memory_format=layout))


def suggested_format(tensor: torch.Tensor) -> torch.memory_format:
    """Channels last, where strides say so, or plain: torch's `suggest_memory_format`, which tells it of views too."""
    memory_format = _FORMATS.get(tensor.dim())
    if memory_format is None or not _strides_have_channels_last(tensor):
        return torch.contiguous_format
    return memory_format


def _strides_have_channels_last(tensor: torch.Tensor) -> bool:
    """Whether strides grow from channels by width, height (and depth) to samples, with gaps or without."""
    axes = (1, *range(tensor.dim() - 1, 1, -1), 0)
    smallest = 0
    for axis in axes:
        size, stride = tensor.shape[axis], tensor.stride(axis)
        if size == 0 or stride < smallest or (axis == 0 and smallest == tensor.stride(1)):
            return False
        smallest = stride * max(size, 1)
    return bool(tensor.stride(1))


def _interpolation_bytes(data: torch.Tensor, out: torch.Tensor) -> int:
    """Small maps, and those with channels last, are interpolated with channels last."""
    is_last = data.is_contiguous(memory_format=torch.channels_last) and data.shape[1] > _IMAGE_CHANNELS
    if not is_last and sum(out.shape[-2:]) >= _GENERIC_FROM:
        return 0
    return sum(_bytes(tensor) for tensor in (data, out) if not tensor.is_contiguous(memory_format=torch.channels_last))


def _batch_norm_bytes(gradient: torch.Tensor, data: torch.Tensor, to_input: bool) -> int:
    """The gradient of operands in one order is made twice, and the first one is let go of: `Normalization.cpp`."""
    layout = suggested_format(data)
    in_order = all(tensor.is_contiguous(memory_format=layout) for tensor in (gradient, data))
    return _bytes(data) if to_input and in_order and suggested_format(gradient) == layout else 0


def batched_product_bytes(*operands: torch.Tensor) -> int:
    """The same for `aten.bmm`: of bfloat16, on a CPU with AVX-512, all matrices, of others one at a time.

    A batch that lies neither plain nor transposed is multiplied matrix by matrix, and small ones without a copy; one
    that is to be conjugated is written out: `LinearAlgebra.cpp`, `bmm_out_or_baddbmm_`.
    """
    if operands[0].dtype is torch.bfloat16:
        return sum(_bytes(tensor) for tensor in operands if not (tensor.is_contiguous() or tensor.mT.is_contiguous()))
    left, right = operands
    conjugated = sum(_bytes(tensor) for tensor in operands if tensor.is_conj())
    is_small = left.shape[1] * left.shape[2] * right.shape[2] < _LEAST_PRODUCT
    if is_small or left.shape[0] < 2 or all(map(_is_matrix, operands)):
        return conjugated
    return conjugated + sum(_bytes(tensor[0]) for tensor in operands if not _is_matrix(tensor))


def _is_matrix(tensor: torch.Tensor) -> bool:
    """Whether each matrix of a batch lies plain or transposed, with gaps between rows or without."""
    (rows, columns), (outer, inner) = tensor.shape[-2:], tensor.stride()[-2:]
    return bool((inner == 1 and outer >= columns) or (outer == 1 and inner >= rows))


def transform_bytes(op: str, data: torch.Tensor, dims: list[int]) -> int:
    """The same for Fourier transforms, which are made along the last dimensions, with MKL: `mkl/SpectralOps.cpp`.

    One back to real numbers along several transforms all but the last by themselves first.
    """
    if op == "aten._fft_c2r" and len(dims) > 1:
        return 2 * _bytes(data)
    last = set(range(data.dim() - len(dims), data.dim()))
    return 0 if {dim % data.dim() for dim in dims} == last else _bytes(data)


def _promoted_bytes(args: tuple[Any, ...], results: tuple[torch.Tensor, ...] = ()) -> int:
    operands = [arg for arg in args if isinstance(arg, (torch.Tensor, bool, int, float))][-2:]
    if len(operands) < 2:
        return 0
    dtype = torch.result_type(*operands)
    tensors = [item for item in (*operands, *results) if isinstance(item, torch.Tensor) and item.dtype is not dtype]
    return sum(_elements(tensor) * int(dtype.itemsize) for tensor in tensors)


def _bytes(tensor: torch.Tensor) -> int:
    return _elements(tensor) * int(tensor.element_size())


def _elements(tensor: torch.Tensor) -> int:
    return int(tensor.numel())
