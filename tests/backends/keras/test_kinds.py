"""Layers of every kind: recurrent, wrapped, preprocessing, low-rank, quantised, of mixed precision; and optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L

from pytest_modelbudget import summarize as count
from pytest_modelbudget.backends import keras as backend
from pytest_modelbudget.summary import Summary
from tests.versions import needs, since


def stack(shape: tuple[int, ...], *make: Callable[[], Any], dtype: str = "float32") -> Callable[[], keras.Model]:
    """A builder of a stack of layers."""
    return lambda: keras.Sequential([keras.Input(shape, dtype=dtype), *[one() for one in make]])


ONE_LSTM = "kernel 5x16 + recurrent_kernel 4x16 + bias 16"
BOTH = " + ".join(f"{way}/{part}" for way in ("forward", "backward") for part in ONE_LSTM.split(" + "))


@pytest.mark.parametrize(
    ("layer", "shape", "weights"),
    [
        pytest.param(lambda: L.LSTM(4), (7, 5), ONE_LSTM, id="LSTM"),
        pytest.param(lambda: L.RNN(L.LSTMCell(4)), (7, 5), ONE_LSTM, id="a cell"),
        pytest.param(
            lambda: L.RNN([L.LSTMCell(4), L.LSTMCell(4), L.SimpleRNNCell(2)]),
            (7, 5),
            "lstm_cell/kernel 5x16 + lstm_cell/recurrent_kernel 4x16 + lstm_cell/bias 16 + lstm_cell_1/kernel 4x16 + "
            "lstm_cell_1/recurrent_kernel 4x16 + lstm_cell_1/bias 16 + simple_rnn_cell/kernel 4x2 + "
            "simple_rnn_cell/recurrent_kernel 2x2 + simple_rnn_cell/bias 2",
            id="stacked cells",
        ),
        pytest.param(lambda: L.GRU(4), (7, 5), "kernel 5x12 + recurrent_kernel 4x12 + bias 2x12", id="GRU"),
        pytest.param(lambda: L.Bidirectional(L.LSTM(4)), (7, 5), BOTH, id="both directions"),
        pytest.param(lambda: L.Bidirectional(L.RNN(L.LSTMCell(4)), name="b"), (7, 5), BOTH, id="a cell both ways"),
        pytest.param(
            lambda: L.Bidirectional(L.LSTM(4, name="f"), backward_layer=L.GRU(4, go_backwards=True, name="g")),
            (7, 5),
            "forward/kernel 5x16 + forward/recurrent_kernel 4x16 + forward/bias 16 + "
            "backward/kernel 5x12 + backward/recurrent_kernel 4x12 + backward/bias 2x12",
            id="another layer backwards",
        ),
        pytest.param(
            lambda: L.ConvLSTM2D(4, 3),
            (7, 8, 8, 3),
            "kernel 3x3x3x16 + recurrent_kernel 3x3x4x16 + bias 16",
            id="ConvLSTM",
        ),
        pytest.param(lambda: L.TimeDistributed(L.Dense(4)), (7, 5), "kernel 5x4 + bias 4", id="over time"),
        pytest.param(
            lambda: L.TimeDistributed(keras.Sequential([keras.Input((5,)), L.Dense(4), L.Dense(3)])),
            (7, 5),
            "dense/kernel 5x4 + dense/bias 4 + dense_1/kernel 4x3 + dense_1/bias 3",
            id="a model over time",
        ),
        pytest.param(
            lambda: L.SpectralNormalization(L.Dense(4)),
            (8,),
            "kernel 8x4 + vector_u 1x4 frozen + bias 4",
            id="spectral normalisation",
        ),
    ],
)
def test_weights_have_the_names_keras_gives_them(summarize: Any, layer: Any, shape: Any, weights: str) -> None:
    """The weights of cells and of what is wrapped read as those of the layer itself."""
    row = summarize(stack(shape, layer)).layers[0]
    assert row.weights_text == weights
    assert not row.container


class Recurrent(L.RNN):
    """A recurrent layer with a weight of the same name as its cell's."""

    def build(self, shape: Any) -> None:
        super().build(shape)
        self.extra = self.add_weight(shape=(2,), name="kernel")


def test_names_without_prefix_do_not_collide(summarize: Any) -> None:
    """Two weights of one name are told apart."""
    row = summarize(stack((7, 5), lambda: Recurrent(L.SimpleRNNCell(4)))).layers[0]
    assert row.weights_text == "kernel 2 + kernel_1 5x4 + recurrent_kernel 4x4 + bias 4"


def images() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            L.Rescaling(1 / 255),
            L.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 1.0, 1.0]),
            L.RandomFlip(seed=1),
            L.RandomRotation(0.1),
            L.Resizing(4, 4),
            L.CenterCrop(2, 2),
            L.Flatten(),
            L.Dense(2),
        ]
    )


def adapted() -> keras.Model:
    normalization = L.Normalization()
    normalization.adapt(np.arange(12.0).reshape(4, 3))
    return keras.Sequential([keras.Input((3,)), normalization, L.Dense(2)])


