"""Plans of tf_keras models and of `tf.Module` objects: what is there is counted by hand, peaks are those of real steps."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf

from pytest_modelbudget import Plan, plan
from tests.backends.tensorflow.test_modules import Affine

tf_keras = pytest.importorskip("tf_keras")
pytest.importorskip("pytest_modelbudget.backends.tensorflow.legacy")
TABLE = (Path(__file__).parents[2] / "data/memory/keras_steps.csv").read_text(encoding="utf-8").splitlines()
TRUTHS = [row for row in csv.DictReader(line for line in TABLE if not line.startswith("#")) if "/" in row["model"]]
PARAMS = 20 * 32 + 32 + 32 + 1
BATCH = 8
INPUTS = "float32[B, 20]"

on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="with optimizers of Keras")


class Perceptron(tf.Module):
    """20 to 32 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [Affine(20, 32), Affine(32, 1)]

    def __call__(self, x: Any) -> Any:
        return self.layers[1](tf.nn.relu(self.layers[0](x)))


class Function(Perceptron):
    """The same as a `tf.function`."""

    @tf.function
    def __call__(self, x: Any) -> Any:
        return super().__call__(x)


class Compiled(Perceptron):
    """The same, compiled with XLA."""

    @tf.function(jit_compile=True)
    def __call__(self, x: Any) -> Any:
        return super().__call__(x)


class Lost(tf.Module):
    """A module that trains a variable of somebody else."""

    def __init__(self) -> None:
        super().__init__()
        holder = [Affine(20, 1)]
        self.head = lambda x: holder[0](x)

    def __call__(self, x: Any) -> Any:
        return self.head(x)


class WithLoss(Perceptron):
    """A module that gives its own loss, and drops half of the hidden layer where it is told that it trains."""

    def __call__(self, x: Any, is_training: bool = False) -> Any:
        hidden = tf.nn.relu(self.layers[0](x))
        return tf.reduce_mean(self.layers[1](tf.nn.dropout(hidden, 0.5) if is_training else hidden))


class WithLayers(tf.Module):
    """Keras' layers in a module."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [keras.layers.Dense(32, activation="relu"), keras.layers.Dense(1)]

    def __call__(self, x: Any) -> Any:
        return self.layers[1](self.layers[0](x))


class Momentum(tf.Module):
    """An optimizer of the user's own, which makes its state in its first step."""

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.momentum, self.slots = momentum, []

    def apply(self, gradients: list[Any], variables: list[Any]) -> None:
        if not self.slots:
            self.slots = [tf.Variable(lambda v=v: tf.zeros(v.shape), shape=v.shape) for v in variables]
        for gradient, variable, slot in zip(gradients, variables, self.slots, strict=True):
            slot.assign(self.momentum * slot + gradient)
            variable.assign_sub(0.1 * slot)


def legacy(*, loss: str | None = None, **options: Any) -> Any:
    """20 to 32 to 1, compiled where there is a loss."""
    layers = [tf_keras.Input((20,)), tf_keras.layers.Dense(32, activation="relu"), tf_keras.layers.Dense(1)]
    model = tf_keras.Sequential(layers, name="mlp")
    if loss is not None:
        model.compile("adam", loss, **options)
    return model


def frozen() -> Any:
    """The same, of which only the last layer is trained."""
    model = legacy()
    model.layers[0].trainable = False
    return model


