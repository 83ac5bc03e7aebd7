"""Plans of Keras models on the backend at hand: what is there is counted by hand, peaks and bounds are those of real steps."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget import plan, summarize
from pytest_modelbudget.summary import Plan
from tests.project import Project

keras = pytest.importorskip("keras", minversion="3.0")
ROOT = Path(__file__).parents[3]
ON = keras.backend.backend()
TABLE = (ROOT / "tests/data/memory/keras_steps.csv").read_text(encoding="utf-8").splitlines()
TRUTHS = list(csv.DictReader(line for line in TABLE if not line.startswith("#")))
FAST = ("mlp", "siamese")
RUNS_ON_JAX = [
    pytest.param(row["model"], row["case"], marks=() if row["model"] in FAST else pytest.mark.slow)
    for row in TRUTHS
    if row["backend"] == "jax"
]
PARAMS = 20 * 32 + 32 + 32 + 1
BATCH = 8

on_tensorflow = pytest.mark.skipif(ON != "tensorflow", reason="of TensorFlow's graphs")
on_torch = pytest.mark.skipif(ON != "torch", reason="of torch's kernels")
on_jax = pytest.mark.skipif(ON != "jax", reason="of JAX's traces")
without_tensorflow = pytest.mark.skipif(ON == "tensorflow", reason="refused there")
in_graphs = pytest.mark.skipif(ON == "torch", reason="of traces")


def mlp(*, compiled: bool = False, **options: Any) -> keras.Model:
    """20 to 32 to 1."""
    model = keras.Sequential(
        [keras.Input((20,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(1)], name="mlp"
    )
    if compiled:
        model.compile("adam", "mse", **options)
    return model


@on_tensorflow
@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [pytest.param("adamw", 2, id="adamw"), pytest.param("sgd", 0, id="sgd"), pytest.param("adagrad", 1, id="adagrad")],
)
def test_what_is_there_all_the_time(optimizer: str, slots: int) -> None:
    """Weights, slots of 705 params with a step and a rate, and inputs of 8 samples; the rest comes and goes."""
    planned = plan(mlp, training={"batch": BATCH, "optimizer": optimizer}, devices="24 GB")
    roles = planned.by_role()
    lasting = {role: roles[role] for role in ("param", "optimizer", "input")}
    assert 0 < lasting.pop("optimizer") - slots * 4 * PARAMS <= 16
    assert lasting == {"param": 4 * PARAMS, "input": 4 * BATCH * 20}
    assert planned.peak_bytes == sum(roles.values())
    assert planned.fits[0].fits
    assert any(note.startswith("compile: none") for note in planned.notes)


def stateful() -> keras.Model:
    """A recurrent layer that goes on with its state."""
    recurrent = keras.layers.SimpleRNN(2, stateful=True, name="rnn")
    return keras.Sequential([keras.Input(batch_shape=(4, 5, 3)), recurrent])


def unsized() -> keras.Model:
    """Sequences of any length."""
    return keras.Sequential([keras.Input((None, 3)), keras.layers.SimpleRNN(2)])


@on_tensorflow
def test_a_state_that_is_kept_from_batch_to_batch_is_there_all_the_time() -> None:
    """Two numbers for each of four sequences."""
    planned = plan(stateful, inference={})
    assert planned.peak_bytes is not None
    assert planned.by_role()["buffer"] == 4 * 2 * 4


@in_graphs
def test_sequences_of_any_length_are_not_planned_and_say_why() -> None:
    """The dimension that wants a size."""
    planned = plan(unsized, inference={})
    assert planned.peak_bytes is None
    assert "has a dimension without a size, (1, None, 3): name and size it" in planned.notes[0]


@on_tensorflow
def test_a_pass_is_counted_by_hand() -> None:
    """Weights, inputs, the hidden layer, which ReLU writes over, and the result."""
    planned = plan(mlp, inference={"batch": BATCH})
    assert planned.peak_bytes == 4 * (PARAMS + BATCH * 20 + BATCH * 32 + BATCH * 1)
    assert (planned.phase, planned.path) == ("forward", "dense_1")


def test_a_compiled_model_brings_its_optimizer_and_its_loss() -> None:
    """Two slots of Adam for each param, its count of steps and its learning rate; targets are there like inputs."""
    model = mlp(compiled=True)
    planned = plan(model, training={"batch": BATCH})
    held = summarize(model).optimizer_bytes
    assert held is not None
    assert planned.by_role()["optimizer"] == held
    assert 0 < held - 2 * 4 * PARAMS <= 16
    assert any("compiled with" in note for note in planned.notes)
    assert "the model's optimizer" in planned.recipe
    if ON != "torch":
        assert planned.by_role()["input"] == 4 * BATCH * (20 + 1)


@on_tensorflow
@pytest.mark.parametrize(
    ("model", "written"),
    [
        pytest.param(lambda: mlp(compiled=True, jit_compile=True), {}, id="compiled so"),
        pytest.param(mlp, {"compile": "xla"}, id="asked for"),
    ],
)
def test_what_xla_takes_is_not_known(model: Any, written: dict[str, Any]) -> None:
    """A plan without a peak, with the reason and with what is there in any case."""
    planned = plan(model, training={"batch": BATCH, **written})
    assert (planned.peak_bytes, planned.by_role()["param"]) == (None, 4 * PARAMS)
    assert "xla" in planned.notes[0]


@pytest.mark.parametrize(
    ("precision", "policy"),
    [
        pytest.param("bf16-mixed", "mixed_bfloat16", id="bf16"),
        pytest.param("fp16-mixed", "mixed_float16", id="fp16", marks=without_tensorflow),
    ],
)
def test_a_policy_is_as_if_the_model_was_built_in_it(precision: str, policy: str) -> None:
    """Its peak, or the bound of that, is as of layers built under Keras' policy, which scales losses of float16."""
    before = keras.config.dtype_policy()

    def built_in_policy() -> Any:  # by a builder, as the other one: names count, too, in the order of operators
        keras.config.set_dtype_policy(policy)
        return mlp(compiled=True)

    try:
        built = most(plan(built_in_policy, training={"batch": BATCH}))
    finally:
        keras.config.set_dtype_policy(before)
    assert most(plan(lambda: mlp(compiled=True), training={"batch": BATCH, "precision": precision})) == built
    assert built != most(plan(lambda: mlp(compiled=True), training={"batch": BATCH}))


