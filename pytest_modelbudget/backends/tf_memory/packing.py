"""What kernels of TensorFlow pack of the operands of the products inside of them, on two threads.

TensorFlow's executor does not see this memory. Which products a kernel makes was read in `matmul_op_impl.h`,
`conv_ops_impl.h` and `conv_grad_*_ops.cc` of TensorFlow 2.21, and held against what real kernels wrote; what a product
packs is in `contraction`.
"""

from __future__ import annotations

from math import prod
from typing import Any

from pytest_modelbudget.backends.tf_memory.contraction import Direct, packed_bytes
from pytest_modelbudget.backends.tf_memory.nodes import bytes_of
from pytest_modelbudget.backends.tf_memory.scratch import images_unfolded

_LEAST_INNER_PRODUCTS = 128 * 128
"""Multiplications of one product of a batch up to which threads share out the batch (`kMaxCostOuterParallelism`)."""

_PRODUCTS = frozenset(["MatMul", "_FusedMatMul"])
_PRODUCTS_OF_BATCHES = frozenset(["BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"])
_CONVOLUTIONS = frozenset(["Conv2D", "_FusedConv2D"])
_GRADIENTS = frozenset(["Conv2DBackpropFilter", "Conv2DBackpropInput"])


def packed(op: Any) -> int:
    """Bytes that products inside the kernel of `op` pack, 0 where there is none or no rule for it."""
    kinds = (_PRODUCTS, _PRODUCTS_OF_BATCHES, _CONVOLUTIONS, _GRADIENTS)
    if not any(op.type in kind for kind in kinds):
        return 0
    if not all(tensor.shape.is_fully_defined() for tensor in (*op.inputs, *op.outputs)):
        return 0
    if op.type in _PRODUCTS:
        return _of_matrices(op, op.get_attr("transpose_a"), op.get_attr("transpose_b"))
    if op.type in _PRODUCTS_OF_BATCHES:
        return _of_batch(op)
    if op.type in _CONVOLUTIONS:
        return _of_convolution(op)
    return _of_filters(op) if op.type == "Conv2DBackpropFilter" else _of_images(op)


def _of_matrices(op: Any, left_turned: bool, right_turned: bool, *, plain: bool = True) -> int:
    """One product of the last two axes; those of a batch are parts of tensors, which are never read where they are."""
    left, right = op.inputs[0].shape.as_list()[-2:], op.inputs[1].shape.as_list()[-2:]
    rows, inner = reversed(left) if left_turned else left
    columns = right[0 if right_turned else 1]
    directs: dict[tuple[bool, bool], Direct] = {(False, False): "both", (False, True): "left", (True, False): "right"}
    direct = directs.get((left_turned, right_turned), "") if plain else ""
    return packed_bytes(rows, inner, columns, op.inputs[0].dtype.size, direct)


def _of_batch(op: Any) -> int:
    """Products of a batch run one after the other, each on all threads, but for small ones (`LaunchBatchMatMul`)."""
    turned = op.get_attr("adj_x"), op.get_attr("adj_y")
    batch = prod(op.outputs[0].shape.as_list()[:-2])
    inner = op.inputs[0].shape.as_list()[-2 if turned[0] else -1]
    if batch > 1 and prod(op.outputs[0].shape.as_list()[-2:]) * inner <= _LEAST_INNER_PRODUCTS:
        return 0
    return _of_matrices(op, *turned, plain=batch == 1)


def _of_convolution(op: Any) -> int:
    """The patches of all images times the filters; images as they are where each filter covers one position.

    In `LaunchGeneric`. Groups of channels, which are made one after the other, have no rule here.
    """
    image, filters, result = (tensor.shape.as_list() for tensor in (op.inputs[0], op.inputs[1], op.outputs[0]))
    if op.get_attr("data_format") != b"NHWC" or image[-1] != filters[-2]:
        return 0
    positions, window = prod(result[:-1]), prod(filters[:-1])
    as_they_are = prod(filters[:-2]) == 1 and set(op.get_attr("strides")) == {1}
    return packed_bytes(positions, window, filters[-1], op.inputs[0].dtype.size, "both" if as_they_are else "right")


def _of_filters(op: Any) -> int:
    """The gradient of filters adds up products of columns and gradients, each of which it makes apart first."""
    image, weights = op.inputs[0].shape, op.outputs[0].shape
    gradient = op.inputs[2].shape.as_list()
    inner = images_unfolded(op, image, weights, of_input=False) * prod(gradient[1:-1])
    blocks = packed_bytes(prod(weights.as_list()[:-1]), inner, gradient[-1], op.inputs[2].dtype.size, "right")
    return (bytes_of(op.outputs[0]) or 0) + blocks


def _of_images(op: Any) -> int:
    """The gradient of one image at a time, where all threads work on it: gradients times the turned filters."""
    image, weights = op.outputs[0].shape, op.inputs[1].shape
    if images_unfolded(op, image, weights, of_input=True) > 1:
        return 0
    gradient = op.inputs[2].shape.as_list()
    window = prod(weights.as_list()[:-1])
    return packed_bytes(prod(gradient[1:-1]), gradient[-1], window, op.inputs[2].dtype.size, "left")