class OwnStep(tf_keras.Model):  # type: ignore[misc]
    """A model that trains in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.head = tf_keras.layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.head(x)

    def train_step(self, data: Any) -> Any:
        return {}


def planned(build: Any, **recipe: Any) -> Plan:
    return plan(build, INPUTS, **recipe)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(Perceptron, id="tf.Module"),
        pytest.param(Function, id="tf.function"),
        pytest.param(Function(), id="a live module"),
        pytest.param(WithLayers, id="with layers", marks=on_tensorflow),
        pytest.param(legacy, id="tf_keras"),
    ],
)
def test_a_pass_is_counted_by_hand(build: Any) -> None:
    """Weights, inputs, the hidden layer, which ReLU writes over, and the result."""
    assert planned(build, inference={"batch": BATCH}).peak_bytes == 4 * (PARAMS + BATCH * (20 + 32 + 1))


@pytest.mark.parametrize(
    ("build", "recipe", "slots", "targets"),
    [
        pytest.param(legacy, {"optimizer": "adamw"}, 2 * PARAMS, 0, id="tf_keras"),
        pytest.param(legacy, {"optimizer": "adagrad", "loss": tf.reduce_sum}, PARAMS, 0, id="tf_keras, a loss"),
        pytest.param(lambda: legacy(loss="mse"), {}, 2 * PARAMS, 1, id="tf_keras, compiled"),
        pytest.param(frozen, {"optimizer": "adamw"}, 2 * 33, 0, id="tf_keras, frozen in part"),
        pytest.param(Perceptron, {"optimizer": "sgd"}, 0, 0, id="module", marks=on_tensorflow),
        pytest.param(Function, {"loss": "cross_entropy"}, 2 * PARAMS, 1, id="tf.function", marks=on_tensorflow),
        pytest.param(WithLayers, {"loss": "cross_entropy"}, 2 * PARAMS, 1, id="with layers", marks=on_tensorflow),
        pytest.param(Perceptron, {"trainable": ["layers/1/*"]}, 2 * 33, 0, id="in part", marks=on_tensorflow),
        pytest.param(
            Perceptron, {"optimizer": Momentum, "optimizer_options": {"momentum": 0.9}}, PARAMS, 0, id="own optimizer"
        ),
        pytest.param(Perceptron, {"optimizer": "none"}, 0, 0, id="no optimizer"),
    ],
)
def test_what_is_there_all_the_time(build: Any, recipe: dict[str, Any], slots: int, targets: int) -> None:
    """Weights, the optimizer's slots with a count of steps and a rate, inputs of 8 samples and a target for each."""
    whole = planned(build, training={"batch": BATCH, **recipe})
    roles = whole.by_role()
    assert 0 <= roles.get("optimizer", 0) - 4 * slots <= 16
    assert (roles["param"], roles["input"]) == (4 * PARAMS, 4 * BATCH * (20 + targets))
    assert whole.peak_bytes == sum(roles.values())
    assert ("the model's optimizer" in whole.recipe) == (recipe == {})


def test_a_module_is_told_that_it_trains() -> None:
    """The mask of the dropped elements, of one byte each, is there for the backward pass with what is left of them."""
    whole = planned(WithLoss, training={"batch": BATCH, "optimizer": "none"})
    without = planned(Perceptron, training={"batch": BATCH, "optimizer": "none"})
    assert whole.by_role()["activation"] - without.by_role()["activation"] >= BATCH * 32


def test_a_layer_says_where_the_peak_is() -> None:
    """Of tf_keras models by the row of the layer."""
    whole = planned(legacy, inference={"batch": BATCH})
    assert (whole.phase, whole.path) == ("forward", "dense_1")