class OwnStep(keras.Model):  # type: ignore[misc]
    """A model that trains in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.head = keras.layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.head(x)

    def train_step(self, data: Any) -> Any:
        return {}


def most(planned: Plan) -> int:
    """The peak, or the most that it can be."""
    size = planned.peak_bytes if planned.peak_bytes is not None else planned.high_bytes
    assert size is not None
    return size


@pytest.mark.parametrize(
    ("build", "written", "reason"),
    [
        pytest.param(mlp, {"lora": {"rank": 4}}, "training.lora", id="lora"),
        pytest.param(mlp, {"sharding": {"fsdp": 8}}, "training.sharding", id="sharding"),
        pytest.param(mlp, {"checkpointing": "blocks"}, "RematScope", id="recomputing"),
        pytest.param(mlp, {"precision": "bf16"}, "dtype policy", id="half precision"),
        pytest.param(
            mlp, {"precision": "fp16-mixed", "kernels": "cpu"}, "kernels", id="halves on a cpu", marks=on_torch
        ),
        pytest.param(mlp, {"loss": "liger"}, "training.loss: liger is planned for torch models", id="fused loss"),
        pytest.param(mlp, {"optimizer": "adamw-8bit"}, "write one of", id="optimizer"),
        pytest.param(
            mlp, {"gradient_accumulation": 2, "optimizer": "none"}, "adds up the gradients", id="passes added by none"
        ),
        pytest.param(mlp, {"trainable": ["nothing*"]}, "no weight's path matches", id="glob"),
        pytest.param(OwnStep, {}, "train_step of its own", id="own step"),
        pytest.param(mlp, {"compile": "none"}, "Keras on JAX compiles", id="without the compiler", marks=on_jax),
        pytest.param(mlp, {"kernels": "cpu"}, "compile: xla is for the CPU", id="kernels", marks=on_jax),
    ],
)
def test_what_has_no_meaning_is_refused(build: Any, written: dict[str, Any], reason: str) -> None:
    """By its name, as the reason of a plan without a peak."""
    planned = plan(build, "float32[B, 20]", training={"batch": BATCH, **written})
    assert (planned.peak_bytes, planned.high_bytes) == (None, None)
    assert reason in planned.notes[0]


def test_a_model_of_a_fixed_batch_is_planned_for_no_other() -> None:
    """Its own batch may be written; the recipe would name another one than that of the numbers."""
    fixed = keras.Sequential([keras.Input(batch_shape=(4, 20)), keras.layers.Dense(1)])
    refused = plan(fixed, training={"batch": BATCH})
    assert refused.peak_bytes is None
    assert "training.batch: the model is built for" in refused.notes[0]
    assert plan(fixed, training={"batch": 4}).by_role() == plan(fixed, training={}).by_role() != {}


@in_graphs
def test_a_live_model_stays_as_it_is() -> None:
    """Its weights, losses and dtype policies."""
    model = mlp(compiled=True)
    before = [weight.numpy() for weight in model.weights]
    plan(model, training={"batch": BATCH, "precision": "bf16-mixed", "trainable": ["*kernel"]})
    assert all((weight.numpy() == value).all() for weight, value in zip(model.weights, before, strict=True))
    assert [layer.compute_dtype for layer in model.layers] == ["float32", "float32"]
    assert len(model.trainable_weights) == 4
    assert not model.losses
    assert not model.optimizer.built


@pytest.mark.parametrize("metrics", [None, ["mae"]])
def test_metrics_are_said_not_to_be_planned(metrics: Any) -> None:
    """Where a model is compiled with some."""
    planned = plan(mlp(compiled=True, metrics=metrics), training={"batch": BATCH})
    assert any("without the metrics" in note for note in planned.notes) == (metrics is not None)


@on_tensorflow
@pytest.mark.parametrize("eager", [False, True])
def test_a_step_that_runs_eagerly_is_said_to_be_planned_as_a_graph(eager: bool) -> None:
    """Steps and passes alike."""
    model = mlp(compiled=True, run_eagerly=eager)
    for planned in (plan(model, training={"batch": BATCH}), plan(model, inference={"batch": BATCH})):
        assert any("run_eagerly" in note for note in planned.notes) == eager


@on_jax
def test_on_jax_parts_are_hand_sums_and_the_peak_has_bounds() -> None:
    """Weights, gradients, Adam's slots with two numbers, the batch and the hidden layer; the least is what is held."""
    planned = plan(mlp, training={"batch": BATCH, "optimizer": "adam"}, devices=["1 kB", "24 GB"])
    held = {"param": 4 * PARAMS, "optimizer": 2 * 4 * PARAMS + 8, "input": 4 * BATCH * 20}
    made = {"gradient": 4 * PARAMS, "activation": planned.by_role()["activation"]}
    assert planned.by_role() == {**held, **made}
    assert made["activation"] >= 4 * BATCH * 32
    loss = 4
    assert (planned.peak_bytes, planned.low_bytes) == (None, sum(held.values()) + loss)
    assert most(planned) > sum(held.values()) + sum(made.values())
    assert [fit.fits for fit in planned.fits] == [False, None]
    assert {part.path for part in planned.parts if part.role == "gradient"} == {"dense", "dense_1"}


