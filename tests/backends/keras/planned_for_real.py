"""Run as a script with KERAS_BACKEND=torch: planned peaks beside those of real steps, in bytes, as JSON."""

from __future__ import annotations

import gc
import json
from typing import Any

import keras
import numpy as np
from keras import layers as L

from pytest_modelbudget import plan
from tests.real_steps import KERNELS, measured

BATCH = 64


def dense() -> Any:
    return keras.Sequential([keras.Input((256,)), *[L.Dense(512, activation="relu") for _ in range(3)], L.Dense(10)])


def words() -> Any:
    x = keras.Input((32,), dtype="int32")
    y = L.Embedding(1000, 64)(x)
    y = L.LayerNormalization()(y + L.MultiHeadAttention(4, 16)(y, y))
    return keras.Model(x, L.Dense(10)(L.GlobalAveragePooling1D()(y)))


def image() -> Any:
    x = keras.Input((16, 16, 3))
    y = L.ReLU()(L.BatchNormalization()(L.Conv2D(16, 3, padding="same")(x)))
    z = L.Concatenate()([L.Conv2D(16, 3, padding="same", activation="relu")(y), y])
    return keras.Model(x, L.Dense(10)(L.GlobalAveragePooling2D()(z)))


def pooled() -> Any:
    """Skips around pooling, whose gradients are parts of tensors with channels last."""
    x = keras.Input((16, 16, 3))
    y = L.Conv2D(16, 3, padding="same", activation="silu")(x)
    pools = L.MaxPooling2D(3, strides=1, padding="same"), L.AveragePooling2D(3, strides=1, padding="same")
    z = L.Concatenate()([pool(y) for pool in pools])
    z = L.Concatenate()([L.UpSampling2D()(L.MaxPooling2D()(z)), y])
    return keras.Model(x, L.Dense(10)(L.GlobalMaxPooling2D()(z)))


def _compiled(build: Any) -> Any:
    model = build()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def _bytes(tensors: Any) -> int:
    return sum(tensor.value.nbytes for tensor in tensors)


def step(build: Any) -> int:
    """The allocator's peak of two steps, whose second finds the gradients of the first, on top of what was there."""
    model = _compiled(build)
    [tensor] = model.inputs
    x, y = np.zeros((BATCH, *tensor.shape[1:]), tensor.dtype), np.zeros(BATCH, "int32")
    for _ in range(2):
        model.train_on_batch(x, y)
    there = x.nbytes + y.nbytes + _bytes(model.weights) + _bytes(model.optimizer.variables)

    def train() -> None:
        gc.collect()  # of what Keras' calls leave behind, which is not to happen somewhere in the step
        gc.disable()
        model.train_on_batch(x, y)
        gc.enable()

    return measured(train, 2) + there


def forward(build: Any) -> int:
    """The allocator's peak of a pass without gradients."""
    model = _compiled(build)
    [tensor] = model.inputs
    x = np.zeros((BATCH, *tensor.shape[1:]), tensor.dtype)
    model.predict_on_batch(x)

    def predict() -> None:
        gc.collect()
        gc.disable()
        model.predict_on_batch(x)
        gc.enable()

    return measured(predict, 1) + x.nbytes + _bytes(model.weights)


def main() -> None:
    peaks = {}
    for build in (dense, words, *([image, pooled] if KERNELS else [])):
        recipe = {"batch": BATCH, "kernels": KERNELS or "cpu"}
        trained = plan(lambda: _compiled(build), training=recipe)  # noqa: B023
        passed = plan(build, inference=recipe)
        peaks[f"{build.__name__}, training"] = trained.peak_bytes, step(build)
        peaks[f"{build.__name__}, inference"] = passed.peak_bytes, forward(build)
    print(json.dumps(peaks))


if __name__ == "__main__":
    main()
