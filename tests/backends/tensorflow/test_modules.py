"""`tf.Module` objects: rows by the object that holds the variables, outputs and FLOPs of the call as a whole."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent
from typing import Any

import keras
import pytest
import tensorflow as tf

from pytest_modelbudget import ModelBudgetError, Summary, backends, summarize
from pytest_modelbudget.backends import tensorflow as backend
from pytest_modelbudget.backends.tensorflow import graphs
from pytest_modelbudget.backends.tensorflow.build import VariableWithoutValue


class Affine(tf.Module):
    """`x @ w + b`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.w = tf.Variable(lambda: tf.random.normal([inputs, outputs]), name="w")
        self.b = tf.Variable(tf.zeros([outputs]), name="b")

    def __call__(self, x: Any) -> Any:
        return x @ self.w + self.b


class Stack(tf.Module):
    """Layers in a list, a counter, and a table that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [Affine(8, 4), Affine(4, 2)]
        self.step = tf.Variable(0, trainable=False, dtype=tf.int64)
        self.last = {"bias": self.layers[1].b}

    @tf.function
    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


PARAMS = 9 * 4 + 5 * 2 + 1
FLOPS = 2 * (8 * 4 + 4 * 2)


def weights(summary: Summary) -> dict[str, str]:
    return {layer.path: layer.weights_text for layer in summary.layers}


@pytest.mark.parametrize("live", [False, True], ids=["from a builder", "a live object"])
def test_rows_are_the_objects_that_hold_variables(live: bool) -> None:
    """Each variable is in the row of its holder, one that is met again is tied; totals are counted by hand."""
    summary = summarize(Stack() if live else Stack, "float32[B, 8]")
    assert weights(summary) == {
        "stack": "step scalar int64 frozen + last/bias 2",
        "layers/0": "w 8x4 + b 4",
        "layers/1": "w 4x2 + b 2 = stack.last/bias",
    }
    assert [layer.type for layer in summary.layers] == ["Stack", "Affine", "Affine"]
    assert (summary.params, summary.non_trainable_params) == (PARAMS, 1)
    assert summary.flops.value == FLOPS
    assert [str(one) for one in summary.outputs] == ["float32[B, 2]"]


def test_what_a_row_gets_and_costs_is_not_known() -> None:
    """Not 0: nothing of a module's own objects is seen in its graph."""
    rows = summarize(Stack, "float32[B, 8]").layers
    assert [(row.calls, row.flops, row.outputs) for row in rows] == [(None, None, ())] * 3


def test_without_inputs_only_the_variables_are_known() -> None:
    """FLOPs are unknown, with the reason."""
    summary = summarize(Stack)
    assert summary.params == PARAMS
    assert (summary.flops.value, summary.outputs) == (None, ())
    assert "no `inputs:` are declared" in summary.notes[0]


def test_flops_follow_the_declared_sizes() -> None:
    """The batch and any named dimension."""
    entry = summarize(Stack(), "float32[32, 8]")
    assert entry.flops.value == 32 * FLOPS


class Repeated(tf.Module):
    """One layer, as often as an argument says."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Affine(8, 8)

    def __call__(self, x: Any, n: Any) -> Any:
        return tf.while_loop(lambda at, x: at < n, lambda at, x: (at + 1, self.layer(x)), (0, x))[1]


@pytest.mark.parametrize(("written", "times"), [("int32[] = 3", 3), ("int32[] = B", 1)])
def test_a_declared_value_is_known_in_the_graph(written: str, times: int) -> None:
    """A loop runs as often as the value says, or the size of a dimension (B is 1)."""
    assert summarize(Repeated, ["float32[2, 8]", written]).flops.value == times * 2 * 2 * 8 * 8


def test_without_a_value_a_loop_is_a_lower_bound() -> None:
    """Not as often as some made-up number."""
    assert summarize(Repeated, ["float32[2, 8]", "int32[]"]).flops.is_lower_bound


class Attention(tf.Module):
    """One head over a sequence, with a branch and a loop in Python."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(name="head")
        self.qkv = tf.Variable(tf.zeros([3, width, width]))

    def __call__(self, x: Any, causal: bool = False) -> Any:
        q, k, v = (tf.einsum("btw,wo->bto", x, self.qkv[at]) for at in range(3))
        scores = tf.nn.softmax(tf.matmul(q, k, transpose_b=True))
        if causal:
            scores = tf.linalg.band_part(scores, -1, 0)
        return tf.matmul(scores, v)


