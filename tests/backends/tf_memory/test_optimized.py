"""What TensorFlow's optimizer of graphs leaves of a traced function."""

from __future__ import annotations

from typing import Any

import pytest

tf = pytest.importorskip("tensorflow")

from pytest_modelbudget.backends.tf_memory.optimized import optimized  # noqa: E402


def kinds(function: Any, *specs: Any) -> list[str]:
    """The kinds of operators that are left, without inputs, constants and results."""
    graph = tf.function(function, autograph=False).get_concrete_function(*specs).graph
    left = optimized(graph).graph.get_operations()
    return [op.type for op in left if op.type not in ("Placeholder", "Const", "Identity", "_Retval")]


def test_a_layer_is_one_operator() -> None:
    """A product, its bias and its activation are fused, with the size they were traced with."""
    layer = lambda x, w, b: tf.nn.relu(tf.nn.bias_add(x @ w, b))  # noqa: E731
    specs = [tf.TensorSpec(sizes, tf.float32) for sizes in ((8, 4), (4, 16), (16,))]
    assert kinds(layer, *specs) == ["_FusedMatMul"]
    body = optimized(tf.function(layer, autograph=False).get_concrete_function(*specs).graph)
    assert [tensor.shape.as_list() for tensor in body.outputs] == [[8, 16]]
    assert len(body.inputs) == 3


def test_what_is_known_is_folded() -> None:
    """Sizes of static shapes are constants."""
    assert kinds(lambda x: tf.reshape(tf.sin(x), (tf.size(x),)), tf.TensorSpec((2, 3))) == ["Sin", "Reshape"]


def test_a_loop_is_opened_and_its_body_has_the_sizes_it_was_traced_with() -> None:
    """What enters it, its body, and what it gives back."""
    loop = tf.function(
        lambda x: tf.while_loop(lambda i, y: i < 5, lambda i, y: (i + 1, tf.sin(y) * y), (0, x)), autograph=False
    )
    body = optimized(loop.get_concrete_function(tf.TensorSpec((4,))).graph)
    made = {op.type: op for op in body.graph.get_operations()}
    assert {"Enter", "Merge", "LoopCond", "Switch", "Sin", "NextIteration", "Exit"} <= set(made)
    assert made["Mul"].outputs[0].shape == (4,)