@pytest.mark.parametrize(
    ("build", "recipe", "reason"),
    [
        pytest.param(legacy, {"lora": {"rank": 4}}, "training.lora", id="lora"),
        pytest.param(legacy, {"kernels": "cpu"}, "training.kernels: cpu is not planned for tf_keras", id="kernels"),
        pytest.param(legacy, {"precision": "bf16-mixed"}, "set the dtypes", id="precision"),
        pytest.param(legacy, {"optimizer": "muon"}, "has no muon", id="optimizer"),
        pytest.param(
            lambda: legacy(loss="mse"), {"gradient_accumulation": 2}, "update in each step", id="accumulated passes"
        ),
        pytest.param(legacy, {"gradient_accumulation": 2}, "update in each step", id="accumulated by a named one"),
        pytest.param(
            Perceptron, {"gradient_accumulation": 2, "optimizer": "none"}, "adds up the gradients", id="by none"
        ),
        pytest.param(legacy, {"trainable": ["nothing*"]}, "no variable's path matches", id="glob"),
        pytest.param(OwnStep, {}, "train_step of its own", id="own step"),
        pytest.param(lambda: legacy(loss="mse", jit_compile=True), {}, "compile: xla", id="tf_keras with XLA"),
        pytest.param(Compiled, {"optimizer": "none"}, "compile: xla", id="a function with XLA"),
        pytest.param(Perceptron, {"sharding": {"fsdp": 8}}, "training.sharding", id="sharding"),
        pytest.param(Perceptron, {"loss": "liger"}, "liger is planned for torch models", id="fused loss"),
        pytest.param(Perceptron, {"optimizer": "adamw-8bit"}, "has no adamw-8bit", id="of torch", marks=on_tensorflow),
        pytest.param(Perceptron, {"optimizer": "muon"}, "for variables of Keras", id="muon", marks=on_tensorflow),
        pytest.param(Perceptron, {"optimizer": dict}, "without apply_gradients and apply", id="no optimizer at all"),
        pytest.param(Lost, {"optimizer": "none"}, "which no object of the model holds", id="a variable that is lost"),
    ],
)
def test_what_is_not_planned_says_why(build: Any, recipe: dict[str, Any], reason: str) -> None:
    """By its name, as the reason of a plan without a peak."""
    whole = planned(build, training={"batch": BATCH, **recipe})
    assert whole.peak_bytes is None
    assert reason in " ".join(whole.notes)


def test_a_model_of_a_fixed_batch_is_planned_for_no_other() -> None:
    """Four samples of 20 numbers, which is the batch that the recipe may name, or leave out."""
    fixed = tf_keras.Sequential([tf_keras.Input(batch_shape=(4, 20)), tf_keras.layers.Dense(1)])
    refused = plan(fixed, inference={"batch": BATCH})
    assert refused.peak_bytes is None
    assert "inference.batch: the model is built for" in refused.notes[0]
    assert plan(fixed, inference={"batch": 4}).by_role()["input"] == 4 * 4 * 20


def test_a_live_model_stays_as_it_is() -> None:
    """Its weights, its losses, its optimizer, and the container of its compiled loss, which builds itself at first use."""
    model = legacy(loss="mse")
    model.layers[0].kernel_regularizer = tf_keras.regularizers.L2(0.1)
    before = [weight.numpy() for weight in model.weights]
    count = len(model.losses)
    assert planned(model, training={"batch": BATCH}).peak_bytes is not None
    assert all((weight.numpy() == value).all() for weight, value in zip(model.weights, before, strict=True))
    assert len(model.losses) == count
    assert not model.compiled_loss.built
    assert len(model.optimizer.variables) == 1  # its count of steps


@pytest.mark.parametrize("eager", [False, True])
def test_a_step_that_runs_eagerly_is_said_to_be_planned_as_a_graph(eager: bool) -> None:
    """Of tf_keras."""
    whole = planned(legacy(loss="mse", run_eagerly=eager), inference={"batch": BATCH})
    assert any("run_eagerly" in note for note in whole.notes) == eager


@pytest.mark.slow
@on_tensorflow
@pytest.mark.parametrize(("model", "case"), [(row["model"], row["case"]) for row in TRUTHS])
def test_runs_take_what_is_planned(model: str, case: str) -> None:
    """Within 10 %, and at most 6 % too low, of real runs that were recorded (tests/data/memory/keras_steps.csv)."""
    from tests.benchmarks import tf_step_models

    [row] = [row for row in TRUTHS if (row["model"], row["case"]) == (model, case)]
    real = (float(row["persistent"]) + float(row["step"])) * 2**20
    peak = tf_step_models.plans(model)[case].peak_bytes
    assert peak is not None
    assert 0.94 * real <= peak <= 1.1 * real