def test_a_call_is_converted_as_tf_function_converts_it() -> None:
    """The operators, their names and what they wait for are those of TensorFlow's own trace."""

    def repeated(x: Any) -> Any:
        for _ in tf.range(3):
            x = helper(x)
        return x

    def helper(x: Any) -> Any:
        return tf.nn.relu(x * variable) if tf.reduce_sum(x) > 0 else x

    def operators(graph: Any) -> list[tuple[str, str, list[str]]]:
        made = [op for op in graph.get_operations() if op.type not in ("Placeholder", "Identity")]
        return [(op.type, op.name, sorted(item.name for item in op.control_inputs)) for op in made]

    def step(x: Any) -> Any:
        return repeated(helper(x))

    variable, spec = tf.Variable(tf.ones([4])), tf.TensorSpec([2, 4])
    expected = tf.function(step).get_concrete_function(spec).graph
    assert operators(graphs.trace_graph(graphs.converted(step), ((spec,), {}))) == operators(expected)


def test_named_dimensions_and_plain_arguments() -> None:
    """Outputs are named after the inputs they follow; products over two tensors are counted."""
    with backend.global_state_restored(), backend.abstract():
        module = Attention()
    inputs = {"args": ["float32[B, 6, 16]"], "kwargs": {"causal": True}}
    summary = summarize(module, inputs)
    assert [str(one) for one in summary.outputs] == ["float32[B, 6, 16]"]
    assert summary.flops.value == 3 * 2 * 6 * 16 * 16 + 2 * 2 * 6 * 6 * 16


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a module calls layers that run on TensorFlow")
def test_a_keras_layer_in_a_module_is_one_row() -> None:
    """Keras 3 layers are no `tf.Module`; their weights count all the same."""

    class Mixed(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(4)
            self.dense.build((None, 8))
            self.scale = tf.Variable(1.0)

        def __call__(self, x: Any) -> Any:
            return self.dense(x) * self.scale

    summary = summarize(Mixed(), "float32[B, 8]")
    assert (summary.params, summary.flops.value) == (9 * 4 + 1, 2 * 8 * 4)
    assert weights(summary) == {"mixed": "scale scalar", "dense": "kernel 8x4 + bias 4"}


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a module calls layers that run on TensorFlow")
def test_a_recurrent_layer_in_a_module_is_counted_for_every_step() -> None:
    """5 steps of 4 gates of 3 units over 8 inputs and 3 states; its weights have the layer's own names."""

    class Recurrent(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = keras.layers.LSTM(3)

        def __call__(self, x: Any) -> Any:
            return self.lstm(x)

    summary = summarize(Recurrent, "float32[B, 5, 8]")
    assert (summary.params, summary.flops.value) == (4 * 3 * (8 + 3 + 1), 5 * 2 * 4 * 3 * (8 + 3))
    assert not summary.flops.is_lower_bound
    assert summary.layers[0].weights[0].name == "lstm_cell/kernel"


def test_variables_have_no_memory_and_builders_may_run_what_they_built() -> None:
    """Inside, a call on numbers works; outside, nothing has changed."""

    def build() -> Any:
        module = Affine(512, 512)
        assert isinstance(module.w, VariableWithoutValue)
        module(tf.zeros([1, 512]))
        module.w.assign(tf.ones([512, 512]))
        return module

    assert summarize(build, "float32[B, 512]").params == 513 * 512
    assert type(tf.Variable(1.0)).__name__ == "ResourceVariable"


def test_a_module_that_makes_its_variables_when_it_is_called() -> None:
    """A builder's module is called for its summary; the user's own is left as it is."""

    class Late(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w: Any = None

        def __call__(self, x: Any) -> Any:
            if self.w is None:
                self.w = tf.Variable(tf.zeros([8, 4]))
            return x @ self.w

    assert summarize(Late, "float32[B, 8]").params == 32
    live = Late()
    with pytest.raises(ModelBudgetError, match="makes variables when it is called; call it once before"):
        summarize(live, "float32[B, 8]")
    assert live.w is None


def test_a_variable_that_no_object_of_the_module_holds() -> None:
    """It is used and would not be counted: an error, not a smaller number."""
    hidden = [tf.Variable(tf.zeros([8, 4]), name="hidden")]

    class Outside(tf.Module):
        @tf.function
        def __call__(self, x: Any) -> Any:
            return x @ hidden[0]

    with pytest.raises(ModelBudgetError, match="uses the variable 'hidden:0', which no object of the module holds"):
        summarize(Outside(), "float32[B, 8]")


def test_inputs_that_do_not_fit() -> None:
    """The message names the inputs, the cause follows."""
    with pytest.raises(ModelBudgetError, match=r"the module cannot be called with 0 float32\[B, 9\]"):
        summarize(Stack(), "float32[B, 9]")


def test_a_variable_without_a_fixed_shape() -> None:
    """It has no size to count."""

    class Open(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = tf.Variable(tf.zeros([2]), shape=[None])

    with pytest.raises(ModelBudgetError, match=r"open\.w has no fixed shape"):
        summarize(Open())


SCRIPT = """
    import resource
    import tensorflow as tf
    from pytest_modelbudget import summarize

    class Layers(tf.Module):
        def __init__(self, count, width):
            super().__init__()
            self.kernels = [tf.Variable(lambda: tf.random.normal([width, width])) for _ in range(count)]

        def __call__(self, x):
            for kernel in self.kernels:
                x = x @ kernel
            return x

    summarize(lambda: Layers(2, 8), "float32[B, 8]")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    summary = summarize(lambda: Layers(100, 8192), "float32[B, 8192]", name="huge")
    print(summary.params, summary.flops.value, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="reads the peak memory of a process")
def test_a_huge_module_takes_little_memory() -> None:
    """6.7 B params (25 GiB) within 200 MiB."""
    done = subprocess.run([sys.executable, "-c", dedent(SCRIPT)], capture_output=True, text=True, check=True)
    params, flops, mebibytes = map(int, done.stdout.split())
    assert params == 100 * 8192 * 8192
    assert flops == 2 * params
    assert mebibytes < 200


def test_tensorflow_keeps_these_names() -> None:
    """What is used of TensorFlow and is not public is still there."""
    from pytest_modelbudget.backends.tensorflow import private

    for name in private.__all__:
        assert callable(getattr(private, name)), f"{name} of TensorFlow {tf.__version__}"
    for name in ("_read_variable_op", "sparse_read", "gather_nd", "assign", "assign_add", "assign_sub"):
        assert callable(getattr(private.UninitializedVariable, name)), f"{name} of TensorFlow {tf.__version__}"


def test_a_release_without_them_leaves_keras_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend then owns nothing; a Keras model is counted as ever."""
    monkeypatch.setitem(sys.modules, "tensorflow.python.framework.func_graph", None)
    for name in [name for name in sys.modules if name.startswith("pytest_modelbudget.backends.tensorflow")]:
        monkeypatch.delitem(sys.modules, name)
    names = [one.FRAMEWORK for one in backends.loaded()]
    assert "tensorflow" not in names
    assert "keras" in names
