"""Models of tf_keras: the same rows as the same model in Keras 3, and no memory for weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pytest_modelbudget import ModelBudgetError, ModelEntry, Summary, summarize
from pytest_modelbudget.backends.tensorflow.build import VariableWithoutValue
from pytest_modelbudget.engine.run import summarize_entry
from tests.backends.keras import hostile_files as hostile

tf_keras = pytest.importorskip("tf_keras")
legacy = pytest.importorskip("pytest_modelbudget.backends.tensorflow.legacy")


def convolutional(k: Any) -> Any:
    x = k.Input((16, 16, 3), name="image")
    y = k.layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    y = k.layers.DepthwiseConv2D(3, padding="same")(y)
    z = k.layers.SeparableConv2D(4, 3, padding="same")(y)
    z = k.layers.BatchNormalization()(k.layers.Add()([y, z]))
    z = k.layers.Conv2DTranspose(2, 3, strides=2)(z)
    return k.Model(x, k.layers.Dense(2)(k.layers.GlobalAveragePooling2D()(z)))


def recurrent(k: Any) -> Any:
    L = k.layers
    return k.Sequential(
        [
            k.Input((5, 8)),
            L.LSTM(3, return_sequences=True),
            L.Bidirectional(L.GRU(2, return_sequences=True)),
            L.TimeDistributed(L.Dense(4)),
            L.SimpleRNN(2),
        ]
    )


def shared(k: Any) -> Any:
    left, right = k.Input((8,), name="left"), k.Input((8,), name="right")
    tower = k.Sequential([k.Input((8,)), k.layers.Dense(4), k.layers.Dense(4)], name="tower")
    both = k.layers.Concatenate()([tower(left), tower(right)])
    return k.Model([left, right], k.layers.Dense(1, name="score")(both))


def attending(k: Any) -> Any:
    x = k.Input((6, 8), name="tokens")
    y = k.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    return k.Model(x, k.layers.LayerNormalization()(k.layers.Add()([x, y])))


def embedding(k: Any) -> Any:
    return k.Sequential(
        [k.Input((7,), dtype="int32"), k.layers.Embedding(100, 16), k.layers.Flatten(), k.layers.Dense(1)]
    )


def frozen(k: Any) -> Any:
    model = k.Sequential([k.Input((8,)), k.layers.Dense(4), k.layers.Dense(2)])
    model.layers[0].trainable = False
    return model


BUILDERS = [convolutional, recurrent, shared, attending, embedding, frozen]


def rows(summary: Summary) -> list[Any]:
    return [
        (row.path, row.type, row.output_text, row.params, row.trainable_params, row.connected_to, row.calls, row.flops)
        for row in summary.layers
        if row.type != "InputLayer"
    ]


def shapes(summary: Summary) -> list[Any]:
    """Weights by name; Keras 3 gave the kernel of a depthwise convolution another one."""
    return [
        [(weight.name.replace("depthwise_kernel", "kernel"), weight.shape) for weight in row.weights]
        for row in summary.layers
        if row.weights
    ]


@pytest.mark.parametrize("live", [False, True], ids=["from a builder", "a live model"])
@pytest.mark.parametrize("build", BUILDERS)
def test_rows_are_as_for_keras_3(build: Callable[[Any], Any], live: bool) -> None:
    """Path, type, shapes, params, connections, calls and FLOPs of each row; so are the weights."""

    def old() -> Any:
        return build(tf_keras)

    def new() -> Any:
        return build(keras)

    ours, theirs = summarize(old() if live else old), summarize(new() if live else new)
    assert ours.framework == "tf_keras"
    assert rows(ours) == rows(theirs)
    assert shapes(ours) == shapes(theirs)
    assert (ours.params, ours.trainable_params, ours.flops) == (theirs.params, theirs.trainable_params, theirs.flops)


def test_by_hand() -> None:
    """An LSTM of 3 units over 5 steps of 8 numbers, counted by its formula."""
    summary = summarize(lambda: tf_keras.Sequential([tf_keras.Input((5, 8)), tf_keras.layers.LSTM(3)]))
    assert summary.params == 4 * 3 * (8 + 3 + 1)
    assert summary.flops.value == 5 * 2 * 4 * 3 * (8 + 3)


def test_what_has_no_formula_is_unknown_in_its_row() -> None:
    """Singular values are counted by no rule: their row is not known, and the total is a lower bound."""

    class Singular(tf_keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return tf.linalg.svd(x, compute_uv=False)

    summary = summarize(lambda: tf_keras.Sequential([tf_keras.Input((5, 4)), tf_keras.layers.Dense(3), Singular()]))
    assert [row.flops for row in summary.layers] == [5 * 2 * 4 * 3, None]
    assert summary.flops.uncounted


@pytest.mark.slow
def test_published() -> None:
    """ResNet50 has 25,636,712 params and 3,857,973,248 multiply-adds."""
    summary = summarize(lambda: tf_keras.applications.ResNet50(weights=None))
    assert summary.params == 25_636_712
    assert summary.flops.value == 2 * 3_857_973_248


class Net(tf_keras.Model):
    """A subclassed model that has a metric, and does some work outside its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = tf_keras.layers.Dense(4), tf_keras.layers.Dense(2)
        self.mean = tf_keras.metrics.Mean()
        self.gain = self.add_weight("gain", shape=(4,))

    def call(self, x: Any, training: bool = False) -> Any:
        return self.out(tf.nn.relu(self.hidden(x)) * self.gain + self.hidden(x))


