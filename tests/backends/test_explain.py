"""Why a layer has the params it has, for real layers of torch and Keras, in the same words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_modelbudget.inputs import parse
from pytest_modelbudget.summary import Layer
from pytest_modelbudget.summary.formulas import why


def _torch(make: Callable[[Any], Any], inputs: object) -> list[Layer]:
    nn = pytest.importorskip("torch").nn
    from pytest_modelbudget.backends import torch as backend

    with backend.global_state_restored(), backend.abstract():
        model = make(nn)
    given = parse(inputs)
    return list(backend.summarize(model, name="m", inputs=given, sizes={"B": 2}, built_here=True).layers)


@pytest.mark.parametrize(
    ("make", "inputs", "texts"),
    [
        pytest.param(lambda nn: nn.Linear(100, 50), "float32[B, 100]", ["in*out + out: 100*50 + 50 = 5,050"], id="Linear"),
        pytest.param(lambda nn: nn.Conv2d(32, 64, 3), "float32[B, 32, 8, 8]", ["k*k*in/groups*out + out: 3*3*32*64 + 64 = 18,496"], id="Conv2d"),
        pytest.param(lambda nn: nn.Conv2d(32, 32, 3, groups=32, bias=False), "float32[B, 32, 8, 8]", ["k*k*in/groups*out: 3*3*1*32 = 288"], id="depthwise Conv2d"),
        pytest.param(lambda nn: nn.ConvTranspose1d(4, 8, 3, groups=2), "float32[B, 4, 8]", ["k*in*out/groups + out: 3*4*4 + 8 = 56"], id="grouped ConvTranspose1d"),
        pytest.param(lambda nn: nn.LSTM(1, 64), "float32[B, 5, 1]", ["4*units*(inputs + units + 2): 4*64*(1 + 64 + 2) = 17,152"], id="LSTM"),
        pytest.param(lambda nn: nn.GRU(64, 32), "float32[B, 5, 64]", ["3*units*(inputs + units + 2): 3*32*(64 + 32 + 2) = 9,408"], id="GRU"),
        pytest.param(lambda nn: nn.LSTMCell(64, 32), "float32[B, 64]", ["4*units*(inputs + units + 2): 4*32*(64 + 32 + 2) = 12,544"], id="LSTMCell"),
        pytest.param(lambda nn: nn.LSTM(1, 64, num_layers=3, bidirectional=True), "float32[B, 5, 1]", ["4*units*(inputs + units + 2) for each layer and direction: 2 * 4*64*(1 + 64 + 2) + 4 * 4*64*(128 + 64 + 2) = 232,960"], id="three layers in two directions"),
        pytest.param(lambda nn: nn.BatchNorm2d(64), "float32[B, 64, 4, 4]", ["(scale + shift)*channels: 2*64 = 128"], id="BatchNorm2d"),
        pytest.param(lambda nn: nn.Bilinear(3, 4, 5), ["float32[B, 3]", "float32[B, 4]"], ["in1*in2*out + out: 3*4*5 + 5 = 65"], id="Bilinear"),
        pytest.param(lambda nn: nn.TransformerEncoderLayer(64, 4, 128), "float32[B, 3, 64]", ["3*(width*width + width): 3*(64*64 + 64) = 12,480", "in*out + out: 64*64 + 64 = 4,160", "in*out + out: 64*128 + 128 = 8,320", "in*out + out: 128*64 + 64 = 8,256", "(scale + shift)*width: 2*64 = 128", "(scale + shift)*width: 2*64 = 128"], id="TransformerEncoderLayer"),
        pytest.param(lambda nn: nn.PReLU(), "float32[B, 3]", ["weight 1 = 1"], id="PReLU"),
    ],
)  # fmt: skip
def test_layers_of_torch(make: Callable[[Any], Any], inputs: object, texts: list[str]) -> None:
    """As torch really stores them."""
    assert [text for row in _torch(make, inputs) if (text := why(row))] == texts


def _keras(make: Callable[[Any], Any], shape: tuple[int, ...]) -> list[Layer]:
    keras = pytest.importorskip("keras", minversion="3.0")
    from pytest_modelbudget.backends import keras as backend

    with backend.global_state_restored(), backend.abstract():
        model = keras.Sequential([keras.Input(shape), make(keras.layers)])
    return list(backend.summarize(model, name="m", inputs=None, sizes={}, built_here=True).layers)


@pytest.mark.parametrize(
    ("make", "shape", "text"),
    [
        pytest.param(lambda layers: layers.Dense(50), (100,), "in*out + out: 100*50 + 50 = 5,050", id="Dense"),
        pytest.param(lambda layers: layers.Conv2D(32, 3), (28, 28, 3), "k*k*in/groups*out + out: 3*3*3*32 + 32 = 896", id="Conv2D"),
        pytest.param(lambda layers: layers.Conv1D(8, 3, groups=2), (9, 4), "k*in/groups*out + out: 3*2*8 + 8 = 56", id="grouped Conv1D"),
        pytest.param(lambda layers: layers.Conv2DTranspose(8, 3), (8, 8, 4), "k*k*in*out/groups + out: 3*3*4*8 + 8 = 296", id="Conv2DTranspose"),
        pytest.param(lambda layers: layers.DepthwiseConv2D(3, depth_multiplier=2), (8, 8, 4), "k*k*in*multiplier + in*multiplier: 3*3*4*2 + 8 = 80", id="DepthwiseConv2D"),
        pytest.param(lambda layers: layers.SeparableConv2D(8, 3, depth_multiplier=2), (8, 8, 4), "k*k*in*multiplier + in*multiplier*out + out: 3*3*4*2 + 4*2*8 + 8 = 144", id="SeparableConv2D"),
        pytest.param(lambda layers: layers.LSTM(64), (50, 1), "4*units*(inputs + units + 1): 4*64*(1 + 64 + 1) = 16,896", id="first LSTM of the classic"),
        pytest.param(lambda layers: layers.LSTM(32), (50, 64), "4*units*(inputs + units + 1): 4*32*(64 + 32 + 1) = 12,416", id="second LSTM of the classic"),
        pytest.param(lambda layers: layers.GRU(32), (50, 64), "3*units*(inputs + units + 2): 3*32*(64 + 32 + 2) = 9,408", id="GRU"),
        pytest.param(lambda layers: layers.GRU(32, reset_after=False), (50, 64), "3*units*(inputs + units + 1): 3*32*(64 + 32 + 1) = 9,312", id="GRU that resets before"),
        pytest.param(lambda layers: layers.SimpleRNN(32, use_bias=False), (50, 64), "units*(inputs + units): 32*(64 + 32) = 3,072", id="SimpleRNN without bias"),
        pytest.param(lambda layers: layers.Bidirectional(layers.LSTM(32)), (50, 64), "4*units*(inputs + units + 1) for each layer and direction: 2 * 4*32*(64 + 32 + 1) = 24,832", id="Bidirectional"),
        pytest.param(lambda layers: layers.Embedding(1000, 16), (10,), "vocabulary*width: 1000*16 = 16,000", id="Embedding"),
        pytest.param(lambda layers: layers.BatchNormalization(), (8, 8, 64), "(scale + shift + mean + variance)*channels: 4*64 = 256", id="BatchNormalization"),
        pytest.param(lambda layers: layers.LayerNormalization(), (64,), "(scale + shift)*width: 2*64 = 128", id="LayerNormalization"),
        pytest.param(lambda layers: layers.TimeDistributed(layers.Dense(3)), (4, 5), "in*out + out: 5*3 + 3 = 18", id="TimeDistributed"),
        pytest.param(lambda layers: layers.TimeDistributed(layers.Conv1D(3, 2)), (4, 6, 5), "kernel 2x5x3 + bias 3 = 33", id="TimeDistributed around a layer its weights do not tell"),
        pytest.param(lambda layers: layers.RNN([layers.LSTMCell(4), layers.LSTMCell(4)]), (7, 5), "4*units*(inputs + units + 1) for each layer and direction: 4*4*(5 + 4 + 1) + 4*4*(4 + 4 + 1) = 304", id="stacked cells"),
        pytest.param(lambda layers: layers.RNN([layers.LSTMCell(4), layers.SimpleRNNCell(3)]), (7, 5), "lstm_cell/kernel 5x16 + lstm_cell/recurrent_kernel 4x16 + lstm_cell/bias 16 + simple_rnn_cell/kernel 4x3 + simple_rnn_cell/recurrent_kernel 3x3 + simple_rnn_cell/bias 3 = 184", id="stacked cells of two kinds"),
        pytest.param(lambda layers: layers.ConvLSTM2D(4, 3), (7, 8, 8, 3), "4*filters*(k*k*in + k*k*filters + 1): 4*4*(3*3*3 + 3*3*4 + 1) = 1,024", id="ConvLSTM2D"),
        pytest.param(lambda layers: layers.ConvLSTM1D(4, 3, use_bias=False), (7, 8, 3), "4*filters*(k*in + k*filters): 4*4*(3*3 + 3*4) = 336", id="ConvLSTM1D without bias"),
        pytest.param(lambda layers: layers.EinsumDense("ab,bc->ac", 3, bias_axes="c"), (5,), "kernel 5x3 + bias 3 = 18", id="EinsumDense"),
        pytest.param(lambda layers: layers.SpectralNormalization(layers.Dense(4)), (8,), "kernel 8x4 + vector_u 1x4 + bias 4 = 40", id="SpectralNormalization"),
        pytest.param(lambda layers: layers.GroupNormalization(4), (8, 8), "(scale + shift)*channels: 2*8 = 16", id="GroupNormalization"),
        pytest.param(lambda layers: layers.PReLU(), (5,), "alpha 5 = 5", id="PReLU"),
        pytest.param(lambda layers: layers.Dense(16, lora_rank=2), (8,), "kernel 8x16 + bias 16 + lora_kernel_a 8x2 + lora_kernel_b 2x16 = 192", id="LoRA"),
        pytest.param(lambda layers: layers.Dense(16, dtype="int8_from_float32"), (8,), "in*out + out: 8*16 + 16 = 144; kernel int8: 128 bytes", id="int8"),
        pytest.param(lambda layers: layers.Dense(16, dtype="float8_from_float32"), (8,), "in*out + out: 8*16 + 16 = 144", id="float8"),
        pytest.param(lambda layers: layers.ReLU(), (4,), "", id="ReLU"),
    ],
)  # fmt: skip
def test_layers_of_keras(make: Callable[[Any], Any], shape: tuple[int, ...], text: str) -> None:
    """As Keras really stores them, in the words used for torch."""
    assert [why(row) for row in _keras(make, shape)] == [text]


def test_attention_of_keras() -> None:
    """Query, key and value of 64 to 4 heads of 16, and back: 3 * 4,160 + 4,160."""
    keras = pytest.importorskip("keras", minversion="3.0")
    from pytest_modelbudget.backends import keras as backend

    ins = keras.Input((5, 64))
    model = keras.Model(ins, keras.layers.MultiHeadAttention(4, 16)(ins, ins))
    rows = backend.summarize(model, name="m", inputs=None, sizes={}, built_here=False).layers
    assert why(rows[-1]) == (
        "3*(width*heads*size + heads*size) + heads*size*width + width: 3*(64*4*16 + 4*16) + 4*16*64 + 64 = 16,640"
    )
    assert [[spec.dims for spec in call] for call in rows[-1].inputs] == [["[B, 5, 64]", "[B, 5, 64]"]]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        pytest.param(lambda layers, x, y: layers.MultiHeadAttention(2, 8, use_bias=False)(x, x), "3*width*heads*size + heads*size*width: 3*16*2*8 + 2*8*16 = 1,024", id="without bias"),
        pytest.param(lambda layers, x, y: layers.MultiHeadAttention(2, 8, value_dim=4)(x, x), "2*(width*heads*size + heads*size) + width*heads*size + heads*size + heads*size*width + width: 2*(16*2*8 + 2*8) + 16*2*4 + 2*4 + 2*4*16 + 16 = 824", id="smaller values"),
        pytest.param(lambda layers, x, y: layers.MultiHeadAttention(2, 8)(x, y), "width*heads*size + heads*size + 2*(width*heads*size + heads*size) + heads*size*width + width: 16*2*8 + 2*8 + 2*(24*2*8 + 2*8) + 2*8*16 + 16 = 1,344", id="another sequence"),
        pytest.param(lambda layers, x, y: layers.GroupQueryAttention(8, 4, 2)(x, x), "width*heads*size + heads*size + 2*(width*groups*size + groups*size) + heads*size*width + width: 16*4*8 + 4*8 + 2*(16*2*8 + 2*8) + 4*8*16 + 16 = 1,616", id="grouped queries"),
    ],
)  # fmt: skip
def test_attentions_of_keras(make: Callable[[Any, Any, Any], Any], text: str) -> None:
    """Parts of one size are put together, others stand one by one."""
    keras = pytest.importorskip("keras", minversion="3.0")
    from pytest_modelbudget.backends import keras as backend

    with backend.global_state_restored(), backend.abstract():
        x, y = keras.Input((5, 16)), keras.Input((6, 24))
        model = keras.Model([x, y], [make(keras.layers, x, y), keras.layers.ReLU()(y)])
    rows = backend.summarize(model, name="m", inputs=None, sizes={}, built_here=True).layers
    assert [why(row) for row in rows if row.params] == [text]
