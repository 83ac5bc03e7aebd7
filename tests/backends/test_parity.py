"""The same architecture in Keras and in torch costs the same number of FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_modelbudget.inputs import parse
from pytest_modelbudget.summary import Summary

torch: Any = pytest.importorskip("torch")
keras: Any = pytest.importorskip("keras")

from keras import layers as L  # noqa: E402
from torch import nn  # noqa: E402

from pytest_modelbudget.backends import keras as keras_backend  # noqa: E402
from pytest_modelbudget.backends import torch as torch_backend  # noqa: E402


def keras_cnn() -> Any:
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            L.Conv2D(16, 3, padding="same"),
            L.BatchNormalization(),
            L.ReLU(),
            L.DepthwiseConv2D(3, padding="same"),
            L.Conv2D(32, 1),
            L.MaxPooling2D(),
            L.Conv2D(32, 3, groups=4, dilation_rate=2),
            L.Conv2DTranspose(8, 2, strides=2),
            L.GlobalAveragePooling2D(),
            L.Dense(10, activation="softmax"),
        ]
    )


def torch_cnn() -> Any:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Conv2d(16, 32, 1),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, groups=4, dilation=2),
        nn.ConvTranspose2d(32, 8, 2, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
        nn.Softmax(-1),
    )


def keras_block() -> Any:
    x = keras.Input((20, 32))
    y = x + L.MultiHeadAttention(4, 8)(L.LayerNormalization()(x), L.LayerNormalization()(x))
    return keras.Model(x, y + L.Dense(32)(L.Dense(128, activation="gelu")(L.LayerNormalization()(y))))


def torch_block() -> Any:
    return nn.TransformerEncoderLayer(32, 4, 128, activation="gelu", batch_first=True, norm_first=True)


def keras_lstm() -> Any:
    layers = [L.Bidirectional(L.LSTM(6, return_sequences=True)), L.LSTM(5, return_sequences=True), L.Dense(3)]
    return keras.Sequential([keras.Input((20, 8)), *layers])


class TorchLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LSTM(8, 6, bidirectional=True, batch_first=True), nn.LSTM(12, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.second(self.first(x)[0])[0])


def counted(backend: Any, build: Callable[[], Any], inputs: str) -> Summary:
    with backend.global_state_restored(), backend.abstract():
        model = build()
    summary: Summary = backend.summarize(model, name="model", inputs=parse(inputs), sizes={"B": 3}, built_here=True)
    return summary


@pytest.mark.parametrize(
    ("of_keras", "of_torch", "keras_inputs", "torch_inputs"),
    [
        pytest.param(keras_cnn, torch_cnn, "float32[B, 32, 32, 3]", "float32[B, 3, 32, 32]", id="convolutions"),
        pytest.param(keras_block, torch_block, "float32[B, 20, 32]", "float32[B, 20, 32]", id="transformer block"),
        pytest.param(keras_lstm, TorchLstm, "float32[B, 20, 8]", "float32[B, 20, 8]", id="lstm, both ways"),
    ],
)
def test_keras_and_torch_count_the_same(
    of_keras: Callable[[], Any], of_torch: Callable[[], Any], keras_inputs: str, torch_inputs: str
) -> None:
    """One table of rules, whatever the framework: what is elementwise or normalises is free in both."""
    first, second = counted(keras_backend, of_keras, keras_inputs), counted(torch_backend, of_torch, torch_inputs)
    assert first.flops.value == second.flops.value
    assert first.flops.value
    assert first.flops.uncounted == second.flops.uncounted == ()