def test_a_subclassed_model() -> None:
    """Its own weights are a row, a metric's are none; a layer that is called twice says so."""
    summary = summarize(Net, "float32[B, 8]")
    assert summary.params == 4 + 9 * 4 + 5 * 2
    assert summary.flops.value == 2 * (2 * 8 * 4 + 4 * 2)
    found = {row.path: (row.calls, row.output_text, row.connected_to) for row in summary.layers}
    assert found["dense"] == (2, "[B, 4]", ())
    assert found["dense_1"] == (1, "[B, 2]", (("dense",),))
    assert [row.type for row in summary.layers] == ["Net", "Dense", "Dense"]


def test_builders_may_train_a_little() -> None:
    """Compiling, building an optimizer and calling the model on numbers allocates nothing and counts nothing."""

    def build() -> Any:
        model = Net()
        model(np.zeros((1, 8), "float32"))
        model.compile("adam", "mse", metrics=["mae"])
        model.optimizer.build(model.trainable_variables)
        assert all(isinstance(one, VariableWithoutValue) for one in model.hidden.weights)
        return model

    assert summarize(build, "float32[B, 8]").params == 50


def test_a_live_model_is_left_as_it_is() -> None:
    """Values, names and policy are untouched, whether or not the call was possible."""
    model = frozen(tf_keras)
    before = [one.copy() for one in model.get_weights()]
    summarize(model)
    with pytest.raises(ModelBudgetError, match="the model has the inputs"):
        summarize(model, ["float32[B, 8]", "float32[B, 8]"])
    assert all((old == new).all() for old, new in zip(before, model.get_weights(), strict=True))
    assert type(tf.Variable(1.0)).__name__ == "ResourceVariable"


def test_names_and_settings_are_as_before() -> None:
    """Inside, names start afresh and settings may be changed; outside, neither shows."""
    first = tf_keras.layers.Dense(1).name
    with legacy.global_state_restored(), legacy.abstract():
        tf_keras.mixed_precision.set_global_policy("mixed_float16")
        tf_keras.backend.set_epsilon(1e-3)
        assert tf_keras.layers.Dense(1).name == "dense"
    following = tf_keras.layers.Dense(1).name
    assert int(following.rpartition("_")[2]) == int(first.rpartition("_")[2] if "_" in first else 0) + 1
    assert tf_keras.mixed_precision.global_policy().name == "float32"
    assert tf_keras.backend.epsilon() == 1e-7


@pytest.mark.parametrize(
    ("make", "inputs", "message"),
    [
        pytest.param(Net, None, "does not know its inputs", id="no inputs"),
        pytest.param(Net(), "float32[B, 8]", "never built; call the model once before", id="a live model, not built"),
        pytest.param(Net, "float32[8]", "cannot be called with", id="inputs that do not fit"),
        pytest.param(lambda: frozen(tf_keras), "float32[B, 9]", "inputs: declares", id="another shape"),
    ],
)
def test_mistakes(make: Any, inputs: Any, message: str) -> None:
    """Each is an error that says the cure."""
    with pytest.raises(ModelBudgetError, match=message):
        summarize(make, inputs)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_files(tmp_path: Path, suffix: str) -> None:
    """`framework: tf_keras` reads a file that Keras 2 saved; without it the cure is said, or Keras 3 reads it."""
    model = shared(tf_keras)
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / f"net{suffix}")
    entry = ModelEntry("net", build=str(tmp_path / f"net{suffix}"), framework="tf_keras")
    read, live = summarize_entry(entry), summarize(model)
    assert rows(read) == rows(live)
    assert (read.framework, read.params) == ("tf_keras", 9 * 4 + 5 * 4 + 9)
    if suffix == ".keras":
        with pytest.raises(ModelBudgetError, match=r"pip install tf_keras, and framework: tf_keras"):
            summarize(tmp_path / f"net{suffix}")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_code_in_a_file_is_refused(tmp_path: Path, suffix: str) -> None:
    """As with Keras 3."""
    model = tf_keras.Sequential([tf_keras.Input((8,)), tf_keras.layers.Lambda(lambda x: x * 2, name="twice")])
    model.save(tmp_path / f"net{suffix}")
    with pytest.raises(ModelBudgetError, match="layer 'twice' is a Lambda"):
        summarize_entry(ModelEntry("net", build=str(tmp_path / f"net{suffix}"), framework="tf_keras"))


def _operation(kind: str, config: dict[str, Any], node: list[Any]) -> dict[str, Any]:
    return hostile.legacy_node(kind, config, [[node]])


