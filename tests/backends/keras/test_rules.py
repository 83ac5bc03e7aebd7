"""FLOPs of single layers, each against a count by hand: products and sums of products, twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import pytest
from keras import layers as L
from keras import ops

from tests.versions import needs, since


class Function(L.Layer):
    """A layer that is one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def call(self, x: Any) -> Any:
        return self.function(x)


class Weights(L.Layer):
    """A layer with weights `a` 4x3, `b` 3x5, `c` 5, that is one function of itself and its input."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def build(self, shape: Any) -> None:
        self.a, self.b, self.c = (self.add_weight(shape=one) for one in ((4, 3), (3, 5), (5,)))

    def call(self, x: Any) -> Any:
        return self.function(self, x)


def square() -> Any:
    return ops.ones((4, 4))


def _ones(x: Any) -> Any:
    """A one for each example."""
    return ops.ones_like(x[:, 0, 0], "int32")


IMAGE, SEQUENCE, ROWS = (9, 9, 4), (6, 4), (4,)
LSTM = 6 * 2 * 4 * (4 * 5 + 5 * 5)


@pytest.mark.parametrize(
    ("shape", "layer", "expected"),
    [
        pytest.param(ROWS, lambda: L.Dense(5), 2 * 4 * 5, id="dense"),
        pytest.param(SEQUENCE, lambda: L.Dense(5), 2 * 6 * 4 * 5, id="dense, at each position"),
        pytest.param(SEQUENCE, lambda: L.EinsumDense("btd,dhk->bthk", (6, 3, 5)), 2 * 6 * 4 * 15, id="einsum dense"),
        pytest.param(SEQUENCE, lambda: L.Conv1D(5, 3), 2 * 4 * 5 * 3 * 4, id="conv1d"),
        pytest.param(SEQUENCE, lambda: L.Conv1D(5, 3, padding="causal"), 2 * 6 * 5 * 3 * 4, id="conv1d, causal"),
        pytest.param(IMAGE, lambda: L.Conv2D(6, 3, strides=2), 2 * 16 * 6 * 9 * 4, id="conv2d, strides"),
        pytest.param(IMAGE, lambda: L.Conv2D(6, 3, dilation_rate=2), 2 * 25 * 6 * 9 * 4, id="conv2d, dilated"),
        pytest.param(IMAGE, lambda: L.Conv2D(6, 3, groups=2), 2 * 49 * 6 * 9 * 2, id="conv2d, two groups"),
        pytest.param((5, 5, 5, 2), lambda: L.Conv3D(3, 2), 2 * 64 * 3 * 8 * 2, id="conv3d"),
        pytest.param(IMAGE, lambda: L.DepthwiseConv2D(3, depth_multiplier=2), 2 * 49 * 8 * 9, id="depthwise"),
        pytest.param(IMAGE, lambda: L.SeparableConv2D(6, 3), 2 * 49 * 4 * 9 + 2 * 49 * 4 * 6, id="separable"),
        pytest.param(IMAGE, lambda: L.Conv2DTranspose(6, 3, strides=2), 2 * 81 * 4 * 6 * 9, id="transposed"),
        pytest.param(SEQUENCE, lambda: L.SimpleRNN(5), 6 * 2 * (4 * 5 + 5 * 5), id="simple rnn"),
        pytest.param(SEQUENCE, lambda: L.LSTM(5), 6 * 2 * 4 * (4 * 5 + 5 * 5), id="lstm"),
        pytest.param(SEQUENCE, lambda: L.GRU(5), 6 * 2 * 3 * (4 * 5 + 5 * 5), id="gru"),
        pytest.param(
            SEQUENCE, lambda: L.GRU(5, reset_after=False), 6 * 2 * 3 * (4 * 5 + 5 * 5), id="gru, reset before"
        ),
        pytest.param(SEQUENCE, lambda: L.Bidirectional(L.LSTM(5)), 2 * 6 * 2 * 4 * (4 * 5 + 5 * 5), id="bidirectional"),
        pytest.param(SEQUENCE, lambda: L.TimeDistributed(L.Dense(5)), 6 * 2 * 4 * 5, id="time distributed"),
        pytest.param(
            (3, 9, 9, 2), lambda: L.ConvLSTM2D(4, 3), 3 * 2 * 4 * 4 * 49 * 9 * (2 + 4), id="conv lstm, state padded"
        ),
        pytest.param(SEQUENCE, lambda: L.Conv1D(6, 3, groups=2), 2 * 4 * 6 * 3 * 2, id="conv1d, two groups"),
        pytest.param(SEQUENCE, lambda: L.Conv1D(6, 3, dilation_rate=2), 2 * 2 * 6 * 3 * 4, id="conv1d, dilated"),
        pytest.param((5, 5, 5, 4), lambda: L.Conv3D(6, 2, groups=2), 2 * 64 * 6 * 8 * 2, id="conv3d, two groups"),
        pytest.param((5, 5, 5, 4), lambda: L.Conv3D(6, 2, dilation_rate=2), 2 * 27 * 6 * 8 * 4, id="conv3d, dilated"),
        pytest.param(
            (4, 9, 9),
            lambda: L.Conv2D(6, 3, data_format="channels_first"),
            2 * 49 * 6 * 36,
            id="conv2d, channels first",
        ),
        pytest.param(SEQUENCE, lambda: L.DepthwiseConv1D(3, depth_multiplier=2), 2 * 4 * 8 * 3, id="depthwise, 1d"),
        pytest.param(IMAGE, lambda: L.DepthwiseConv2D(3, dilation_rate=2), 2 * 25 * 4 * 9, id="depthwise, dilated"),
        pytest.param(SEQUENCE, lambda: L.SeparableConv1D(5, 3), 2 * 4 * 4 * 3 + 2 * 4 * 4 * 5, id="separable, 1d"),
        pytest.param(
            IMAGE,
            lambda: L.SeparableConv2D(5, 3, strides=2, depth_multiplier=2),
            2 * 16 * 8 * 9 + 2 * 16 * 8 * 5,
            id="separable, strides, two filters per channel",
        ),
        pytest.param(SEQUENCE, lambda: L.Conv1DTranspose(5, 3, strides=2), 2 * 6 * 4 * 5 * 3, id="transposed, 1d"),
        pytest.param(
            (5, 5, 5, 4), lambda: L.Conv3DTranspose(6, 2, strides=2), 2 * 125 * 4 * 6 * 8, id="transposed, 3d"
        ),
        pytest.param(SEQUENCE, lambda: L.LSTM(5, go_backwards=True), LSTM, id="lstm, backwards"),
        pytest.param(SEQUENCE, lambda: L.LSTM(5, unroll=True), LSTM, id="lstm, unrolled"),
        pytest.param(SEQUENCE, lambda: L.LSTM(5, return_sequences=True), LSTM, id="lstm, sequences"),
        pytest.param(
            SEQUENCE,
            lambda: L.RNN([L.LSTMCell(5), L.GRUCell(3)]),
            LSTM + 6 * 2 * 3 * 3 * (5 + 3),
            id="stacked cells",
        ),
        pytest.param(
            SEQUENCE, lambda: L.Bidirectional(L.RNN(L.GRUCell(5))), 2 * 6 * 2 * 3 * 45, id="both ways, a cell"
        ),
        pytest.param(
            SEQUENCE,
            lambda: L.Bidirectional(L.GRU(5), backward_layer=L.LSTM(5, go_backwards=True)),
            6 * 2 * 3 * 45 + LSTM,
            id="both ways, two kinds",
        ),
        pytest.param((3, *SEQUENCE), lambda: L.TimeDistributed(L.LSTM(5)), 3 * LSTM, id="lstm at each step"),
        pytest.param(
            (3, 4),
            lambda: L.TimeDistributed(keras.Sequential([L.Dense(5), L.Dense(2)])),
            3 * 2 * (20 + 10),
            id="a model at each step",
        ),
        pytest.param((3, 9, 2), lambda: L.ConvLSTM1D(4, 3), 3 * 2 * 4 * 4 * 7 * 3 * (2 + 4), id="conv lstm, 1d"),
        pytest.param((3, 5, 5, 5, 2), lambda: L.ConvLSTM3D(4, 2), 3 * 2 * 4 * 4 * 64 * 8 * (2 + 4), id="conv lstm, 3d"),
        pytest.param(ROWS, lambda: L.SpectralNormalization(L.Dense(5)), 2 * 4 * 5, id="spectral normalisation"),
        pytest.param(
            SEQUENCE,
            lambda: Function(lambda x: ops.einsum("btd,df,fe->bte", x, ops.ones((4, 5)), ops.ones((5, 3)))),
            2 * 6 * 4 * 5 + 2 * 6 * 5 * 3,
            id="einsum of three, from left to right",
        ),
        pytest.param(
            (6, 3, 4),
            lambda: Function(lambda x: ops.dot_product_attention(x, x, x)),
            2 * 2 * 3 * 36 * 4,
            id="attention in one",
        ),
        pytest.param(
            (6, 4, 4),
            lambda: Function(lambda x: ops.dot_product_attention(x, x[:, :, :2], x[:, :, :2])),
            2 * 2 * 4 * 36 * 4,
            id="attention in one, fewer heads of keys",
            marks=since("keras", "3.13", "TensorFlow's has as many heads of keys as of queries before"),
        ),
        pytest.param((8, 8), lambda: Function(lambda x: ops.fft2((x, x))[0]), 5 * 64 * 6, id="fft in two dimensions"),
        pytest.param((5,), lambda: Function(lambda x: ops.irfft((x, x))), 60, id="fft back to 8 real points"),
        pytest.param((16,), lambda: Function(lambda x: ops.stft(x, 8, 4, 8)[0]), 5 * 60, id="five frames of 8 points"),
        pytest.param(
            (2048,),
            lambda: L.MelSpectrogram(fft_length=256, sequence_stride=64, num_mel_bins=10),
            33 * (5 * 128 * 8 + 2 * 129 * 10),
            id="mel spectrogram, 33 frames",
        ),
        pytest.param(
            SEQUENCE, lambda: Function(lambda x: ops.map(lambda y: ops.matmul(y, square()), x)), 6 * 32, id="map"
        ),
        pytest.param(
            SEQUENCE,
            lambda: Function(lambda x: ops.vectorized_map(lambda y: ops.matmul(y, square()), x)),
            6 * 32,
            id="vectorized map",
        ),
        pytest.param(
            SEQUENCE,
            lambda: Function(
                lambda x: ops.scan(lambda c, y: (ops.matmul(c, square()), y), x[:, 0], ops.swapaxes(x, 0, 1))[0]
            ),
            6 * 32,
            id="scan",
        ),
        pytest.param(
            ROWS,
            lambda: Function(lambda x: ops.scan(lambda c, _: (ops.matmul(c, square()), c), x, None, length=3)[0]),
            3 * 32,
            id="scan of nothing, three times",
        ),
        pytest.param(
            ROWS,
            lambda: Function(lambda x: ops.fori_loop(0, 5, lambda i, y: ops.matmul(y, square()), x)),
            5 * 32,
            id="fori loop",
        ),
        pytest.param(
            ROWS,
            lambda: Function(
                lambda x: ops.while_loop(lambda i, y: i < 5, lambda i, y: (i + 1, ops.matmul(y, square())), (0, x))[1]
            ),
            5 * 32,
            id="while loop with a counter",
        ),
        pytest.param(
            ROWS,
            lambda: Function(
                lambda x: ops.cond(ops.sum(x) > 0, lambda: ops.matmul(x, square()), lambda: ops.matmul(-x, square()))
            ),
            32,
            id="branches that cost the same",
        ),
        pytest.param(
            ROWS, lambda: Weights(lambda one, x: one.c * (x @ one.a @ one.b) - one.c[:1]), 54, id="weights elementwise"
        ),
        pytest.param(SEQUENCE, lambda: L.Embedding(9, 4), 0, id="embedding"),
        pytest.param(IMAGE, lambda: L.BatchNormalization(), 0, id="batch normalisation"),
        pytest.param(IMAGE, lambda: L.MaxPooling2D(), 0, id="pooling"),
        pytest.param(ROWS, lambda: L.Softmax(), 0, id="softmax"),
        pytest.param(ROWS, lambda: Function(lambda x: ops.relu(x * 2 + 1)), 0, id="elementwise"),
        pytest.param(
            SEQUENCE, lambda: Function(lambda x: ops.matmul(x, ops.transpose(x, (0, 2, 1)))), 2 * 36 * 4, id="matmul"
        ),
        pytest.param(SEQUENCE, lambda: Function(lambda x: ops.einsum("btd,bsd->bts", x, x)), 2 * 36 * 4, id="einsum"),
        pytest.param(
            SEQUENCE, lambda: Function(lambda x: ops.einsum("...td,...sd->...ts", x, x)), 2 * 36 * 4, id="einsum, dots"
        ),
        pytest.param(
            SEQUENCE, lambda: Function(lambda x: ops.einsum("btd,btd->btd", x, x)), 0, id="einsum, elementwise"
        ),
        pytest.param(SEQUENCE, lambda: Function(lambda x: ops.einsum("btd->bt", x)), 0, id="einsum, a sum"),
        pytest.param(
            SEQUENCE, lambda: Function(lambda x: ops.tensordot(x, ops.ones((6, 4, 3)), 2)), 2 * 24 * 3, id="tensordot"
        ),
        pytest.param((8,), lambda: Function(lambda x: ops.rfft(x)[0]), 60, id="fft of 8 real points: 2.5 N log2 N"),
        pytest.param(
            (8,), lambda: Function(lambda x: ops.fft((x, x))[0]), 120, id="fft of 8 complex points: 5 N log2 N"
        ),
        pytest.param(
            (4, 3),
            lambda: Function(lambda x: ops.solve_triangular(ops.matmul(x, ops.swapaxes(x, 1, 2)), x, lower=True)),
            2 * 4 * 4 * 3 + 3 * (4 * 5 // 2 + 4 * 3 // 2),
            id="triangular systems: products and divisions, and sums",
        ),
        pytest.param(
            (8,),
            lambda: Function(lambda x: x + ops.correlate(x[0], ops.ones(3), "same")),
            2 * 8 * 3 // 2,
            id="correlation with 3 values: 3 multiply-adds for each output, of one example only",
        ),
        pytest.param(
            SEQUENCE,
            lambda: Function(
                lambda x: ops.ctc_loss(ops.ones_like(x[:, :2, 0], "int32"), x, 2 + 0 * _ones(x), 6 * _ones(x))
            ),
            0,
            id="CTC loss",
        ),
    ],
)
def test_flops_of_a_layer(summarize: Any, shape: tuple[int, ...], layer: Callable[[], Any], expected: int) -> None:
    """One layer, one input, batch 2: the work of one example, twice."""

    def build() -> keras.Model:
        x = keras.Input(shape)
        return keras.Model(x, layer()(x))

    summary = summarize(build, B=2)
    assert summary.flops.value == 2 * expected
    assert summary.flops.uncounted == ()
    assert summary.layers[1].flops == 2 * expected


@needs(ops, "view_as_complex")
@pytest.mark.parametrize(
    ("function", "products"),
    [
        pytest.param(lambda x: ops.matmul(x, ops.conj(ops.swapaxes(x, 1, 2))), 6 * 6 * 4, id="matmul"),
        pytest.param(lambda x: ops.einsum("btd,bsd->bts", x, x), 6 * 6 * 4, id="einsum"),
        pytest.param(lambda x: x * x, 0, id="elementwise"),
    ],
)
def test_a_complex_multiply_add_is_eight(summarize: Any, function: Callable[..., Any], products: int) -> None:
    """Four products and four sums of real numbers, on each backend."""

    def build() -> keras.Model:
        x = keras.Input((6, 4, 2))
        return keras.Model(x, Function(lambda y: ops.real(function(ops.view_as_complex(y))))(x))

    flops = summarize(build, B=2).flops
    assert (flops.value, flops.uncounted) == (2 * 8 * products, ())


def _lora(layer: L.Layer) -> L.Layer:
    layer.build((None, *IMAGE) if isinstance(layer, L.Conv2D) else (None, *ROWS))
    layer.enable_lora(2)
    return layer


def _quantized(layer: L.Layer, mode: str) -> L.Layer:
    layer.build((None, *ROWS))
    layer.quantize(mode)
    return layer


@pytest.mark.parametrize(
    ("shape", "layer", "expected"),
    [
        pytest.param(
            ROWS, lambda: Weights(lambda one, x: x @ (one.a @ one.b)), 2 * 4 * 3 * 5 + 2 * 4 * 5, id="of two weights"
        ),
        pytest.param(
            ROWS,
            lambda: Weights(lambda one, x: ops.matmul(x, ops.matmul(one.a.value, one.b.value))),
            2 * 4 * 3 * 5 + 2 * 4 * 5,
            id="of the values of two weights",
        ),
        pytest.param(ROWS, lambda: _lora(L.Dense(5)), 2 * 4 * 5 + 2 * 4 * 2 * 5, id="lora, dense"),
        pytest.param(IMAGE, lambda: _lora(L.Conv2D(6, 3)), 2 * 49 * 6 * 36 + 2 * 36 * 2 * 6, id="lora, conv2d"),
        pytest.param(SEQUENCE, lambda: _lora(L.Embedding(9, 4)), 2 * 9 * 2 * 4, id="lora, embedding"),
        *(
            pytest.param(ROWS, lambda mode=mode: _quantized(L.Dense(6), mode), 2 * 4 * 6, id=mode)  # type: ignore[misc]
            for mode in ("int8", "int4", "float8")
        ),
    ],
)
def test_products_of_weights(summarize: Any, shape: tuple[int, ...], layer: Callable[[], Any], expected: int) -> None:
    """Weights are multiplied with each other once, whatever the batch; quantised ones as they are used."""

    def build() -> keras.Model:
        x = keras.Input(shape)
        return keras.Model(x, layer()(x))

    flops = summarize(build).flops
    assert (flops.value, flops.uncounted) == (expected, ())
