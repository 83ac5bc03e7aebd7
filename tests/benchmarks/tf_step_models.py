"""Models of tf_keras and of `tf.Module` whose steps are measured beside those of Keras 3 on TensorFlow; no rule was tried on any."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any
from unittest.mock import patch

import keras
import numpy as np
import tensorflow as tf

from pytest_modelbudget import Plan, plan
from pytest_modelbudget.summary import TensorSpec

TF_KERAS = ("mlp", "cnn", "lstm", "transformer", "unet", "towers", "text_cnn", "gru", "autoencoder", "crosses")
"""Those of `keras_step_models` that tf_keras builds, too."""


@dataclass(frozen=True)
class Case:
    """What is planned and what is run: `inputs` as they are declared, and the sizes of targets after the batch."""

    build: Callable[[], Any]
    batch: int
    inputs: tuple[str, ...]
    targets: tuple[int, ...] = ()


def tf_keras_cases() -> dict[str, Case]:
    """The models of `keras_step_models`, built by tf_keras."""
    import tf_keras

    path = Path(__file__).with_name("keras_step_models.py")
    spec = spec_from_file_location("tf_keras_step_models", path)
    assert spec is not None
    assert spec.loader is not None
    models = module_from_spec(spec)
    with patch.dict(sys.modules, {"keras": tf_keras}):
        spec.loader.exec_module(models)
    return {f"tf_keras/{name}": _case_of(*models.MODELS[name]) for name in TF_KERAS}


def _case_of(build: Callable[[], Any], batch: int, targets: tuple[int, ...]) -> Case:
    import tf_keras

    def compiled() -> Any:
        model = build()
        model.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    return Case(compiled, batch, (), targets)


class Linear(tf.Module):
    """`x @ w + b`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.w = tf.Variable(lambda: tf.random.normal([inputs, outputs], stddev=0.02), shape=[inputs, outputs])
        self.b = tf.Variable(lambda: tf.zeros([outputs]), shape=[outputs])

    def __call__(self, x: Any) -> Any:
        return x @ self.w + self.b


class Perceptron(tf.Module):
    """784 to four times 1024 to 10."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [Linear(784, 1024), *(Linear(1024, 1024) for _ in range(3))]
        self.head = Linear(1024, 10)

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = tf.nn.relu(layer(x))
        return self.head(x)


class Function(Perceptron):
    """The same as a `tf.function`."""

    @tf.function
    def __call__(self, x: Any) -> Any:
        return super().__call__(x)


class Images(tf.Module):
    """Convolutions, pooling and a head."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(3, 32), (32, 64), (64, 128)]
        self.filters = [tf.Variable(lambda s=s: tf.random.normal([3, 3, *s]), shape=[3, 3, *s]) for s in sizes]
        self.scales = [tf.Variable(lambda s=s: tf.ones([s[1]]), shape=[s[1]]) for s in sizes]
        self.head = Linear(128, 10)

    def __call__(self, x: Any) -> Any:
        for filters, scale in zip(self.filters, self.scales, strict=True):
            x = tf.nn.relu(tf.nn.conv2d(x, filters, 1, "SAME") * scale)
            x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        return self.head(tf.reduce_mean(x, [1, 2]))


