"""Makes the .tflite files of the tests: `python tests/backends/exported/make_litert.py FOLDER [NAME ...]`.

Small Keras models, converted by TensorFlow's own converter (2.21, with Keras 3.15). All their weights are drawn with a
fixed seed, biases too: the converter drops zeros and stores equal tensors once. Those below 50 kB lie in
`tests/data/exported/`, since a conversion costs seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def cnn() -> Any:
    """Convolutions of three kinds, batch normalisation, a residual sum, pooling and a classifier."""
    from keras import Input, Model, layers

    start = Input((32, 32, 3), batch_size=1)
    hidden = layers.Conv2D(8, 3, padding="same", use_bias=False)(start)
    hidden = layers.ReLU()(layers.BatchNormalization()(hidden))
    branch = layers.DepthwiseConv2D(3, padding="same")(hidden)
    branch = layers.Conv2D(8, 1)(branch)
    hidden = layers.MaxPooling2D()(layers.Add()([hidden, branch]))
    hidden = layers.Conv2D(16, 3, strides=2, activation="relu")(hidden)
    hidden = layers.Conv2D(16, 3, dilation_rate=2, activation="relu")(hidden)
    return Model(start, layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(hidden)))


def unet() -> Any:
    """An encoder and a decoder that grows by repetition and by a transposed convolution."""
    from keras import Input, Model, layers

    start = Input((32, 32, 1), batch_size=1)
    first = layers.Conv2D(8, 3, padding="same", activation="relu")(start)
    second = layers.Conv2D(12, 3, padding="same", activation="relu")(layers.MaxPooling2D()(first))
    bottom = layers.Conv2D(16, 3, padding="same", activation="relu")(layers.MaxPooling2D()(second))
    hidden = layers.Concatenate()([layers.UpSampling2D()(bottom), second])
    hidden = layers.Conv2D(8, 3, padding="same", activation="relu")(hidden)
    hidden = layers.Concatenate()([layers.Conv2DTranspose(8, 3, strides=2, padding="same")(hidden), first])
    return Model(start, layers.Conv2D(1, 1, activation="sigmoid")(hidden))


def perceptron() -> Any:
    """Three dense layers, of a batch that is left open."""
    from keras import Input, Model, layers

    start = Input((20,))
    hidden = layers.Dense(64, activation="relu")(start)
    return Model(start, layers.Dense(4)(layers.Dense(32, activation="tanh")(hidden)))


def sound() -> Any:
    """Convolutions of one axis, after a product with what they were given."""
    from keras import Input, Model, layers

    start = Input((64, 8), batch_size=1)
    hidden = layers.Conv1D(16, 5, strides=2, activation="relu")(start)
    hidden = layers.SeparableConv1D(24, 3, padding="same")(hidden)
    hidden = layers.Multiply()([hidden, layers.Activation("sigmoid")(hidden)])
    return Model(start, layers.Dense(3)(layers.Flatten()(layers.AveragePooling1D(5)(hidden))))


def transformer() -> Any:
    """One block of attention over embedded tokens."""
    from keras import Input, Model, layers

    tokens = Input((12,), batch_size=1, dtype="int32")
    hidden = layers.Embedding(50, 16)(tokens)
    attended = layers.MultiHeadAttention(2, 8)(hidden, hidden)
    hidden = layers.LayerNormalization()(layers.Add()([hidden, attended]))
    return Model(tokens, layers.Dense(5)(layers.Dense(32, activation="gelu")(hidden)))


def recurrent() -> Any:
    """A GRU, which becomes a loop."""
    from keras import Input, Model, layers

    start = Input((10, 6), batch_size=1)
    return Model(start, layers.Dense(2)(layers.GRU(8)(start)))


def volume() -> Any:
    """A convolution of three axes."""
    from keras import Input, Model, layers

    start = Input((8, 8, 8, 2), batch_size=1)
    hidden = layers.Conv3D(4, 3, padding="same", activation="relu")(start)
    return Model(start, layers.Dense(2)(layers.GlobalMaxPooling3D()(hidden)))


def mobilenet() -> Any:
    """MobileNetV2 of a third of the width, for 96 pixels and ten classes."""
    from keras import Input, applications

    start = Input((96, 96, 3), batch_size=1)
    return applications.MobileNetV2(input_tensor=start, alpha=0.35, weights=None, classes=10)


def _float(_converter: Any, _start: Any) -> None:
    pass


def _float16(converter: Any, _start: Any) -> None:
    import tensorflow as tf

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]


def _dynamic(converter: Any, _start: Any) -> None:
    import tensorflow as tf

    converter.optimizations = [tf.lite.Optimize.DEFAULT]


def _int8(converter: Any, start: Any) -> None:
    import numpy as np
    import tensorflow as tf

    def samples() -> Iterator[list[Any]]:
        draw = np.random.default_rng(0)
        for _ in range(4):
            yield [draw.uniform(0, 5, [size or 1 for size in start.shape]).astype(start.dtype)]

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    if start.dtype == "float32":
        converter.inference_input_type = converter.inference_output_type = tf.int8


MODELS: dict[str, Callable[[], Any]] = {
    "cnn": cnn, "unet": unet, "perceptron": perceptron, "sound": sound, "transformer": transformer,
    "recurrent": recurrent, "volume": volume, "mobilenet": mobilenet,
}  # fmt: skip
KINDS: dict[str, Callable[[Any, Any], None]] = {
    "float": _float, "int8": _int8, "float16": _float16, "dynamic": _dynamic,
}  # fmt: skip
"""What sets up a converter, by how numbers are stored; it gets the model's input too."""

COMMITTED = (
    "cnn_float", "cnn_int8", "cnn_float16", "cnn_dynamic", "unet_float", "unet_int8", "perceptron_float",
    "perceptron_int8", "sound_float", "sound_int8", "transformer_float", "transformer_int8", "recurrent_float",
    "volume_float", "volume_int8",
)  # fmt: skip


def model(name: str) -> Any:
    """The Keras model of that name, all its weights drawn."""
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    built = MODELS[name]()
    draw = np.random.default_rng(0)
    for weight in built.weights:
        if weight.dtype == "float32":
            weight.assign(draw.uniform(0.1, 0.9, weight.shape))
    return built


def convert(name: str, kind: str) -> bytes:
    """The file of the model `name`, its numbers stored as `kind` says."""
    import tensorflow as tf

    built = model(name)
    converter = tf.lite.TFLiteConverter.from_keras_model(built)
    KINDS[kind](converter, built.inputs[0])
    return bytes(converter.convert())


def main(folder: str, *names: str) -> None:
    """Write the files that are named (`cnn_int8`), or those that are committed, into `folder`."""
    for name in names or COMMITTED:
        (Path(folder) / f"{name}.tflite").write_bytes(convert(*name.rsplit("_", 1)))


if __name__ == "__main__":
    main(*sys.argv[1:])
