"""Run as a script with KERAS_BACKEND: what small models give back, in each framework that this process has, as JSON.

A model is the same in all of them, with channels last. For those of Keras the last row's shape stands beside the model's
when it is another.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

from pytest_modelbudget import summarize
from pytest_modelbudget.summary import TensorSpec

SIZES = {"T": 10, "S": 6}
SEQUENCE, OTHER, FIXED = "float32[B, T, 4]", "float32[B, S, 4]", "float32[B, 10, 4]"
INPUTS = {
    "transposed convolution": [SEQUENCE],
    "valid convolution": [SEQUENCE],
    "strided convolution": [SEQUENCE],
    "strided, then transposed": [SEQUENCE],
    "pooled": [SEQUENCE],
    "repeated": [SEQUENCE],
    "concatenation": [SEQUENCE, OTHER],
    "concatenation, then a convolution": [SEQUENCE, OTHER],
    "folded into the batch": [SEQUENCE],
    "heads in the batch": [FIXED],
    "steps first": [FIXED],
    "all in one axis": [SEQUENCE],
}

Layers = dict[str, Any]
Call = Callable[..., Any]


def of_keras(layers: Any, ops: Any) -> dict[str, tuple[list[Any], Call]]:
    """The layers of each model and what it does with them, in Keras of whichever generation."""
    grow, convolve = layers.Conv1DTranspose(4, 4, strides=2), layers.Conv1D(4, 3)
    halve, double = layers.Conv1D(4, 3, strides=2, padding="same"), layers.Conv1DTranspose(4, 2, strides=2)
    pool, repeat, join = layers.MaxPooling1D(2), layers.UpSampling1D(3), layers.Concatenate(axis=1)
    return {
        "transposed convolution": ([grow], grow),
        "valid convolution": ([convolve], convolve),
        "strided convolution": ([halve], halve),
        "strided, then transposed": ([halve, double], lambda x: double(halve(x))),
        "pooled": ([pool], pool),
        "repeated": ([repeat], repeat),
        "concatenation": ([join], lambda x, y: join([x, y])),
        "concatenation, then a convolution": ([join, convolve], lambda x, y: convolve(join([x, y]))),
        "folded into the batch": ([], lambda x: ops.reshape(x, (-1, 4))),
        "heads in the batch": ([], lambda x: ops.reshape(x, (-1, 10, 2))),
        "steps first": ([], lambda x: ops.transpose(x, (1, 0, 2))),
        "all in one axis": ([], lambda x: ops.reshape(ops.matmul(x, ops.transpose(x, (0, 2, 1))), (-1,))),
    }


def of_torch() -> dict[str, tuple[list[Any], Call]]:
    """The same in torch."""
    import torch
    from torch import nn

    grow, convolve = nn.ConvTranspose1d(4, 4, 4, stride=2), nn.Conv1d(4, 4, 3)
    halve, double = nn.Conv1d(4, 4, 3, stride=2, padding=1), nn.ConvTranspose1d(4, 4, 2, stride=2)
    return {
        "transposed convolution": ([grow], lambda x: grow(x.mT).mT),
        "valid convolution": ([convolve], lambda x: convolve(x.mT).mT),
        "strided convolution": ([halve], lambda x: halve(x.mT).mT),
        "strided, then transposed": ([halve, double], lambda x: double(halve(x.mT)).mT),
        "pooled": ([], lambda x: nn.functional.max_pool1d(x.mT, 2).mT),
        "repeated": ([], lambda x: x.repeat_interleave(3, dim=1)),
        "concatenation": ([], lambda x, y: torch.cat([x, y], 1)),
        "concatenation, then a convolution": ([convolve], lambda x, y: convolve(torch.cat([x, y], 1).mT).mT),
        "folded into the batch": ([], lambda x: x.reshape(-1, 4)),
        "heads in the batch": ([], lambda x: x.reshape(-1, 10, 2)),
        "steps first": ([], lambda x: x.permute(1, 0, 2)),
        "all in one axis": ([], lambda x: (x @ x.mT).reshape(-1)),
    }


def functional(generation: Any, inputs: list[str], call: Call) -> Any:
    """A model with a graph, which knows the sizes of fixed axes alone."""
    shapes = [TensorSpec.parse(text).shape[1:] for text in inputs]
    tensors = [generation.Input([size if isinstance(size, int) else None for size in shape]) for shape in shapes]
    return generation.Model(tensors, call(*tensors))


def subclassed(kind: Any, parts: list[Any], call: Call) -> Any:
    """A model of a class, which is known by calling it alone."""

    class Model(kind):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            for number, part in enumerate(parts):
                setattr(self, f"part_{number}", part)

        def call(self, x: Any, y: Any = None) -> Any:
            return call(x) if y is None else call(x, y)

        forward = call

        if kind.__name__ == "Module" and "tensorflow" in kind.__module__:
            __call__ = call

    return Model()


def ways() -> dict[str, Callable[[str], Any]]:
    """Each way to write a model, as what makes the model of a case."""

    def of(generation: Any, ops: Any) -> dict[str, Callable[[str], Any]]:
        def graph(case: str) -> Any:
            return functional(generation, INPUTS[case], of_keras(generation.layers, ops)[case][1])

        def model(case: str) -> Any:
            return subclassed(generation.Model, *of_keras(generation.layers, ops)[case])

        name = generation.__name__
        return {f"{name}, its own inputs": graph, f"{name}, a graph": graph, f"{name}, a class": model}

    if keras.backend.backend() == "jax":
        return of(keras, keras.ops)
    if keras.backend.backend() == "torch":
        from torch import nn

        return {**of(keras, keras.ops), "torch": lambda case: subclassed(nn.Module, *of_torch()[case])}
    import tensorflow as tf
    import tf_keras

    def module(case: str) -> Any:
        return subclassed(tf.Module, *of_keras(keras.layers, keras.ops)[case])

    return {**of(keras, keras.ops), **of(tf_keras, tf), "tf.Module": module}


def shapes(way: str, case: str, make: Callable[[str], Any]) -> str:
    """What the model gives back and, where it differs, what its last row does."""
    inputs = None if way.endswith("its own inputs") else INPUTS[case]
    named = {dim for text in INPUTS[case] for dim in TensorSpec.parse(text).shape}
    dims = {name: size for name, size in SIZES.items() if name in named}
    summary = summarize(lambda: make(case), inputs, batch=2, dims=dims if inputs else None)
    found = [summary.outputs[0].dims]
    if summary.layers and "keras" in way:
        found += [call[-1].dims for call in summary.layers[-1].outputs]
    return " ".join(dict.fromkeys(found))


def main() -> Iterator[tuple[str, dict[str, str]]]:
    """The shapes of each case by the way that the model is written; a graph has sizes of its own where all are fixed."""
    for way, make in ways().items():
        cases = [case for case, inputs in INPUTS.items() if inputs == [FIXED] or not way.endswith("its own inputs")]
        yield way, {case: shapes(way, case, make) for case in cases}


if __name__ == "__main__":
    print(json.dumps(dict(main())))
