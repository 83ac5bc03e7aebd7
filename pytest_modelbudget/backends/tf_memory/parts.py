"""Kernels that give back memory of their input, or make new memory, by what they are asked for.

Parts along the first axis are the input's own memory where they begin at an address that kernels may compute on; what
changes nothing (a slice of all, a transposition that moves no two sizes) is the input. So in `slice_op.cc`,
`strided_slice_op.cc`, `split_op.cc`, `unpack_op.cc`, `transpose_op.cc`, `reduction_ops_common.h` and others of
TensorFlow 2.21.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

ALIGNMENT = 64
"""Bytes of which an address is a multiple where kernels compute (`EIGEN_MAX_ALIGN_BYTES`)."""

_PASSED_ON = frozenset(["Enter", "Identity"])


def shared_input(op: Any) -> int | None:
    """The input whose memory all outputs of `op` are, None where they are made anew or sizes are open."""
    rule = _RULES.get(op.type)
    if rule is None:
        return None
    place, shares = rule
    tensor = op.inputs[place]
    known = tensor.shape.is_fully_defined() and tensor.shape.rank and tensor.shape.num_elements()
    return place if known and shares(op, tensor.shape.as_list()) else None


def _constant(op: Any, place: int) -> list[int] | None:
    """The integers of a constant input, flat."""
    source = op.inputs[place].op
    while source.type in _PASSED_ON:
        source = source.inputs[0].op
    if source.type != "Const":
        return None
    tf = sys.modules["tensorflow"]  # a graph cannot exist before its framework is imported
    return [int(value) for value in tf.make_ndarray(source.get_attr("value")).ravel()]


def _row_bytes(tensor: Any) -> int:
    """Bytes of what is at one place of the first axis."""
    return int(prod(tensor.shape.as_list()[1:])) * int(tensor.dtype.size)


def _of_rows(op: Any, shape: Sequence[int]) -> bool:
    """Whether parts along the first axis, of whole numbers of rows, all begin at good addresses."""
    return _row_bytes(op.inputs[_RULES[op.type][0]]) % ALIGNMENT == 0


def _unpacks(op: Any, shape: Sequence[int]) -> bool:
    return op.get_attr("axis") in (0, -len(shape)) and _of_rows(op, shape)


def _splits(op: Any, shape: Sequence[int], axis_place: int) -> bool:
    axis = _constant(op, axis_place)
    if len(op.outputs) == 1:
        return True
    return axis is not None and axis[0] % len(shape) == 0 and _of_rows(op, shape)


def _slices(op: Any, shape: Sequence[int]) -> bool:
    begin, sizes = _constant(op, 1), _constant(op, 2)
    if begin is None or sizes is None:
        return False
    sizes = [length - start if size == -1 else size for start, size, length in zip(begin, sizes, shape, strict=True)]
    return _is_whole_rows(op.inputs[0], begin[0], sizes[0]) and sizes[1:] == list(shape[1:])


def _slices_by_strides(op: Any, shape: Sequence[int]) -> bool:
    """One index, or one range with stride 1, of the first axis; or a range of all."""
    begin, end, strides = (_constant(op, place) for place in (1, 2, 3))
    if begin is None or end is None or strides is None or set(strides) != {1}:
        return False
    masks = {name: op.get_attr(f"{name}_mask") for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")}
    if masks["ellipsis"] or masks["new_axis"] or masks["shrink_axis"] & ~1:
        return False
    whole = all(
        (masks["begin"] >> axis & 1 or begin[axis] == 0) and (masks["end"] >> axis & 1 or end[axis] >= shape[axis])
        for axis in range(1, len(begin))
    )
    start = 0 if masks["begin"] & 1 else begin[0] % shape[0]
    if masks["shrink_axis"]:
        count = 1
    else:
        stop = shape[0] if masks["end"] & 1 else min(end[0] if end[0] >= 0 else end[0] + shape[0], shape[0])
        count = stop - start
    return whole and _is_whole_rows(op.inputs[0], start, count)


def _is_whole_rows(tensor: Any, start: int, count: int) -> bool:
    return (start, count) == (0, tensor.shape[0]) or _row_bytes(tensor) % ALIGNMENT == 0


def _keeps_order(op: Any, shape: Sequence[int]) -> bool:
    """Whether a transposition leaves all sizes but 1 in their order."""
    order = _constant(op, 1)
    moved = [] if order is None else [axis for axis in order if shape[axis] != 1]
    return order is not None and moved == sorted(moved)


def _reduces_nothing(op: Any, shape: Sequence[int]) -> bool:
    axes = _constant(op, 1)
    return axes is not None and all(shape[axis] == 1 for axis in axes)


def _same_shape(op: Any, shape: Sequence[int]) -> bool:
    result = op.outputs[0].shape
    return bool(result.is_fully_defined()) and result.as_list() == list(shape)


def _same_dtype(op: Any, shape: Sequence[int]) -> bool:
    return bool(op.inputs[0].dtype == op.outputs[0].dtype)


_RULES: dict[str, tuple[int, Callable[[Any, Sequence[int]], bool]]] = {
    "Unpack": (0, _unpacks),
    "Split": (1, lambda op, shape: _splits(op, shape, 0)),
    "SplitV": (0, lambda op, shape: _splits(op, shape, 2)),
    "Slice": (0, _slices),
    "StridedSlice": (0, _slices_by_strides),
    "Transpose": (0, _keeps_order),
    "Cast": (0, _same_dtype),
    **dict.fromkeys(("BroadcastTo", "Tile", "Pad"), (0, _same_shape)),
    **dict.fromkeys(("Sum", "Mean", "Prod", "Max", "Min", "All", "Any"), (0, _reduces_nothing)),
    "Pack": (0, lambda op, shape: len(op.inputs) == 1),
}
"""By kind of operator the input that may be shared, and whether it is, by the operator and the input's sizes."""
