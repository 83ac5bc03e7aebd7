"""A network that hears a wake word on a microcontroller, and the 8-bit file that is shipped of it.

`python examples/wake_word.py` writes `wake_word.tflite` beside this file. It takes TensorFlow; to check the file takes
nothing. No training happens here: weights are drawn, which moves no size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
from keras import layers

FRAMES, COEFFICIENTS, WORDS = 49, 10, 4
FILE = Path(__file__).with_suffix(".tflite")


def wake_word() -> keras.Model:
    """A depthwise-separable network over one second of speech, as 49 frames of 10 coefficients."""
    speech = keras.Input((FRAMES, COEFFICIENTS, 1), batch_size=1, name="speech")
    hidden = layers.Conv2D(32, (10, 4), strides=2, padding="same", use_bias=False)(speech)
    hidden = layers.ReLU()(layers.BatchNormalization()(hidden))
    for _ in range(3):
        hidden = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(hidden)
        hidden = layers.ReLU()(layers.BatchNormalization()(hidden))
        hidden = layers.Conv2D(32, 1, use_bias=False)(hidden)
        hidden = layers.ReLU()(layers.BatchNormalization()(hidden))
    hidden = layers.GlobalAveragePooling2D()(hidden)
    return keras.Model(speech, layers.Dense(WORDS, activation="softmax", name="word")(hidden), name="wake_word")


def export(model: keras.Model) -> bytes:
    """The file of `model`, with inputs, outputs, weights and operators of 8 bits."""
    import tensorflow as tf

    def speech() -> Iterator[list[np.ndarray]]:
        draw = np.random.default_rng(0)
        for _ in range(8):
            yield [draw.normal(size=(1, FRAMES, COEFFICIENTS, 1)).astype("float32")]

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = speech
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


def with_drawn_weights(model: keras.Model) -> keras.Model:
    """`model` as if it were trained: the converter drops biases that are zero."""
    draw = np.random.default_rng(0)
    for weight in model.weights:
        if weight.dtype == "float32":
            weight.assign(draw.uniform(0.1, 0.9, weight.shape))
    return model


if __name__ == "__main__":
    FILE.write_bytes(export(with_drawn_weights(wake_word())))
