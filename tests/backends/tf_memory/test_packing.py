"""What products pack of their operands, against sums by hand."""

from __future__ import annotations

import pytest

tf = pytest.importorskip("tensorflow")

from pytest_modelbudget.backends.tf_memory.packing import packed  # noqa: E402


@pytest.mark.parametrize(
    ("left", "right", "turned", "size"),
    [
        pytest.param((8, 192, 192), (192, 8000), False, 192 * (192 + 8000) * 4, id="one of the batch at a time"),
        pytest.param((8, 64, 640), (8, 512, 640), True, 2 * 320 * (64 + 512) * 4, id="two blocks of the inner axis"),
        pytest.param((512, 16, 32), (512, 32, 32), False, 0, id="small ones, whose batch is shared out"),
    ],
)
def test_products_of_batches(left: tuple[int, ...], right: tuple[int, ...], turned: bool, size: int) -> None:
    """Rows and columns of one product, times the blocks of the inner axis that are packed at once."""
    with tf.Graph().as_default():
        operands = [tf.compat.v1.placeholder(tf.float32, shape) for shape in (left, right)]
        product = tf.raw_ops.BatchMatMulV2(x=operands[0], y=operands[1], adj_y=turned)
    assert packed(product.op) == size


@pytest.mark.parametrize(
    ("left", "right", "size"),
    [
        pytest.param((2048, 784), (784, 1024), 2 * 264 * (2048 + 1024) * 4, id="both, whose blocks are of 264 of 784"),
        pytest.param((4096, 784), (784, 1024), 264 * (2 * 1024 + 2 * 192) * 4, id="22 blocks of rows: two of a thread"),
        pytest.param((1536, 192), (192, 8000), 192 * 8000 * 4, id="rows in one piece are read where they are"),
        pytest.param((4096, 256), (256, 10), 0, id="a few columns are read where they are"),
        pytest.param((64, 32), (32, 32), 0, id="one thread makes small ones"),
    ],
)
def test_products(left: tuple[int, ...], right: tuple[int, ...], size: int) -> None:
    """Blocks of operands that are packed at once; real products wrote as much within a twentieth."""
    with tf.Graph().as_default():
        operands = [tf.compat.v1.placeholder(tf.float32, shape) for shape in (left, right)]
        product = tf.raw_ops.MatMul(a=operands[0], b=operands[1])
    assert packed(product.op) == size