class Block(tf.Module):
    """Attention of 8 heads and a perceptron, each added to what comes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = Linear(width, 3 * width), Linear(width, width)
        self.up, self.down = Linear(width, 4 * width), Linear(4 * width, width)

    def __call__(self, x: Any) -> Any:
        batch, tokens, width = x.shape
        heads = tf.transpose(tf.reshape(self.qkv(_normed(x)), [batch, tokens, 3, 8, width // 8]), [2, 0, 3, 1, 4])
        queries, keys, values = tf.unstack(heads)
        scores = tf.nn.softmax(tf.matmul(queries, keys, transpose_b=True) * (width // 8) ** -0.5)
        joined = tf.reshape(tf.transpose(scores @ values, [0, 2, 1, 3]), [batch, tokens, width])
        x = x + self.out(joined)
        return x + self.down(tf.nn.gelu(self.up(_normed(x))))


def _normed(x: Any) -> Any:
    mean, variance = tf.nn.moments(x, [-1], keepdims=True)
    return (x - mean) * tf.math.rsqrt(variance + 1e-6)


class Decoder(tf.Module):
    """Tokens to scores of 8000 classes, by three blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.table = tf.Variable(lambda: tf.random.normal([8_000, 192]), shape=[8_000, 192])
        self.blocks = [Block(192) for _ in range(3)]
        self.head = Linear(192, 8_000)

    def __call__(self, tokens: Any) -> Any:
        x = tf.gather(self.table, tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Recurrent(tf.Module):
    """A loop over the steps of a sequence, whose states are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = Linear(64 + 256, 256), Linear(256, 10)

    def __call__(self, x: Any) -> Any:
        state = tf.zeros([x.shape[0], 256])
        for step in tf.range(x.shape[1]):
            state = tf.tanh(self.inner(tf.concat([x[:, step], state], 1)))
        return self.head(state)


class WithKeras(tf.Module):
    """Layers of Keras in a module."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [keras.layers.Dense(2048, activation="gelu"), keras.layers.Dense(2048, activation="relu")]
        self.head = Linear(2048, 10)

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


MODULES: dict[str, Case] = {
    "tf.Module/mlp": Case(Perceptron, 4096, ("float32[B, 784]",)),
    "tf.Module/function": Case(Function, 4096, ("float32[B, 784]",)),
    "tf.Module/images": Case(Images, 16, ("float32[B, 64, 64, 3]",)),
    "tf.Module/decoder": Case(Decoder, 8, ("int32[B, 192]",), (192,)),
    "tf.Module/recurrent": Case(Recurrent, 64, ("float32[B, 100, 64]",)),
    "tf.Module/keras": Case(WithKeras, 2048, ("float32[B, 512]",)),
}


def cases() -> dict[str, Case]:
    """All of them by name."""
    return {**tf_keras_cases(), **MODULES}


def plans(name: str) -> dict[str, Plan]:
    """What is planned of a step and of a pass."""
    case = cases()[name]
    training = {"batch": case.batch, **({} if name.startswith("tf_keras/") else MODULES_RECIPE)}
    inputs = list(case.inputs) or None
    return {
        "train": plan(case.build, inputs, training=training),
        "infer": plan(case.build, inputs, inference={"batch": case.batch}),
    }


MODULES_RECIPE = {"optimizer": "adam", "loss": "cross_entropy"}

Run = Callable[[], Any]


def runs(name: str) -> dict[str, tuple[Run, int]]:
    """A real step and a real pass, each run twice before, with the bytes of what is there for them all the time."""
    case = cases()[name]
    model = case.build()
    y = tf.zeros((case.batch, *case.targets), "int32")
    if name.startswith("tf_keras/"):
        tensors = [tf.zeros((case.batch, *tensor.shape[1:]), tensor.dtype) for tensor in model.inputs]
        x = tensors if len(tensors) > 1 else tensors[0]
        train, infer = tf.function(partial(model.train_step, (x, y))), tf.function(partial(model, x, training=False))
    else:
        [spec] = map(TensorSpec.parse, case.inputs)
        x = tf.zeros((case.batch, *spec.shape[1:]), spec.dtype)
        tensors, optimizer = [x], keras.optimizers.Adam()
        train, infer = tf.function(partial(_step, model, optimizer, x, y)), tf.function(partial(model, x))
    for run in (train, infer):
        run()
        run()
    given = {"train": _bytes([*tensors, y]), "infer": _bytes(tensors)}
    held = {
        case: given[case] + _bytes(run.get_concrete_function().graph.variables)
        for case, run in (("train", train), ("infer", infer))
    }
    return {"train": (train, held["train"]), "infer": (infer, held["infer"])}


def _step(model: Any, optimizer: Any, x: Any, y: Any) -> Any:
    with tf.GradientTape() as tape:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=model(x))
        loss = tf.reduce_mean(losses)
    variables = tape.watched_variables()
    optimizer.apply(tape.gradient(loss, variables), variables)
    return loss


def _bytes(tensors: Any) -> int:
    unique = {id(tensor): tensor for tensor in tensors}.values()
    return sum(int(np.prod(tensor.shape)) * tensor.dtype.size for tensor in unique)
