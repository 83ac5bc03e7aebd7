"""A layer of Keras by itself is counted like a model of one layer, from a builder and live, on every backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L

from pytest_modelbudget import summarize
from pytest_modelbudget.errors import ModelBudgetError

FIVE = "float32[B, 5]"


@keras.saving.register_keras_serializable("tests")
class Block(L.Layer):
    """A layer of the user's own with layers in it, one of them made when it is built."""

    def __init__(self) -> None:
        super().__init__()
        self.first = L.Dense(4)
        self.drop = L.Dropout(0.5)

    def build(self, shape: Any) -> None:
        self.first.build(shape)
        self.second = L.Dense(2)
        self.second.build((*shape[:-1], 4))

    def call(self, x: Any) -> Any:
        return self.second(self.drop(self.first(x)))


@dataclass(frozen=True)
class Case:
    """A layer, what it is called with at B=1, and its FLOPs by hand."""

    build: Callable[[], Any]
    inputs: Any
    flops: int


CASES = {
    "dense": Case(lambda: L.Dense(3), FIVE, 2 * 5 * 3),
    "class": Case(L.Flatten, "float32[B, 6, 3]", 0),
    "convolution": Case(lambda: L.Conv1D(4, 3), "float32[B, 8, 2]", 2 * 6 * 4 * 3 * 2),
    "several inputs": Case(L.Add, [FIVE, FIVE], 0),
    "several shapes": Case(L.Concatenate, [FIVE, "float32[B, 2]"], 0),
    "attention": Case(
        lambda: L.MultiHeadAttention(2, 4),
        ["float32[B, 6, 8]", "float32[B, 7, 8]"],
        2 * 8 * 8 * (6 + 7 + 7 + 6) + 2 * 2 * (2 * 6 * 7 * 4),
    ),
    "recurrent": Case(lambda: L.LSTM(4), "float32[B, 6, 3]", 6 * 2 * 16 * (3 + 4)),
    "both ways": Case(
        lambda: L.Bidirectional(L.GRU(4, return_sequences=True)), "float32[B, 6, 3]", 2 * 6 * 2 * 12 * (3 + 4)
    ),
    "over time": Case(lambda: L.TimeDistributed(L.Dense(4)), "float32[B, 6, 3]", 6 * 2 * 3 * 4),
    "table": Case(lambda: L.Embedding(10, 4), "int32[B, 6]", 0),
    "statistics": Case(L.BatchNormalization, FIVE, 0),
    "preprocessing": Case(lambda: L.Rescaling(1 / 255), "uint8[B, 6, 3]", 0),
    "random": Case(lambda: L.RandomFlip("horizontal"), "float32[B, 6, 6, 3]", 0),
    "own layer": Case(Block, FIVE, 2 * 5 * 4 + 2 * 4 * 2),
}


def arrays(inputs: Any) -> list[Any]:
    """Real inputs of a case."""
    found = []
    for spec in inputs if isinstance(inputs, list) else [inputs]:
        dtype, _, dims = spec.rstrip("]").partition("[")
        found.append(np.zeros([1 if dim == "B" else int(dim) for dim in dims.split(", ")], dtype))
    return found


def called(case: Case) -> tuple[Any, Any]:
    """A layer of the user's, and what it gives."""
    layer, given = case.build(), arrays(case.inputs)
    together = len(given) > 1 and isinstance(layer, (L.Add, L.Concatenate))
    return layer, layer(given) if together else layer(*given)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_layer_alone(case: Case) -> None:
    """Params are those of Keras, the output has the shape that the layer gives, FLOPs are those by hand."""
    layer, output = called(case)
    for subject in (case.build, layer):
        summary = summarize(subject, case.inputs, name="layer")
        assert (summary.params, summary.flops.value) == (layer.count_params(), case.flops)
        assert not summary.flops.uncounted
        assert str(summary.outputs[0]).partition("[")[2].replace("B", "1") == f"{list(output.shape)}"[1:]
        row = summary.layers[0]
        assert [(row.type, row.calls, row.flops)] == [(type(layer).__name__, 1, case.flops)]
        assert len(summary.layers) == 1


def test_the_rows_of_builder_and_live_layer_are_the_same() -> None:
    """The row of a live layer has the name of a fresh session and its weights those of the layers in it."""
    live, _ = called(CASES["own layer"])
    rows = [summarize(subject, FIVE, name="layer").layers for subject in (Block, live)]
    assert rows[0] == rows[1]
    assert rows[0][0].path == "block"
    assert [weight.name for weight in rows[0][0].weights] == [
        "dense/kernel",
        "dense/bias",
        "dense_1/kernel",
        "dense_1/bias",
    ]


def test_a_live_layer_is_left_as_it_is() -> None:
    """Counting adds no call and no weight, and changes no value."""
    layer, _ = called(CASES["own layer"])
    before = [np.array(keras.ops.convert_to_numpy(weight)) for weight in layer.weights]
    nodes = len(layer._inbound_nodes)
    summarize(layer, FIVE, name="layer")
    assert all(map(np.array_equal, before, map(keras.ops.convert_to_numpy, layer.weights)))
    assert len(layer._inbound_nodes) == nodes


@pytest.mark.parametrize("build", [lambda: L.Dense(3), Block], ids=["dense", "own layer"])
def test_a_live_layer_that_was_never_built_is_an_error(build: Callable[[], Any]) -> None:
    """The error names the cure, and the layer stays unbuilt."""
    layer = build()
    with pytest.raises(ModelBudgetError, match="was never built; call the layer once before, or pass a function"):
        summarize(layer, FIVE, name="layer")
    assert not layer.built


def test_a_layer_does_not_know_its_inputs() -> None:
    """Without inputs, the error says what to give."""
    with pytest.raises(ModelBudgetError, match="a Dense layer does not know its inputs: give `inputs:`"):
        summarize(lambda: L.Dense(3), name="layer")


def test_a_class_that_a_builder_returns_is_an_error() -> None:
    """A class of layers is told apart from a layer."""
    with pytest.raises(ModelBudgetError, match="the class Dense, not a model: call it"):
        summarize(lambda: L.Dense, FIVE, name="layer")
