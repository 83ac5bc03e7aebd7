"""The three classic `model.summary()` tables, in Keras."""

from __future__ import annotations

import keras
from keras import layers


def cnn(classes: int = 10) -> keras.Model:
    """A small convolutional network on 28x28 colour images: 225,610 params, most of them in the first Dense."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 3)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(classes, activation="softmax"),
        ]
    )


def lstm() -> keras.Model:
    """Two stacked LSTMs over 50 steps of one value; the number of steps adds no params: 29,345."""
    return keras.Sequential(
        [keras.Input((50, 1)), layers.LSTM(64, return_sequences=True), layers.LSTM(32), layers.Dense(1)]
    )


def two_inputs() -> keras.Model:
    """Two branches joined by a Concatenate: 6,201 params."""
    user, item = keras.Input((100,), name="user"), keras.Input((20,), name="item")
    joined = layers.Concatenate()([layers.Dense(50)(user), layers.Dense(50)(item)])
    return keras.Model([user, item], layers.Dense(1)(joined))