@pytest.mark.slow
@on_jax
def test_on_jax_the_compiled_peak_is_that_of_keras_own_function() -> None:
    """XLA's sum for the step of Keras' trainer, which gives its state up, but for the eight bytes of its tracker."""
    import jax

    model, batch = mlp(compiled=True), 4096
    x, y = jax.numpy.zeros((batch, 20)), jax.numpy.zeros((batch, 1))
    model.train_on_batch(x, y)
    variables = model.trainable_variables, model.non_trainable_variables, model.optimizer.variables
    state = tuple([variable.value for variable in group] for group in (*variables, model.metrics_variables))
    function = jax.jit(model.train_step, donate_argnums=0, keep_unused=True)
    real = function.lower(state, (x, y)).compile().memory_analysis()
    sizes = real.argument_size_in_bytes + real.output_size_in_bytes - real.alias_size_in_bytes + real.temp_size_in_bytes
    assert plan(model, training={"batch": batch, "compile": "xla"}).peak_bytes == pytest.approx(sizes, rel=0.001)


@on_jax
def test_on_jax_losses_of_several_outputs_leave_the_model_as_it_was() -> None:
    """Their trackers are made at the first real step alone."""
    x = keras.Input((20,))
    model = keras.Model(x, {name: keras.layers.Dense(3, name=name)(x) for name in ("a", "b")})
    model.compile("sgd", {"a": "mse", "b": "mae"})
    planned = plan(model, training={"batch": BATCH})
    assert planned.by_role()["input"] == 4 * BATCH * (20 + 2 * 3)
    assert len(model.metrics) == 1


@on_jax
@pytest.mark.parametrize(("model", "case"), RUNS_ON_JAX)
def test_runs_on_jax_are_between_the_bounds(model: str, case: str) -> None:
    """What is held all the time is less than real runs took, all arrays without reuse are more."""
    from tests.benchmarks import keras_step_truth

    [row] = [row for row in TRUTHS if (row["backend"], row["model"], row["case"]) == ("jax", model, case)]
    build, batch, _ = keras_step_truth.MODELS[model]
    training = {"batch": batch, "optimizer": "adam", "loss": "cross_entropy"}
    planned = plan(build, training=training) if case == "train" else plan(build, inference={"batch": batch})
    real = (float(row["persistent"]) + float(row["step"])) * 2**20
    assert planned.low_bytes is not None
    assert 0.999 * planned.low_bytes <= real <= 1.01 * most(planned)


