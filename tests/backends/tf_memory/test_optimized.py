"""What TensorFlow's optimizer of graphs leaves of a traced function."""

from __future__ import annotations

from typing import Any

import pytest

tf = pytest.importorskip("tensorflow")

from pytest_modelbudget.backends.tf_memory.function_names import names_in_function  # noqa: E402
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


def test_operators_are_called_what_tensorflow_calls_them_in_a_function() -> None:
    """Arguments, results, and what has the name of one of them, by TensorFlow's own definition of the function."""

    def called(x: Any, y: Any) -> Any:
        return tf.identity(x, name="Out/1"), tf.identity(y, name="out_1"), tf.add(x, y, name="x_data")

    specs = [tf.TensorSpec((), tf.float32, name) for name in ("X/Data", "2y")]
    concrete = tf.function(called, autograph=False).get_concrete_function(*specs)
    names, signature = names_in_function(concrete.graph), concrete.function_def.signature
    arguments = [names.of_nodes.get(tensor.op.name, tensor.op.name) for tensor in concrete.graph.inputs]
    assert arguments == [argument.name for argument in signature.input_arg]
    assert names.of_results == [f"{argument.name}_RetVal" for argument in signature.output_arg]
    body = [op.name for op in concrete.graph.get_operations() if op.type != "Placeholder"]
    assert [names.of_nodes.get(name, name) for name in body] == [node.name for node in concrete.function_def.node_def]


def test_sizes_of_inputs_are_known_to_the_optimizer() -> None:
    """Sums of equal sizes around a convolution without padding are collapsed, which needs them."""

    def sums(x: Any, w: Any, b: Any) -> Any:
        left, right = (tf.nn.conv2d(x, w, 1, "VALID") * number + b * number for number in (2.0, 3.0))
        return tf.nn.relu(left + right)

    specs = [tf.TensorSpec(sizes, tf.float32) for sizes in ((8, 8, 8, 4), (1, 1, 4, 4), (4,))]
    assert kinds(sums, *specs).count("AddN") == 2
