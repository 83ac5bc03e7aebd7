"""FLOPs of TensorFlow graphs, each against a count by hand; nothing of Keras is in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget.backends.costs import FlopsCount, total
from pytest_modelbudget.backends.costs.flop_rules import rules_of
from pytest_modelbudget.backends.costs.free import tensorflow as tf_names
from pytest_modelbudget.backends.costs.tf_functions import FunctionGraph, with_input_shapes
from pytest_modelbudget.backends.costs.tf_graph import operators

tf: Any = pytest.importorskip("tensorflow")

ROWS, IMAGE, PRODUCT = (2, 4), (1, 9, 9, 4), 2 * 2 * 4 * 4


def square() -> Any:
    return tf.ones((4, 4))


@tf.function
def inner(x: Any) -> Any:
    return tf.einsum("bi,ij->bj", x, square())


def automatic(x: Any) -> Any:
    """A loop that TensorFlow makes of a `for`."""
    for _ in tf.range(4):
        x = x @ square()
    return x


def counted(x: Any, trips: int) -> Any:
    return tf.while_loop(lambda i, y: i < trips, lambda i, y: (i + 1, y @ square()), (0, x))[1]


def twice_backwards(x: Any) -> Any:
    """A loop that counts down by two."""
    return tf.while_loop(lambda i, y: i > 0, lambda i, y: (i - 2, y @ square()), (9, x))[1]


def unused(x: Any) -> Any:
    tf.matmul(x, square())
    return x + 1


def count(function: Callable[..., Any], *shapes: tuple[int, ...]) -> FlopsCount:
    concrete = tf.function(function).get_concrete_function(*[tf.TensorSpec(shape) for shape in shapes])
    return total(operators(concrete.graph))


@pytest.mark.parametrize(
    ("function", "shape", "expected"),
    [
        pytest.param(lambda x: x @ square(), ROWS, PRODUCT, id="matmul"),
        pytest.param(lambda x: tf.matmul(x, x, transpose_a=True), ROWS, 2 * 16 * 2, id="matmul, transposed"),
        pytest.param(lambda x: tf.matmul(x, x, adjoint_b=True), (3, 5, 4), 3 * 2 * 25 * 4, id="batched matmul"),
        pytest.param(lambda x: tf.einsum("btd,bsd->bts", x, x), (3, 5, 4), 3 * 2 * 25 * 4, id="einsum"),
        pytest.param(lambda x: tf.tensordot(x, square(), 1), (3, 5, 4), 15 * 2 * 16, id="tensordot"),
        pytest.param(lambda x: inner(inner(x)), ROWS, 2 * PRODUCT, id="called functions"),
        pytest.param(lambda x: counted(x, 5), ROWS, 5 * PRODUCT, id="while loop"),
        pytest.param(lambda x: counted(x, 0), ROWS, 0, id="while loop that never runs"),
        pytest.param(twice_backwards, ROWS, 5 * PRODUCT, id="while loop, backwards by two"),
        pytest.param(automatic, ROWS, 4 * PRODUCT, id="for loop"),
        pytest.param(
            lambda x: tf.scan(lambda c, y: c @ square() + y, x, tf.zeros(ROWS)), (7, 2, 4), 7 * PRODUCT, id="scan"
        ),
        pytest.param(lambda x: tf.map_fn(lambda y: y @ square(), x), (7, 2, 4), 7 * PRODUCT, id="map"),
        pytest.param(
            lambda x: tf.vectorized_map(lambda y: y @ square(), x), (7, 2, 4), 7 * PRODUCT, id="vectorized map"
        ),
        pytest.param(
            lambda x: tf.map_fn(lambda y: counted(y, 5), x), (7, 2, 4), 7 * 5 * PRODUCT, id="a loop in a loop"
        ),
        pytest.param(lambda x: tf.nn.conv1d(x, tf.ones((3, 4, 5)), 1, "VALID"), (1, 6, 4), 2 * 4 * 5 * 12, id="conv1d"),
        pytest.param(
            lambda x: tf.nn.conv2d(x, tf.ones((3, 3, 4, 6)), 1, "VALID", dilations=2),
            IMAGE, 2 * 25 * 6 * 36, id="conv2d, dilated",
        ),
        pytest.param(
            lambda x: tf.nn.conv2d(x, tf.ones((3, 3, 2, 6)), 1, "VALID"), IMAGE, 2 * 49 * 6 * 18, id="conv2d, groups"
        ),
        pytest.param(
            lambda x: tf.nn.conv2d_transpose(x, tf.ones((3, 3, 6, 4)), (1, 18, 18, 6), 2),
            IMAGE, 2 * 81 * 4 * 6 * 9, id="transposed",
        ),
        pytest.param(
            lambda x: tf.nn.separable_conv2d(x, tf.ones((3, 3, 4, 1)), tf.ones((1, 1, 4, 6)), [1, 1, 1, 1], "VALID"),
            IMAGE, 2 * 49 * 4 * 9 + 2 * 49 * 4 * 6, id="separable",
        ),
        pytest.param(
            lambda x: tf.nn.conv3d(x, tf.ones((2, 2, 2, 2, 3)), [1] * 5, "VALID"),
            (1, 5, 5, 5, 2), 2 * 64 * 3 * 16, id="conv3d",
        ),
        pytest.param(tf.signal.rfft, (8,), 60, id="fft of 8 real points: 2.5 N log2 N"),
        pytest.param(lambda x: tf.signal.irfft(tf.cast(x, tf.complex64)), (5,), 60, id="and back"),
        pytest.param(lambda x: tf.signal.fft(tf.cast(x, tf.complex64)), (8,), 120, id="of 8 complex ones: 5 N log2 N"),
        pytest.param(lambda x: tf.signal.stft(x, 8, 4), (16,), 3 * 60, id="three frames of 8 points"),
        pytest.param(lambda x: tf.nn.softmax(tf.nn.gelu(x) * 2), ROWS, 0, id="elementwise"),
        pytest.param(unused, ROWS, 0, id="a product that nothing needs"),
        pytest.param(
            lambda x: tf.linalg.triangular_solve(square(), x), (4, 3), 3 * (4 * 5 // 2 + 4 * 3 // 2),
            id="triangular systems: products and divisions, and sums",
        ),
        pytest.param(lambda x: tf.linalg.cholesky_solve(square(), x), (4, 3), 2 * 3 * 16, id="of a Cholesky factor"),
        pytest.param(
            lambda x: tf.raw_ops.BandedTriangularSolve(matrix=tf.ones((2, 4)), rhs=x), (4, 3), 3 * (1 + 3 * 3),
            id="two bands: a division, and three times one with a product and a difference",
        ),
        pytest.param(
            lambda x: tf.nn.ctc_loss(tf.ones((2, 3), tf.int32), x, tf.constant([3, 3]), tf.constant([5, 5])),
            (5, 2, 4), 0, id="CTC loss",
        ),
        pytest.param(
            lambda x: tf.nn.ctc_greedy_decoder(x, tf.constant([5, 5]))[1], (5, 2, 4), 0, id="reading what CTC learned"
        ),
        pytest.param(lambda x: tf.quantization.fake_quant_with_min_max_args(x), ROWS, 0, id="fake quantisation"),
        pytest.param(
            lambda x: tf.matmul(tf.complex(x, x), tf.complex(square(), square())), ROWS, 4 * PRODUCT,
            id="a complex multiply-add is 8",
        ),
        pytest.param(
            lambda x: tf.einsum("btd,bsd->bts", tf.complex(x, x), tf.complex(x, x)), (3, 5, 4), 8 * 3 * 25 * 4,
            id="in an einsum, too",
        ),
        pytest.param(lambda x: tf.complex(x, x) * tf.complex(x, x), ROWS, 0, id="complex, elementwise"),
    ],
)  # fmt: skip
def test_flops_of_a_graph(function: Callable[..., Any], shape: tuple[int, ...], expected: int) -> None:
    """Products, convolutions and transforms are counted as often as they run."""
    assert count(function, shape) == FlopsCount(expected)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        pytest.param(
            lambda x: tf.while_loop(lambda y: tf.reduce_sum(y) < 5.0, lambda y: (y @ square(),), (x,))[0],
            FlopsCount(0, (("StatelessWhile", 1),)),
            id="a loop that values end",
        ),
        pytest.param(
            lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: x @ square(), lambda: (x @ square()) @ square()),
            FlopsCount(PRODUCT, (("StatelessIf", 1),)),
            id="branches that do not cost the same",
        ),
        pytest.param(
            lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: x @ square(), lambda: square()[:2] @ square()),
            FlopsCount(PRODUCT),
            id="branches that do",
        ),
        pytest.param(
            lambda x: tf.linalg.inv(square()) + x[0, 0], FlopsCount(0, (("MatrixInverse", 1),)), id="a solver"
        ),
        pytest.param(
            lambda x: tf.while_loop(lambda i, y: i < 0, lambda i, y: (i + 1, y @ tf.linalg.inv(square())), (0, x))[1],
            FlopsCount(),
            id="a solver in a loop that never runs",
        ),
    ],
)
def test_what_a_graph_does_not_say(function: Callable[..., Any], expected: FlopsCount) -> None:
    """What depends on values, or has no formula, makes a lower bound and is named."""
    assert count(function, ROWS) == expected


class Saved(tf.Module):
    """Products with variables, in a function called from a signature, with an open batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = tf.Variable(tf.ones((4, 5))), tf.Variable(tf.ones((5, 5)))

    @tf.function(input_signature=[tf.TensorSpec([None, 3, 4])])
    def run(self, x: Any) -> Any:
        return tf.map_fn(lambda row: row @ self.second, tf.einsum("btd,de->bte", x, self.first))