@pytest.mark.slow
def test_steps_on_torch_take_what_is_planned() -> None:
    """Within 1 %, by the events of torch's own allocator, of steps with Adam and of passes without gradients."""
    pytest.importorskip("torch")
    script = Path(__file__).with_name("planned_for_real.py")
    environment = {**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    for name, (planned, real) in json.loads(run.stdout.splitlines()[-1]).items():
        assert planned == pytest.approx(real, rel=0.01), name


@pytest.mark.slow
@on_tensorflow
@pytest.mark.parametrize(
    ("layer", "kept"),
    [
        pytest.param("LSTM", 7, id="four gates, the state, its tanh and the output"),
        pytest.param("GRU", 6, id="three gates, what the reset gate is multiplied with, the state and the output"),
    ],
)
def test_a_recurrent_layer_keeps_its_values_for_each_round(layer: str, kept: int) -> None:
    """A round more keeps values of the state's size, and its input, handed over and in a list."""

    def peak(length: int) -> int:
        x = keras.Input((length, 4))
        model = keras.Model(x, getattr(keras.layers, layer)(8)(x))
        return plan(model, training={"batch": BATCH}).peak_bytes or 0

    values = (peak(128) - peak(64)) / 64 / BATCH / 4
    assert values == pytest.approx(kept * 8 + 2 * 4, rel=0.01)


ZOO = """
    import keras

    def mlp():
        layers = [keras.layers.Dense(32, activation="relu"), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((20,)), *layers])
        model.compile("adam", "mse")
        return model
"""
MANIFEST = """
    models:
      mlp:
        build: zoo:mlp
        training: {batch: 64, kernels: cpu}
        budgets: {training_peak_bytes: 10 kB, fits: 10 kB, growth_in: {B: {training_peak_bytes: constant}}}
"""


@pytest.mark.slow
def test_a_run_on_torch_has_limits_levers_and_growth(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a model of torch: what broke, what would help, how the peak grows, and the curve on the page."""
    pytest.importorskip("torch")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    project.write("zoo.py", ZOO)
    project.manifest(MANIFEST)
    result = project.alone("--model-budget", "--model-budget-report=html:page.html")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "training (batch 64,*): peak * in backward of dense;*",
            "  gradient_accumulation: 2, batch: 32 would save *",
            "  does not fit 10 kB *",
            "training_peak_bytes in B: linear *",
        ]
    )
    assert "peak_bytes" in (project.path / "page.html").read_text(encoding="utf-8")


@pytest.mark.slow
@on_tensorflow
@pytest.mark.parametrize(
    "model",
    [
        *["mlp", "cnn", "mobilenetv2", "transformer", "unet", "towers"],
        *["text_cnn", "autoencoder", "siamese", "crosses", "gpt", "convlstm"],
    ],
)
def test_steps_on_tensorflow_take_what_is_planned(model: str) -> None:
    """Within 10 %, and at most 6 % too low, of real steps that were recorded (tests/data/memory/keras_steps.csv)."""
    from tests.benchmarks import keras_step_truth

    [row] = [row for row in TRUTHS if (row["backend"], row["model"], row["case"]) == ("tensorflow", model, "train")]
    build, batch, _ = keras_step_truth.MODELS[model]
    planned = plan(build, training={"batch": batch, "optimizer": "adam", "loss": "cross_entropy"})
    real = (float(row["persistent"]) + float(row["step"])) * 2**20
    assert planned.peak_bytes is not None
    assert 0.94 * real <= planned.peak_bytes <= 1.1 * real


def test_no_weight_is_trained() -> None:
    """A model without weights has no step."""
    planned = plan(lambda: keras.Sequential([keras.Input((4,)), keras.layers.ReLU()]), training={"batch": 2})
    assert planned.peak_bytes is None
    assert "no weight is trained" in planned.notes[0]


@pytest.mark.slow
@on_tensorflow
def test_what_is_said_of_jax_holds_there() -> None:
    """The tests above, in a process where Keras runs on JAX."""
    pytest.importorskip("jax")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "KERAS_BACKEND": "jax"}, check=False
    )
    assert run.returncode == 0, run.stdout
    assert "passed" in run.stdout
