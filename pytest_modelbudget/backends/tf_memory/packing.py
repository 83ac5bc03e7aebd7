"""What Eigen's products on two threads take beside their operands and results: blocks of the operands, packed.

TensorFlow's executor does not see this memory. Read in `TensorContractionThreadPool.h`, and held against what real
products wrote. Products inside forward convolutions have no rule here.
"""

from __future__ import annotations

from math import prod
from typing import Any

from pytest_modelbudget.backends.tf_memory.nodes import bytes_of
from pytest_modelbudget.backends.tf_memory.scratch import images_unfolded

_LONGEST_BLOCK = 320
"""Elements of the inner axis that several threads pack at a time (`evaluateProductBlockingSizesHeuristic`)."""

_BLOCKS_AT_ONCE = 2
"""Blocks of the inner axis that are packed and not used up (`EvalParallelContext`: one less than its three stages)."""

_LEAST_PRODUCTS = 1 << 18
"""Multiplications below which one thread does them all, and packs little."""

_LEAST_INNER_PRODUCTS = 128 * 128
"""Multiplications of one product of a batch up to which threads share out the batch (`kMaxCostOuterParallelism`)."""

_TOO_FEW_ROWS = 1024
"""Rows up to which a product packs them all, in products of 64 to 4096 rows that were measured.

More are shared out among the threads, each of which packs small blocks of its own (`parallelize_by_sharding_dim_only`).
"""


def packed(op: Any) -> int:
    """Bytes that a product inside the kernel of `op` packs, 0 where there is none or no rule for it."""
    if not all(tensor.shape.is_fully_defined() for tensor in (*op.inputs, *op.outputs)):
        return 0
    if op.type in ("MatMul", "_FusedMatMul"):
        left, right = op.inputs[0].shape.as_list(), op.inputs[1].shape.as_list()
        rows, inner = reversed(left) if op.get_attr("transpose_a") else left
        columns = right[0 if op.get_attr("transpose_b") else 1]
        counted_rows = rows if rows <= _TOO_FEW_ROWS else 0
        return _blocks(rows, inner, columns, op.inputs[0].dtype.size, counted_rows)
    if op.type in ("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"):
        return _of_batch(op)
    return _of_filters(op) if op.type == "Conv2DBackpropFilter" else 0


def _of_batch(op: Any) -> int:
    """Products of a batch run one after the other, each on all threads, but for small ones (`LaunchBatchMatMul`)."""
    left, right = op.inputs[0].shape.as_list()[-2:], op.inputs[1].shape.as_list()[-2:]
    rows, inner = reversed(left) if op.get_attr("adj_x") else left
    columns = right[0 if op.get_attr("adj_y") else 1]
    if rows * inner * columns <= _LEAST_INNER_PRODUCTS:
        return 0
    return _blocks(rows, inner, columns, op.inputs[0].dtype.size, rows if rows <= _TOO_FEW_ROWS else 0)


def _of_filters(op: Any) -> int:
    """The gradient of filters adds up products of columns and gradients, each of which it makes apart first."""
    image, weights = op.inputs[0].shape, op.outputs[0].shape
    gradient = op.inputs[2].shape.as_list()
    inner = images_unfolded(op, image, weights, of_input=False) * prod(gradient[1:-1])
    window = prod(weights.as_list()[:-1])
    blocks = _blocks(window, inner, gradient[-1], op.inputs[2].dtype.size, window)
    return (bytes_of(op.outputs[0]) or 0) + blocks


def _blocks(rows: int, inner: int, columns: int, item: int, counted_rows: int) -> int:
    """Bytes of the blocks along the inner axis of a product, of all columns and as many rows as are packed at once."""
    if 1 in (rows, columns) or rows * columns * inner < _LEAST_PRODUCTS:  # products with a vector pack nothing
        return 0
    blocks = -(-inner // _LONGEST_BLOCK)
    block = -(-inner // blocks)
    return int(min(blocks, _BLOCKS_AT_ONCE) * block * (counted_rows + columns) * item)
