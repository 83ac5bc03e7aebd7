"""What TensorFlow's executor has alive at once: peaks of small graphs, counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pytest_modelbudget.planner import Inference, InitialStorage

tf = pytest.importorskip("tensorflow")

from pytest_modelbudget.backends.tf_memory.liveness import GraphMemory, graph_memory  # noqa: E402
from pytest_modelbudget.backends.tf_memory.plans import plan_of_graph  # noqa: E402

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
    """Ten rounds, of which each keeps what the gradient needs."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        step = lambda index, value: (index + 1, tf.sin(value))  # noqa: E731
        _, y = tf.while_loop(lambda index, value: index < 10, step, (0, x), maximum_iterations=10)
    return tape.gradient(y, x)


def rows(x: Any, count: int = 10) -> Any:
    """The sines of the rows of a tensor, one each round, as a tensor."""
    read = tf.TensorArray(tf.float32, count, element_shape=(256,)).unstack(x)
    written = tf.TensorArray(tf.float32, count, element_shape=(256,))
    step = lambda index, made: (index + 1, made.write(index, tf.sin(read.read(index))))  # noqa: E731
    return tf.while_loop(lambda index, made: index < count, step, (0, written))[1].stack()


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


LOOPS: dict[str, tuple[Callable[..., Any], Any, float]] = {
    # nine results that cosines of the way back need (the first is of the input), and the last result, or the gradient
    "what its gradient needs, for each round": (loop, floats(256), 9 + 1),
    # copies of ten rows, ten sines, and what they are stacked to
    "a copy of each row, then each result twice": (rows, floats(10, 256), 10 + 10),
    "a value that is written over each round": (
        lambda x: tf.while_loop(lambda i, y: i < 50, lambda i, y: (i + 1, tf.sin(y)), (0, tf.exp(x)))[1],
        floats(256),
        1,
    ),
}


@pytest.mark.parametrize(("function", "spec", "rows_alive"), LOOPS.values(), ids=LOOPS)
def test_loops_by_hand(function: Callable[..., Any], spec: Any, rows_alive: float) -> None:
    """As many rows as are alive at once beside the input, each loop round by round."""
    found = memory(function, spec)
    numbers = 512  # counters and what tells the sizes of lists
    assert ROW + rows_alive * ROW <= found.trace.peak() <= ROW + rows_alive * ROW + numbers
    assert not any((found.open_loops, found.open_sizes, found.without_rule))


def test_a_loop_that_values_end_is_named() -> None:
    """A sum that has to reach a value: what is held is all that is known of the peak."""
    halve = lambda value: tf.while_loop(lambda y: tf.reduce_sum(y) > 1, lambda y: (y / 2,), (tf.exp(value),))  # noqa: E731
    found = memory(halve, floats(256))
    assert (found.open_loops, found.too_long_loops) == (("while",), ())
    planned = plan_of_graph(found, Inference(), xla=False)
    assert (planned.peak_bytes, planned.low_bytes) == (None, ROW)
    assert "only values would tell how often the loop while runs" in planned.notes[0]


def test_a_loop_of_too_many_operators_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """How often it runs is known, and more than is followed."""
    monkeypatch.setattr("pytest_modelbudget.backends.tf_memory.rounds.MOST_NODES", 50)
    found = memory(loop, floats(256))
    assert found.too_long_loops == ("while",)
    planned = plan_of_graph(found, Inference(), xla=False)
    assert (planned.peak_bytes, planned.low_bytes) == (None, ROW)
    assert "the rounds of the loop while are more than" in planned.notes[0]


def test_volumes_that_the_cache_sizes_are_named() -> None:
    """As many as fit the last cache are unfolded at a time: with 32 MiB of it up to 33 % more than all else was measured."""

    def gradient(x: Any) -> Any:
        with tf.GradientTape() as tape:
            weights = tf.zeros((3, 3, 3, 1, 2))
            tape.watch(weights)
            y = tf.nn.conv3d(tf.reshape(x, (1, 4, 8, 8, 1)), weights, [1] * 5, "SAME")
        return tape.gradient(y, weights)

    planned = plan_of_graph(memory(gradient, floats(256)), Inference(), xla=False)
    assert planned.peak_bytes is None
    assert "Conv3DBackpropFilterV2 unfold" in planned.notes[0]


def test_graphs_that_are_fused_for_onednn_are_told() -> None:
    """As a note on a peak, and where a fused kernel has no rule, as what to do about it; plain kernels are not to blame."""
    cure = "TF_ENABLE_ONEDNN_OPTS=0"
    known = replace(memory(lambda x: tf.sin(x), floats(256)), for_onednn=False)
    for fused in (False, True):
        plain = plan_of_graph(replace(known, for_onednn=fused), Inference(), xla=False)
        assert plain.peak_bytes == 2 * ROW
        assert any(cure in note for note in plain.notes) == fused
        for kind in ("_FusedBatchNormEx", "Unique"):
            unknown = replace(known, for_onednn=fused, without_rule={kind: ROW})
            reason = plan_of_graph(unknown, Inference(), xla=False).notes[0]
            assert (cure in reason) == (fused and kind == "_FusedBatchNormEx")


def test_what_is_not_known_is_named() -> None:
    """Outputs that only values would size, and kernels that no table lists."""
    assert set(memory(lambda x: tf.unique(tf.cast(x, tf.int32)).y, floats(256)).open_sizes) == {"Unique"}
    assert "Unique" in memory(lambda x: tf.unique(tf.cast(x, tf.int32)).y, floats(256)).without_rule