def categories() -> keras.Model:
    number, real = keras.Input((1,), dtype="int64"), keras.Input((1,))
    known = L.CategoryEncoding(num_tokens=4)(L.IntegerLookup(vocabulary=[1, 2, 3])(number))
    bucket = L.Embedding(10, 4)(L.Hashing(10)(L.Discretization([0.0, 1.0])(real)))
    return keras.Model([number, real], L.Concatenate()([known, L.Flatten()(bucket)]))


def words() -> keras.Model:
    text = keras.Input((1,), dtype="string")
    ids = L.TextVectorization(max_tokens=100, output_sequence_length=6, vocabulary=["a", "b"])(text)
    return keras.Model(text, L.Embedding(100, 4)(ids))


@pytest.mark.parametrize(
    ("build", "params", "output"),
    [
        pytest.param(images, 4 * 3 * 2 + 2, "[B, 2]", id="images"),
        pytest.param(adapted, 2 * 3 + 1 + 3 * 2 + 2, "[B, 2]", id="adapted: mean, variance and count"),
        pytest.param(categories, 40, "[B, 8]", id="categories"),
        pytest.param(words, 400, "[B, 6, 4]", id="text"),
    ],
)
def test_preprocessing(summarize: Any, build: Any, params: int, output: str) -> None:
    """Preprocessing layers cost no params but what they learnt of the data; their seeds are none."""
    summary = summarize(build)
    assert (summary.params, summary.layers[-1].output_text) == (params, output)
    assert summary.buffers == 0


def dense(rank: int | None = None, mode: str | None = None) -> Callable[[], keras.Model]:
    """8 to 16 to 4, the first of low rank, both quantised."""

    def build() -> keras.Model:
        model = stack((8,), lambda: L.Dense(16), lambda: L.Dense(4))()
        if mode is not None:
            for layer in model.layers:
                layer.quantize(mode)
        if rank is not None:
            model.layers[0].enable_lora(rank)
        return model

    return build


PARAMS = 8 * 16 + 16 + 16 * 4 + 4
LORA = 2 * (8 + 16)
AMAX = 2 * 3 * (1 + 1024)


@pytest.mark.parametrize(
    ("build", "params", "trainable", "buffers", "size"),
    [
        pytest.param(dense(), 212, 212, 0, 4 * 212, id="plain"),
        pytest.param(dense(rank=2), 212 + LORA, 212 - 128 + LORA, 0, 4 * (212 + LORA), id="low rank"),
        pytest.param(dense(mode="int8"), 212, 20, 20, (128 + 64) + 4 * 20 + 4 * 20, id="int8"),
        pytest.param(dense(2, "int8"), 212 + LORA, 20 + LORA, 20, 192 + 4 * (20 + LORA) + 80, id="low rank of int8"),
        pytest.param(dense(mode="float8"), 212, 212, AMAX, 4 * (212 + AMAX), id="float8"),
        pytest.param(
            dense(mode="int4"), 212, 20, 20 + 20 + 24, (64 + 32) + 4 * 20 + (4 + 1) * 20 + 4 * 24, id="int4",
            marks=since("keras", "3.13", "earlier scales have no zero points"),
        ),
        pytest.param(
            stack((8,), lambda: L.Dense(16, dtype="int8_from_mixed_bfloat16"), lambda: L.Dense(4)),
            212, 16 + 68, 16, 128 + 4 * (16 + 16 + 68), id="int8 by policy",
        ),
    ],
)  # fmt: skip
def test_quantised_and_low_rank(
    summarize: Any, build: Any, params: int, trainable: int, buffers: int, size: int
) -> None:
    """Params are the elements a weight stands for, bytes are as stored, and scales and histories are apart."""
    summary = summarize(build)
    assert (summary.params, summary.trainable_params, summary.buffers) == (params, trainable, buffers)
    assert summary.weight_bytes == size
    assert "Buffers" in str(summary) or not buffers


@needs(L, "RMSNormalization")
def test_a_scale_that_is_a_param_stays_one(summarize: Any) -> None:
    """Under a quantised policy, only what serves quantised weights is apart."""
    summary = summarize(
        stack(
            (8,), lambda: L.RMSNormalization(dtype="int8_from_float32"), lambda: L.Dense(4, dtype="int8_from_float32")
        )
    )
    assert [(row.params, row.buffers) for row in summary.layers] == [(8, 0), (36, 4)]


@pytest.mark.parametrize(
    ("policy", "weight", "output", "size"),
    [
        pytest.param("float32", "float32", "float32", 4, id="float32"),
        pytest.param("mixed_float16", "float32", "float16", 4, id="mixed_float16"),
        pytest.param("mixed_bfloat16", "float32", "bfloat16", 4, id="mixed_bfloat16"),
        pytest.param("bfloat16", "bfloat16", "bfloat16", 2, id="bfloat16"),
        pytest.param("float16", "float16", "float16", 2, id="float16"),
    ],
)
def test_policies(summarize: Any, policy: str, weight: str, output: str, size: int) -> None:
    """Weights are stored, and outputs computed, as the policy says."""
    summary = summarize(stack((8,), lambda: L.Dense(4, dtype=policy)))
    (row,) = (row for row in summary.layers if row.type == "Dense")  # Keras 3.6 has one for the cast of the input, too
    assert [one.dtype for one in row.weights] == [weight, weight]
    assert [spec.dtype for spec in summary.outputs] == [output]
    assert summary.weight_bytes == 36 * size


