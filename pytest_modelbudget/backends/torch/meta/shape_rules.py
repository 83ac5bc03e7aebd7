"""What the commonest operators make of contiguous operands, known without asking torch.

On meta torch answers with Python code: the first answer imports its compiler, a second or more, and each later one
takes up to a few milliseconds. A rule here answers for the plain case alone (operands of one floating dtype, sizes that
fit, most often contiguous) and leaves every other, and every error message, to torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pytest_modelbudget.backends.torch.kernels.operand_copies import suggested_format

TensorMeta = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Shape, strides and dtype of a result."""

InferredMetas = tuple[TensorMeta, ...] | None
"""Each result, or None: ask torch."""

_ELEMENTWISE = """
    add.Tensor sub.Tensor mul.Tensor div.Tensor add.Scalar mul.Scalar div.Scalar neg.default exp.default sqrt.default
    rsqrt.default relu.default gelu.default silu.default sigmoid.default tanh.default hardswish.default
    hardsigmoid.default leaky_relu.default hardtanh.default sin.default cos.default pow.Tensor_Scalar
"""


def infer(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> InferredMetas:
    """The results of `func`, when a rule knows them; every tensor among `args` is on meta."""
    rule = _RULES.get(f"{func._schema.name.removeprefix('aten::')}.{func._overloadname}")
    if rule is None or not kwargs.keys() <= _KNOWN_KWARGS or not _are_plain(args[: _TYPED_OPERANDS.get(rule)]):
        return None
    memory = kwargs.get("memory_format")
    if memory is not None:
        return _contiguous(*args) if rule is _clone and memory is torch.contiguous_format else None
    return rule(*args)


_KNOWN_KWARGS = {"approximate", "alpha", "memory_format"}


def _are_plain(args: tuple[Any, ...]) -> bool:
    """Whether the operands are ordinary tensors of one floating dtype, without empty dimensions."""
    operands = [item for value in args for item in (value if type(value) is list else (value,))]
    operands = [item for item in operands if isinstance(item, torch.Tensor)]
    return (
        bool(operands)
        and operands[0].dtype.is_floating_point
        and all(
            type(item) in (torch.Tensor, torch.nn.Parameter) and item.dtype == operands[0].dtype for item in operands
        )
        and all(item.numel() > 0 for item in operands)
    )


def _contiguous_meta(shape: Sequence[int], dtype: torch.dtype) -> TensorMeta:
    return _dense_meta(shape, range(len(shape))[::-1], dtype)


def _elementwise(*operands: Any) -> InferredMetas:
    """Operands broadcast; the result is laid out as they are, the first of them above all."""
    tensors = [operand for operand in operands if isinstance(operand, torch.Tensor)]
    if not all(isinstance(operand, torch.Tensor) or type(operand) in (int, float) for operand in operands):
        return None
    first = tensors[0]
    if all(operand.shape == first.shape for operand in tensors):
        if all(operand.is_contiguous() for operand in tensors):
            return (_contiguous_meta(first.shape, first.dtype),)
        if all(operand.stride() == first.stride() for operand in tensors) and _is_dense(first):
            return ((tuple(first.shape), first.stride(), first.dtype),)
    try:
        shape = torch.broadcast_shapes(*[operand.shape for operand in tensors])
    except RuntimeError:
        return None
    strides = [_broadcast_strides(operand, shape) for operand in tensors]
    return (_dense_meta(shape, _axis_order(shape, strides), first.dtype),)


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether its elements fill its memory, each once."""
    filled = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != filled:
                return False
            filled *= size
    return True


def _broadcast_strides(tensor: torch.Tensor, shape: Sequence[int]) -> list[int]:
    """Strides of a tensor that is broadcast to `shape`, 0 where it is repeated."""
    missing = len(shape) - tensor.dim()
    strides = [
        0 if size == 1 and shape[missing + axis] != 1 else tensor.stride(axis) for axis, size in enumerate(tensor.shape)
    ]
    return [0] * missing + strides


def _axis_order(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> list[int]:
    """The axes from the innermost outwards, sorted as torch sorts them: by insertion, and only where strides tell."""
    order = list(reversed(range(len(shape))))
    for start in range(1, len(order)):
        position = start
        for before in reversed(range(start)):
            comparison = _compare_axes(order[before], order[position], shape, strides)
            if comparison > 0:
                order[before], order[position] = order[position], order[before]
                position = before
            elif comparison < 0:
                break
    return order


def _compare_axes(inner: int, outer: int, shape: Sequence[int], strides: Sequence[Sequence[int]]) -> int:
    """1 when two axes are in the wrong order, -1 when in the right one, 0 when no operand says."""
    for operand_strides in strides:
        if operand_strides[inner] == 0 or operand_strides[outer] == 0:
            continue
        if operand_strides[inner] != operand_strides[outer]:
            return 1 if operand_strides[inner] > operand_strides[outer] else -1
        if shape[inner] > shape[outer]:
            return 1
    return 0


def _dense_meta(shape: Sequence[int], order: Sequence[int], dtype: torch.dtype) -> TensorMeta:
    strides, filled = [0] * len(shape), 1
    for axis in order:
        strides[axis] = filled
        filled *= shape[axis]
    return tuple(shape), tuple(strides), dtype


def _contiguous(data: torch.Tensor, *others: Any) -> InferredMetas:
    return (_contiguous_meta(data.shape, data.dtype),)


def _like_first(data: torch.Tensor, *others: Any) -> InferredMetas:
    """As its first operand, when that is contiguous."""
    return _contiguous(data) if data.is_contiguous() else None


def _clone(data: torch.Tensor) -> InferredMetas:
    return ((tuple(data.shape), data.stride(), data.dtype),) if _is_dense(data) else None


def _softmax(data: torch.Tensor, dim: int, other: Any = None) -> InferredMetas:
    """`other` is whether half precision becomes float32, or a dtype; torch 2.6 knows the first for float16 alone."""
    if not -data.dim() <= dim < data.dim():
        return None
    if other is True and data.dtype in (torch.float16, torch.bfloat16):
        return (_contiguous_meta(data.shape, torch.float32),)
    return _like_first(data) if not other else None


def _cat(parts: list[torch.Tensor], dim: int = 0) -> InferredMetas:
    first = parts[0]
    if not -first.dim() <= dim < first.dim() or not all(part.is_contiguous() for part in parts):
        return None
    dim %= first.dim()
    other_sizes = {(*part.shape[:dim], *part.shape[dim + 1 :]) for part in parts}
    if len(other_sizes) > 1 or any(part.dim() != first.dim() for part in parts):
        return None
    total = sum([part.shape[dim] for part in parts])
    return (_contiguous_meta((*first.shape[:dim], total, *first.shape[dim + 1 :]), first.dtype),)


def _mm(left: torch.Tensor, right: torch.Tensor) -> InferredMetas:
    if left.dim() != 2 or right.dim() != 2 or left.shape[1] != right.shape[0]:
        return None
    return (_contiguous_meta((left.shape[0], right.shape[1]), left.dtype),)


def _addmm(bias: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> InferredMetas:
    return _mm(left, right) if right.dim() == 2 and bias.shape == right.shape[1:] else None


def _bmm(left: torch.Tensor, right: torch.Tensor) -> InferredMetas:
    fits = left.dim() == right.dim() == 3 and left.shape[0] == right.shape[0] and left.shape[2] == right.shape[1]
    return (_contiguous_meta((*left.shape[:2], right.shape[2]), left.dtype),) if fits else None


def _grouped_mm(
    left: torch.Tensor, right: torch.Tensor, ends: torch.Tensor | None = None, bias: Any = None, dtype: Any = None
) -> InferredMetas:
    """Products of groups of rows, columns or matrices; up to 2.14 torch refuses float32 here, which its kernels take.

    Rows of the result are padded to 16 bytes.
    """
    batched = left.dim() == right.dim() == 3
    if bias is not None or dtype is not None or (ends is None) != batched or not _is_aligned_to_16_bytes(left, right):
        return None
    if left.dim() == right.dim() == 2:
        assert ends is not None
        shape = (*ends.shape, left.shape[0], right.shape[1])
    elif batched:
        shape = (*left.shape[:2], right.shape[2]) if left.shape[0] == right.shape[0] else ()
    else:
        shape = left.shape[-2], right.shape[-1]
    if not shape or left.shape[-1] != right.shape[-2]:
        return None
    step = 16 // left.element_size()
    padded = -(-shape[-1] // step) * step
    return ((shape, (shape[-2] * padded, padded, 1)[-len(shape) :], left.dtype),)


def _is_aligned_to_16_bytes(*matrices: torch.Tensor) -> bool:
    """Whether rows or columns begin at multiples of 16 bytes, as the kernels want them."""
    strides = [sorted(matrix.stride()[-2:]) for matrix in matrices if matrix.dim() in (2, 3)]
    size = matrices[0].element_size()
    return len(strides) == len(matrices) and all(inner == 1 and outer * size % 16 == 0 for inner, outer in strides)


def _convolution(
    data: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: list[int], padding: list[int],
    dilation: list[int], transposed: bool, output_padding: list[int], groups: int,
) -> InferredMetas:  # fmt: skip
    axes = data.dim() - 2
    if axes < 1 or weight.dim() != data.dim():
        return None
    formats = [suggested_format(operand) for operand in (data, weight)]
    channels_last = any(layout is not torch.contiguous_format for layout in formats)
    if not all(
        operand.is_contiguous(memory_format=layout) for operand, layout in zip((data, weight), formats, strict=True)
    ):
        return None
    channels = weight.shape[:1] if transposed else (weight.shape[1] * groups,)
    filters = weight.shape[1] * groups if transposed else weight.shape[0]
    if data.shape[1:2] != tuple(channels) or weight.shape[0] % groups:
        return None
    if bias is not None and tuple(bias.shape) != (filters,):
        return None
    windows = data.shape[2:], weight.shape[2:], stride, padding, dilation
    sizes = _spread_sizes(*windows, output_padding) if transposed else _window_counts(*windows)
    if not sizes:
        return None
    shape = data.shape[0], filters, *sizes
    if not channels_last:
        return (_contiguous_meta(shape, data.dtype),)
    # The kernels of CPUs and GPUs keep channels last; torch's own answer on meta does not.
    return (_dense_meta(shape, (1, *range(axes + 1, 1, -1), 0), data.dtype),)


def _spread_sizes(
    sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], output_padding: Sequence[int],
) -> list[int]:  # fmt: skip
    """The sizes of what a transposed convolution makes; empty where an argument is not written for each axis."""
    arguments = (kernel, stride, padding, dilation, output_padding)
    if any(len(argument) != len(sizes) for argument in arguments):
        return []
    spread = [
        (size - 1) * step - 2 * pad + gap * (length - 1) + 1 + more
        for size, length, step, pad, gap, more in zip(sizes, *arguments, strict=True)
    ]
    return spread if min(spread) > 0 else []


def _window_counts(
    sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """The places of a window along each axis; empty when it does not fit."""
    if any(len(argument) not in (1, len(sizes)) for argument in (kernel, stride, padding, dilation)):
        return []
    kernel, stride, padding, dilation = (
        list(argument) * len(sizes) if len(argument) == 1 else list(argument)
        for argument in (kernel, stride, padding, dilation)
    )
    if min(stride) < 1:
        return []
    counts = [
        (size + 2 * pad - gap * (length - 1) - 1) // step + 1
        for size, length, step, pad, gap in zip(sizes, kernel, stride, padding, dilation, strict=True)
    ]
    return counts if min(counts) > 0 else []


def _max_pool2d(
    data: torch.Tensor, kernel: list[int], stride: list[int] | None = None, padding: list[int] | None = None,
    dilation: list[int] | None = None, ceil_mode: bool = False,
) -> InferredMetas:  # fmt: skip
    if ceil_mode or data.dim() != 4 or not data.is_contiguous():
        return None
    padding, dilation = padding or [0], dilation or [1]
    if 2 * max(padding) > min(kernel):
        return None
    sizes = _window_counts(data.shape[2:], kernel, stride or kernel, padding, dilation)
    shape = (*data.shape[:2], *sizes)
    return (_contiguous_meta(shape, data.dtype), _contiguous_meta(shape, torch.int64)) if sizes else None


def _batch_norm(
    data: torch.Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
) -> InferredMetas:
    if data.dim() < 2 or not data.is_contiguous() or data.dtype not in (torch.float32, torch.float64):
        return None
    if mean is None or var is None:
        return None
    if any(statistic is not None and statistic.shape != data.shape[1:2] for statistic in (weight, bias, mean, var)):
        return None
    statistics = _contiguous_meta(data.shape[1:2], data.dtype)
    return _contiguous_meta(data.shape, data.dtype), statistics, statistics


def _layer_norm(data: torch.Tensor, shape: list[int], weight: Any, bias: Any, eps: float) -> InferredMetas:
    leading = data.dim() - len(shape)
    if leading < 0 or data.dtype not in (torch.float32, torch.float64):
        return None
    affine_shapes = [list(tensor.shape) for tensor in (weight, bias) if tensor is not None]
    if any(tensor != list(shape) for tensor in (list(data.shape[leading:]), *affine_shapes)):
        return None
    statistics = _contiguous_meta((*data.shape[:leading], *(1 for _ in shape)), data.dtype)
    return _contiguous_meta(data.shape, data.dtype), statistics, statistics


def _layer_norm_backward(
    gradient: torch.Tensor, data: torch.Tensor, shape: list[int], mean: Any, deviation: Any, weight: Any, bias: Any,
    wanted: list[bool],
) -> InferredMetas:  # fmt: skip
    """The kernels' gradients are contiguous, however those that come in lie; torch's answer on meta is not."""
    if not all(wanted) or weight is None or bias is None or gradient.shape != data.shape:
        return None
    affine = _contiguous_meta(weight.shape, data.dtype)
    return _contiguous_meta(data.shape, data.dtype), affine, affine


def _mean(data: torch.Tensor, dim: list[int] | None, keepdim: bool = False) -> InferredMetas:
    if not dim or not data.is_contiguous() or not all(-data.dim() <= axis < data.dim() for axis in dim):
        return None
    reduced = {axis % data.dim() for axis in dim}
    if len(reduced) != len(dim):
        return None
    shape = [1 if axis in reduced else size for axis, size in enumerate(data.shape) if keepdim or axis not in reduced]
    return (_contiguous_meta(shape, data.dtype),)


def _ctc_loss(
    scores: torch.Tensor, targets: torch.Tensor, lengths: Any, target_lengths: Any, blank: int = 0, infinity: Any = None
) -> InferredMetas:
    """A loss for each sequence, and for its gradient the table of (steps, states), two states a label and one.

    Scores are `(steps, batch, classes)`. Torch has no answer on meta.
    """
    longest = max(target_lengths, default=0) if isinstance(target_lengths, (list, tuple)) else targets.shape[-1]
    if scores.dim() != 3 or (targets.dim() != 2 and not isinstance(target_lengths, (list, tuple))):
        return None
    steps, batch, _ = scores.shape
    return _contiguous_meta((batch,), scores.dtype), _contiguous_meta((batch, steps, 2 * longest + 1), scores.dtype)


def _ctc_loss_backward(gradient: torch.Tensor, scores: torch.Tensor, *others: Any) -> InferredMetas:
    """The gradient of the scores; torch has no answer on meta where lengths are tensors."""
    return _contiguous(scores)


_TYPED_OPERANDS: dict[Callable[..., InferredMetas], int] = {_grouped_mm: 2, _ctc_loss: 1, _ctc_loss_backward: 2}
"""How many operands of a rule are of its one dtype, where not all are."""

_RULES: dict[str, Callable[..., InferredMetas]] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    "clone.default": _clone,
    "tril.default": _like_first,
    "triu.default": _like_first,
    "_softmax.default": _softmax,
    "_log_softmax.default": _softmax,
    "_safe_softmax.default": _softmax,
    "cat.default": _cat,
    "mm.default": _mm,
    "addmm.default": _addmm,
    "bmm.default": _bmm,
    "_grouped_mm.default": _grouped_mm,
    "convolution.default": _convolution,
    "max_pool2d_with_indices.default": _max_pool2d,
    "native_batch_norm.default": _batch_norm,
    "native_layer_norm.default": _layer_norm,
    "native_layer_norm_backward.default": _layer_norm_backward,
    "mean.dim": _mean,
    "_ctc_loss.default": _ctc_loss,
    "_ctc_loss.Tensor": _ctc_loss,
    "_ctc_loss_backward.default": _ctc_loss_backward,
    "_ctc_loss_backward.Tensor": _ctc_loss_backward,
}