def test_an_open_batch_is_counted_at_the_size_it_is_given(tmp_path: Path) -> None:
    """Traced functions, and those read from a file, are counted once more with the sizes of their inputs."""
    from tensorflow.core.protobuf import saved_model_pb2

    module, expected = Saved(), FlopsCount(2 * (2 * 3 * 20 + 2 * 3 * 25))
    graph = module.run.get_concrete_function().graph
    with tf.Graph().as_default():
        given = tf.compat.v1.placeholder(tf.float32, (2, 3, 4))
    body = with_input_shapes(FunctionGraph(graph, graph.inputs, graph.outputs), [given, *graph.inputs[1:]])
    assert total(operators(body.graph, body.outputs)) == expected
    assert total(operators(graph)).uncounted != ()

    tf.saved_model.save(module, str(tmp_path), signatures=module.run)
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((tmp_path / "saved_model.pb").read_bytes())
    signature = saved.meta_graphs[0].signature_def["serving_default"]
    (source,), (target,) = signature.inputs.values(), signature.outputs.values()
    with tf.Graph().as_default() as read:
        given = tf.compat.v1.placeholder(tf.float32, (2, 3, 4))
        outputs = tf.graph_util.import_graph_def(
            saved.meta_graphs[0].graph_def, {source.name: given}, [target.name], name=""
        )
    assert total(operators(read, outputs)) == expected


def test_every_name_is_an_operator() -> None:
    """The tables name operators that TensorFlow has, and none that has a rule."""
    known = {name for name in dir(tf.raw_ops) if name[0].isupper()}
    assert tf_names.ZERO - known == set()
    assert not [name for name in rules_of("tensorflow") if tf_names.costs_nothing(name)]
    for family in tf_names.ZERO_FAMILIES:
        assert any(name.startswith(family) for name in known), family


def test_no_operator_that_multiplies_matrices_is_free() -> None:
    """What looks like a product, a solver or a convolution by its name is not zero by rule."""
    words = ("MatMul", "Matmul", "Conv", "Einsum", "FFT", "Solve", "Cholesky", "Svd", "Qr", "LSTM", "GRU", "RNN", "Dot")
    known = [name for name in dir(tf.raw_ops) if any(word in name for word in words) and "Convert" not in name]
    assert len(known) > 50
    assert [name for name in known if tf_names.costs_nothing(name)] == []
