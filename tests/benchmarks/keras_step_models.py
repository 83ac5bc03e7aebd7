"""Keras models whose steps are measured: those that rules were tried on, and those that were kept back until the rules stood."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import layers as L

Sizes = tuple[int, ...]
Case = tuple[Callable[[], Any], int, Sizes]
"""Builder, batch, and the sizes of the targets after it."""


def mlp() -> Any:
    hidden = [L.Dense(1024, activation="relu") for _ in range(4)]
    return keras.Sequential([keras.Input((784,)), *hidden, L.Dense(10)])


def cnn() -> Any:
    x = y = keras.Input((64, 64, 3))
    for filters in (64, 64, 128, 128):
        y = L.ReLU()(L.BatchNormalization()(L.Conv2D(filters, 3, padding="same", use_bias=False)(y)))
    return keras.Model(x, L.Dense(10)(L.GlobalAveragePooling2D()(y)))


def application(name: str) -> Callable[[], Any]:
    options = {"weights": None, "input_shape": (128, 128, 3), "classes": 10, "classifier_activation": None}
    return lambda: getattr(keras.applications, name)(**options)


def lstm() -> Any:
    x = keras.Input((200,), dtype="int32")
    y = L.LSTM(128, return_sequences=True)(L.Embedding(20_000, 128)(x))
    return keras.Model(x, L.Dense(10)(L.LSTM(128)(y)))


def transformer() -> Any:
    x = keras.Input((256,), dtype="int32")
    y = L.Embedding(10_000, 256)(x)
    for _ in range(2):
        y = L.LayerNormalization()(y + L.MultiHeadAttention(8, 32)(y, y, use_causal_mask=True))
        y = L.LayerNormalization()(y + L.Dense(256)(L.Dense(1024, activation="gelu")(y)))
    return keras.Model(x, L.Dense(10_000)(y))


def unet() -> Any:
    def convolved(y: Any, filters: int) -> Any:
        inner = L.Conv2D(filters, 3, padding="same", activation="relu")(y)
        return L.Conv2D(filters, 3, padding="same", activation="relu")(inner)

    x = y = keras.Input((96, 96, 3))
    skips = []
    for filters in (16, 32, 64):
        y = convolved(y, filters)
        skips.append(y)
        y = L.MaxPooling2D()(y)
    y = convolved(y, 128)
    for filters in (64, 32, 16):
        up = L.Conv2DTranspose(filters, 2, strides=2, padding="same")(y)
        y = convolved(L.Concatenate()([up, skips.pop()]), filters)
    return keras.Model(x, L.Conv2D(4, 1)(y))


def towers() -> Any:
    user, words = keras.Input((), dtype="int32"), keras.Input((20,), dtype="int32")
    left = L.Dense(64)(L.Dense(256, activation="relu")(L.Embedding(50_000, 64)(user)))
    mean = L.GlobalAveragePooling1D()(L.Embedding(20_000, 64)(words))
    right = L.Dense(64)(L.Dense(256, activation="relu")(mean))
    return keras.Model([user, words], L.Dense(2)(L.Concatenate()([left, right, left * right])))


def text_cnn() -> Any:
    x = keras.Input((400,), dtype="int32")
    y = L.Embedding(20_000, 128)(x)
    pooled = [L.GlobalMaxPooling1D()(L.Conv1D(128, size, activation="relu")(y)) for size in (3, 4, 5)]
    return keras.Model(x, L.Dense(10)(L.Dropout(0.5)(L.Concatenate()(pooled))))


def gru() -> Any:
    x = keras.Input((120, 40))
    y = L.GRU(192, return_sequences=True)(L.GRU(192, return_sequences=True)(x))
    return keras.Model(x, L.Dense(30)(y))


def bidirectional() -> Any:
    x = keras.Input((150,), dtype="int32")
    y = L.Bidirectional(L.LSTM(96, return_sequences=True))(L.Embedding(20_000, 128)(x))
    return keras.Model(x, L.Dense(10)(L.GlobalAveragePooling1D()(y)))


def autoencoder() -> Any:
    x = y = keras.Input((96, 96, 3))
    for filters in (32, 64, 128):
        y = L.LeakyReLU()(L.Conv2D(filters, 3, strides=2, padding="same")(y))
    for filters in (64, 32, 16):
        y = L.LeakyReLU()(L.BatchNormalization()(L.Conv2DTranspose(filters, 3, strides=2, padding="same")(y)))
    return keras.Model(x, L.Conv2D(4, 3, padding="same")(y))


def crosses() -> Any:
    ids, numbers = keras.Input((26,), dtype="int32"), keras.Input((13,))
    split = [L.Embedding(5_000, 16)(ids[:, place]) for place in range(26)]
    x0 = y = L.Concatenate()([*split, numbers])
    for _ in range(3):
        y = x0 * L.Dense(x0.shape[-1])(y) + y
    deep = L.Dense(256, activation="relu")(L.Dense(512, activation="relu")(x0))
    return keras.Model([ids, numbers], L.Dense(2)(L.Concatenate()([y, deep])))


def gpt() -> Any:
    x = keras.Input((192,), dtype="int32")
    places = L.Embedding(192, 192)(keras.ops.arange(192))
    y = L.Dropout(0.1)(L.Embedding(8_000, 192)(x) + places)
    for _ in range(3):
        z = L.LayerNormalization()(y)
        y = y + L.MultiHeadAttention(6, 32, dropout=0.1)(z, z, use_causal_mask=True)
        z = L.LayerNormalization()(y)
        y = y + L.Dense(192)(L.Dense(768, activation="gelu")(z))
    return keras.Model(x, L.Dense(8_000)(L.LayerNormalization()(y)))


def siamese() -> Any:
    image = z = keras.Input((48, 48, 3))
    for filters in (32, 64, 128):
        z = L.MaxPooling2D()(L.Conv2D(filters, 3, activation="relu")(z))
    encoder = keras.Model(image, L.Dense(64)(L.Flatten()(z)))
    left, right = keras.Input((48, 48, 3)), keras.Input((48, 48, 3))
    return keras.Model([left, right], L.Dense(2)(keras.ops.abs(encoder(left) - encoder(right))))


def simple_rnn() -> Any:
    x = keras.Input((100, 64))
    y = L.SimpleRNN(256, return_sequences=True)(x)
    y = L.SimpleRNN(256)(y)
    return keras.Model(x, L.Dense(10)(y))


def seq2seq() -> Any:
    a, b = keras.Input((60,), dtype="int32"), keras.Input((40,), dtype="int32")
    e = L.Embedding(8000, 192)
    _, h, c = L.LSTM(256, return_state=True)(e(a))
    y = L.LSTM(256, return_sequences=True)(e(b), initial_state=[h, c])
    return keras.Model([a, b], L.Dense(8000)(y))


def convlstm() -> Any:
    x = keras.Input((10, 24, 24, 3))
    y = L.ConvLSTM2D(32, 3, padding="same", return_sequences=False)(x)
    return keras.Model(x, L.Dense(10)(L.GlobalAveragePooling2D()(y)))


def masked_gru() -> Any:
    x = keras.Input((80,), dtype="int32")
    y = L.GRU(160)(L.Embedding(6000, 128, mask_zero=True)(x))
    return keras.Model(x, L.Dense(10)(y))


def stateful() -> Any:
    x = keras.Input(batch_shape=(32, 60, 40))
    y = L.GRU(128, stateful=True)(L.LSTM(160, stateful=True, return_sequences=True)(x))
    return keras.Model(x, L.Dense(10)(y))


def audio() -> Any:
    x = keras.Input((256, 40))
    y = L.Conv1D(128, 5, strides=2, activation="relu", padding="same")(x)
    y = L.LayerNormalization()(y)
    y = L.Bidirectional(L.GRU(128, return_sequences=True))(y)
    return keras.Model(x, L.Dense(40)(y))


TUNED: dict[str, Case] = {
    "mlp": (mlp, 4096, ()),
    "cnn": (cnn, 16, ()),
    "resnet50": (application("ResNet50"), 8, ()),
    "mobilenetv2": (application("MobileNetV2"), 16, ()),
    "lstm": (lstm, 32, ()),
    "transformer": (transformer, 8, (256,)),
    "unet": (unet, 16, (96, 96)),
    "towers": (towers, 4096, ()),
}
"""The models on which rules were tried."""

KEPT_BACK: dict[str, Case] = {
    "text_cnn": (text_cnn, 32, ()),
    "gru": (gru, 32, (120,)),
    "bidirectional": (bidirectional, 32, ()),
    "efficientnetb0": (application("EfficientNetB0"), 8, ()),
    "densenet121": (application("DenseNet121"), 8, ()),
    "autoencoder": (autoencoder, 16, (96, 96)),
    "crosses": (crosses, 2048, ()),
    "gpt": (gpt, 8, (192,)),
    "siamese": (siamese, 32, ()),
    "simple_rnn": (simple_rnn, 64, ()),
    "seq2seq": (seq2seq, 48, (40,)),
    "convlstm": (convlstm, 8, ()),
    "masked_gru": (masked_gru, 64, ()),
    "audio": (audio, 48, (128,)),
    "stateful": (stateful, 32, ()),
}
"""The models that were measured when the rules stood."""

MODELS: dict[str, Case] = {**TUNED, **KEPT_BACK}