FROM_INPUT = ["i", 0, 0, {}]
CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "a file to write": (_operation("TFOpLambda", {"function": "io.write_file"}, ["i", 0, 0, {"contents": "x"}]), "calls 'io.write_file'"),
    "a folder to remove": (_operation("TFOpLambda", {"function": "io.gfile.rmtree"}, FROM_INPUT), "calls 'io.gfile.rmtree'"),
    "a raw operation": (_operation("TFOpLambda", {"function": "raw_ops.ReadFile"}, FROM_INPUT), "calls 'raw_ops.ReadFile'"),
    "what prints": (_operation("TFOpLambda", {"function": "print"}, ["i", 0, 0, {"output_stream": "file:///tmp/x"}]), "calls 'print'"),
    "constants alone": (_operation("TFOpLambda", {"function": "math.add"}, ["_CONSTANT_VALUE", -1, 1.0, {"y": 2.0}]), "called on nothing"),
    "a method of a class": (_operation("ClassMethod", {"cls_symbol": "io.TFRecordWriter", "method_name": "write"}, FROM_INPUT), "calls 'io.TFRecordWriter'"),
    "a private attribute": (_operation("InstanceProperty", {"attr_name": "__class__"}, FROM_INPUT), "calls '__class__'"),
    "code around a cell": (hostile.legacy("RNN", cell={"class_name": "ResidualWrapper", "config": {"residual_fn": ["4wAA"], "residual_fn_type": "lambda"}}), "Python code"),
    "a module of the system": (hostile.legacy("RNN", cell={"module": "subprocess", "class_name": "Popen", "registered_name": None, "config": {"args": "ls"}}), "subprocess"),
    "a name within a name": (hostile.legacy("RNN", cell={"module": "keras.layers", "class_name": "Layer.from_config", "config": {}}), "no part of its models"),
    "a cycle": (_operation("ReLU", {}, ["n", 0, 0, {}]), "waits for itself"),
}  # fmt: skip


@pytest.mark.parametrize(("config", "message"), [pytest.param(*case, id=name) for name, case in CALLS.items()])
def test_what_a_file_must_not_name(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    """tf_keras looks up any name of TensorFlow and of Python: only operations on tensors are handed to it."""
    path = hostile.h5_file(config)(tmp_path)
    with pytest.raises(ModelBudgetError, match=message):
        summarize_entry(ModelEntry("net", build=str(path), framework="tf_keras"))


def test_operations_on_tensors_in_a_file(tmp_path: Path) -> None:
    """What TensorFlow's functions and operators made of tensors is read."""
    x = tf_keras.Input((8,))
    y = tf.nn.relu(tf.concat([x, 2.0 * x], -1))[:, 1:]
    tf_keras.Model(x, tf_keras.layers.Dense(2)(y)).save(tmp_path / "net.h5")
    read = summarize_entry(ModelEntry("net", build=str(tmp_path / "net.h5"), framework="tf_keras"))
    assert read.params == (15 + 1) * 2


def test_a_saved_model_folder_has_no_slots_and_metrics(tmp_path: Path) -> None:
    """What tf_keras saved as a folder is counted by its layers' names."""
    model = tf_keras.Sequential([tf_keras.Input((8,)), tf_keras.layers.Dense(4), tf_keras.layers.Dense(2)])
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(np.zeros((2, 8)), np.zeros((2, 2)), verbose=0)
    model.save(tmp_path / "saved", save_format="tf")
    summary = summarize(tmp_path / "saved")
    assert (summary.params, summary.flops.value) == (9 * 4 + 5 * 2, 2 * (8 * 4 + 4 * 2))
    assert [row.path for row in summary.layers] == [layer.name for layer in model.layers]


def test_tf_keras_keeps_these_names() -> None:
    """What is used of it and is not public is still there."""
    from pytest_modelbudget.backends.tensorflow.private import tf_keras_backend, tf_keras_losses_container

    for name in ("PER_GRAPH_OBJECT_NAME_UIDS", "OBSERVED_NAMES", "reset_uids"):
        assert hasattr(tf_keras_backend(), name), f"{name} of tf_keras {tf_keras.__version__}"
    layer = tf_keras.Sequential([tf_keras.Input((8,)), tf_keras.layers.Dense(4)])
    for name in ("_flatten_layers", "_trainable_weights", "_non_trainable_weights", "_is_graph_network"):
        assert hasattr(layer, name), f"{name} of tf_keras {tf_keras.__version__}"
    for name in ("_network_nodes", "_nested_inputs"):
        assert hasattr(layer, name), f"{name} of tf_keras {tf_keras.__version__}"
    assert hasattr(layer.layers[0], "_inbound_nodes")
    layer.compile("adam", "mse", metrics=["mae"])
    for name in ("_user_losses", "_user_loss_weights"):
        assert hasattr(layer.compiled_loss, name), f"{name} of tf_keras {tf_keras.__version__}"
    assert isinstance(layer.compiled_loss, tf_keras_losses_container())
    assert hasattr(layer.compiled_metrics, "_user_metrics")
    assert hasattr(layer, "_clear_losses")
