"""What TensorFlow's kernels take on a CPU beside their operands and results, while they run.

Read in the source of TensorFlow 2.21, and held against real runs of each kernel. Not counted: what products pack of
their operands (`packing`), and a few rows for each thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from pytest_modelbudget.backends.tf_memory.nodes import bytes_of

_WORKING_SET = 30 << 20
"""Bytes of images that the gradients of a convolution unfold at a time: `target_working_set_size`."""

_LEAST_FOR_A_THREAD = 1 << 18
"""Bytes of one image from which on all threads work on one: `min_thread_work_unit_size`, for two threads."""

_INDEX_BYTES = 8


def scratch(op: Any, spare: Sequence[bool]) -> int:
    """Bytes that the kernel of `op` takes beside its operands and results, where a rule is known, else 0.

    `spare` says which of the operands nothing else will read.
    """
    rule = _RULES.get(op.type)
    return rule(op, spare) if rule is not None else 0


def _places_of_maxima(op: Any, spare: Sequence[bool]) -> int:
    """The gradient of a maximum pooling finds the places of the maxima anew.

    `MaxPoolingGradOp` has the pooled tensor once more, over the operand where it may, and an index for each element.
    """
    pooled = _bytes(op.inputs[1])
    return pooled // int(op.inputs[1].dtype.size) * _INDEX_BYTES + (0 if spare[1] else pooled)


def _columns_for_filters(op: Any, spare: Sequence[bool]) -> int:
    return _columns(op, op.inputs[0].shape, op.outputs[0].shape, of_input=False)


def _columns_for_input(op: Any, spare: Sequence[bool]) -> int:
    return _columns(op, op.outputs[0].shape, op.inputs[1].shape, of_input=True)


def _columns_of_one_volume(op: Any, spare: Sequence[bool]) -> int:
    """Of more than one, products of blocks are made that unfold nothing beforehand."""
    return _columns_for_input(op, spare) if op.inputs[2].shape.rank and op.inputs[2].shape[0] == 1 else 0


def _columns(op: Any, image: Any, weights: Any, *, of_input: bool) -> int:
    """Bytes of the columns into which gradients of convolutions unfold images; channels are the last axis, as on a CPU.

    They ask for room for as many images as fit a working set, of which a small batch leaves a part without a byte
    written: not counted.
    """
    if not (image.is_fully_defined() and weights.is_fully_defined() and op.inputs[2].shape.is_fully_defined()):
        return 0
    positions, window = prod(op.inputs[2].shape.as_list()[1:-1]), prod(weights.as_list()[:-1])
    return int(images_unfolded(op, image, weights, of_input=of_input) * positions * window * op.inputs[2].dtype.size)


def images_unfolded(op: Any, image: Any, weights: Any, *, of_input: bool) -> int:
    """How many images a gradient of a convolution unfolds at a time: as many as fit a working set.

    So `Conv2DCustomBackpropFilterOp` and `Conv2DCustomBackpropInputOp`.
    """
    gradient, item = op.inputs[2].shape.as_list(), int(op.inputs[2].dtype.size)
    positions, window, filters = prod(gradient[1:-1]), prod(weights.as_list()[:-1]), gradient[-1]
    unit = positions * filters + window * filters + positions * window
    batch = int(image.as_list()[0])
    if of_input and (batch == 1 or unit // 2 >= _LEAST_FOR_A_THREAD // item):
        return 1
    return int(min(batch, (_WORKING_SET // item + unit - 1) // unit))


def _bytes(tensor: Any) -> int:
    return bytes_of(tensor) or 0


_RULES: dict[str, Callable[[Any, Sequence[bool]], int]] = {
    "MaxPoolGrad": _places_of_maxima,
    "MaxPoolGradV2": _places_of_maxima,
    "Conv2DBackpropFilter": _columns_for_filters,
    "Conv2DBackpropInput": _columns_for_input,
    "Conv3DBackpropInputV2": _columns_of_one_volume,
    "MirrorPadGrad": lambda op, spare: _bytes(op.inputs[0]),
    "RGBToHSV": lambda op, spare: _bytes(op.inputs[0]) // 3,
}
