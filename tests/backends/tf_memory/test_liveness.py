"""What TensorFlow's executor has alive at once: peaks of small graphs, counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_modelbudget.planner import InitialStorage

tf = pytest.importorskip("tensorflow")

from pytest_modelbudget.backends.tf_memory.liveness import GraphMemory, graph_memory  # noqa: E402

ROW = 256 * 4
"""Bytes of a tensor of 256 floats."""


def memory(function: Callable[..., Any], *specs: Any) -> GraphMemory:
    """What the graph of `function` takes."""
    graph = tf.function(function, autograph=False).get_concrete_function(*specs).graph
    return graph_memory(graph, [InitialStorage(0, ROW, "input")], lambda name: ("", "forward"))


def floats(*shape: int) -> Any:
    """A tensor of floats."""
    return tf.TensorSpec(shape, tf.float32)


def loop(x: Any) -> Any:
    """Ten rounds, of which each keeps the square that the gradient needs."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        step = lambda index, value: (index + 1, tf.sin(value))  # noqa: E731
        _, y = tf.while_loop(lambda index, value: index < 10, step, (0, x), maximum_iterations=10)
    return tape.gradient(y, x)


CASES: dict[str, tuple[Callable[..., Any], list[Any], int]] = {
    "one writes over the other": (lambda x: tf.tanh(tf.exp(tf.sin(x))), [floats(256)], 1),
    "an input is never written over": (lambda x: tf.sin(x), [floats(256)], 1),
    "what is read later stays": (lambda x: tf.sin(y := tf.exp(x)) + y, [floats(256)], 2),
    "read twice by one": (lambda x: (y := tf.exp(x)) @ y, [floats(16, 16)], 2),
    "views take nothing": (lambda x: tf.sin(tf.reshape(tf.exp(x), (16, 16))), [floats(256)], 1),
    "a product is made anew": (lambda x: tf.exp(x) @ tf.ones((16, 16)), [floats(16, 16)], 2),
}


@pytest.mark.parametrize(("function", "specs", "rows"), CASES.values(), ids=CASES)
def test_peaks_by_hand(function: Callable[..., Any], specs: list[Any], rows: int) -> None:
    """The input, and as many tensors of its size as are alive at once."""
    found = memory(function, *specs)
    assert found.trace.peak() == ROW + rows * ROW
    assert not found.without_rule
    assert not found.open_sizes


def test_the_gradient_of_scores_is_written_over_them() -> None:
    """Cross entropy of 4 rows of 64 scores: the scores, over which their gradient goes, and 4 losses."""

    def entropy(x: Any) -> Any:
        with tf.GradientTape() as tape:
            scores = tf.exp(x)
            tape.watch(scores)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.zeros(4, tf.int32), scores)
        return tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(features=scores, labels=tf.zeros(4, tf.int32)), loss[:0]

    found = memory(entropy, floats(4, 64))
    assert 2 * ROW <= found.trace.peak() <= 3 * ROW + 64


def test_a_loop_piles_up_what_its_gradient_needs() -> None:
    """Ten rounds keep ten tensors of 256 floats until the gradient has used them."""
    found = memory(loop, floats(256))
    assert 11 * ROW < found.trace.peak() < 15 * ROW
    assert found.piled
    assert not memory(lambda x: tf.sin(x), floats(256)).piled


def test_what_is_not_known_is_named() -> None:
    """Outputs that only values would size, and kernels that no table lists."""
    assert set(memory(lambda x: tf.unique(tf.cast(x, tf.int32)).y, floats(256)).open_sizes) == {"Unique"}
    assert "Unique" in memory(lambda x: tf.unique(tf.cast(x, tf.int32)).y, floats(256)).without_rule