SCALARS = 2
"""The step and the learning rate."""


def state(optimizer: Any, *, build: bool, frozen: bool = False) -> Callable[[], keras.Model]:
    """A model of 2,033 params, compiled."""

    def make() -> keras.Model:
        model = stack((8,), lambda: L.Dense(100), lambda: L.Dense(11), lambda: L.Dense(2, use_bias=False))()
        model.layers[0].trainable = not frozen
        model.compile(optimizer() if callable(optimizer) else optimizer, "mse", metrics=["mae"])
        if build:
            model.optimizer.build(model.trainable_variables)
        return model

    return make


ALL = 9 * 100 + 101 * 11 + 11 * 2


@pytest.mark.parametrize("build", [True, False], ids=["built", "not built"])
@pytest.mark.parametrize(
    ("optimizer", "frozen", "slots"),
    [
        pytest.param("sgd", False, 0, id="sgd"),
        pytest.param(lambda: keras.optimizers.SGD(momentum=0.9), False, ALL, id="momentum"),
        pytest.param("adam", False, 2 * ALL, id="adam"),
        pytest.param(lambda: keras.optimizers.Adam(amsgrad=True), False, 3 * ALL, id="amsgrad"),
        pytest.param(lambda: keras.optimizers.Adam(use_ema=True), False, 3 * ALL, id="averages"),
        pytest.param("adam", True, 2 * (ALL - 900), id="a frozen layer"),
        pytest.param("adafactor", False, (8 + 100) + (100 + 11) + (11 + 2) + 2 * 2 + ALL, id="adafactor: factors of matrices, scalars for vectors, and a slot each"),
    ],
)  # fmt: skip
def test_optimizer_variables_are_apart(summarize: Any, optimizer: Any, frozen: bool, slots: int, build: bool) -> None:
    """What an optimizer keeps has bytes of its own, the same before and after it was built, and is in no params."""
    summary = summarize(state(optimizer, build=build, frozen=frozen))
    assert (summary.params, summary.weight_bytes) == (ALL, 4 * ALL)
    assert summary.optimizer_bytes is not None
    assert 0 <= summary.optimizer_bytes - 4 * (slots + SCALARS) <= 4  # the step may have 8 bytes


def test_loss_scaling_is_optimizer_state(summarize: Any) -> None:
    """Under `mixed_float16` Keras wraps the optimizer; the inner one counts too."""

    def build() -> keras.Model:
        model = keras.Sequential([keras.Input((8,)), L.Dense(4)])
        model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), "mse")
        return model

    size = summarize(build).optimizer_bytes
    assert 2 * 36 * 4 < size < 2 * 36 * 4 + 64


def test_no_optimizer_is_not_zero_bytes(summarize: Any) -> None:
    """A model that was not compiled says nothing of an optimizer."""
    summary = summarize(dense())
    assert summary.optimizer_bytes is None
    assert "Optimizer" not in str(summary)


class Strange(keras.optimizers.SGD):
    """An optimizer that cannot be made from its config."""

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError("no config")


def test_an_optimizer_that_cannot_be_copied_is_unknown(summarize: Any) -> None:
    """Its bytes are not known, which a note says."""
    summary = summarize(state(Strange, build=False))
    assert summary.optimizer_bytes is None
    assert "the state of the optimizer Strange is not known: no config" in summary.notes


def test_optimizer_bytes_travel() -> None:
    """They are in the table and in JSON, and leave a live optimizer as it is."""
    model = state("adam", build=False)()
    summary = count(model)
    assert not model.optimizer.built
    line = next(line for line in str(summary).splitlines() if line.startswith("Optimizer state"))
    assert line == "Optimizer state: 15.89 KiB"
    assert Summary.from_dict(summary.to_dict()) == summary
    assert summary.to_dict()["optimizer_bytes"] == summary.optimizer_bytes


def test_a_trained_model_counts_its_weights_alone() -> None:
    """Training adds slots, seeds and metrics; params stay what they are, and training goes on afterwards."""
    model = keras.Sequential([keras.Input((3,)), L.Dense(4), L.Dropout(0.5), L.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    x, y = np.ones((4, 3), "float32"), np.ones((4, 1), "float32")
    model.fit(x, y, verbose=0)
    slots = [id(one) for one in model.optimizer.variables]
    summary = backend.summarize(model, name="m", inputs=None, sizes={}, built_here=False)
    assert (summary.params, summary.buffers) == (21, 0)
    assert summary.optimizer_bytes == pytest.approx(4 * (2 * 21 + SCALARS), abs=4)
    assert [id(one) for one in model.optimizer.variables] == slots
    model.fit(x, y, verbose=0)
