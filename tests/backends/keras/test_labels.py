"""Names and bytes of snapshots do not depend on what else was built, where, or on which backend."""

from __future__ import annotations

import doctest
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

from pytest_modelbudget import summarize as count
from pytest_modelbudget.backends.keras import labels, pins
from pytest_modelbudget.snapshot.text import render

ROOT = Path(__file__).parents[3]


class Encoder(keras.Model):
    """A class with a nested stack, weights of its own with and without names, and a layer of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = L.Dense(4), L.Dense(4)
        self.stack = keras.Sequential([L.Dense(3), L.Dense(3)])
        self.attention = L.MultiHeadAttention(2, 3)
        self.named = self.add_weight(shape=(3,), name="scale")
        self.unnamed = [self.add_weight(shape=(3,)), self.add_weight(shape=(2,))]

    def call(self, x: Any) -> Any:
        x = self.second(self.first(x))
        return self.stack(self.attention(x, x)) * self.named


def encoder() -> keras.Model:
    model = Encoder()
    model(np.ones((2, 7, 5), "float32"))
    return model


def inline() -> keras.Model:
    """Layers made in another order than they are called."""
    a, b = keras.Input((4,)), keras.Input((4,))
    return keras.Model([a, b], L.Dense(1)(ops.relu(L.Concatenate()([L.Dense(2)(a), L.Dense(2)(b)]))))


def recurrent() -> keras.Model:
    return keras.Sequential(
        [keras.Input((7, 5)), L.Bidirectional(L.LSTM(4, return_sequences=True)), L.GRU(3), L.Dense(1)]
    )


def nested() -> keras.Model:
    x = keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), L.Dense(4), L.BatchNormalization()])
    return keras.Model(x, L.Dense(2, name="top")(L.Add()([inner(x), inner(x)])))


MODELS: dict[str, tuple[Callable[[], keras.Model], str | None]] = {
    "encoder": (encoder, "float32[B, 7, 5]"),
    "inline": (inline, None),
    "recurrent": (recurrent, None),
    "nested": (nested, None),
}


def snapshot(name: str, *, live: bool = False) -> str:
    """The snapshot of one of the models, handed over as a function or as a live model."""
    build, inputs = MODELS[name]
    return render(count(build() if live else build, inputs=inputs, name=name), declared="models")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in ("encoder", "inline") else name for name in MODELS]
)
def test_a_live_model_has_the_names_of_a_fresh_session(name: str) -> None:
    """First or tenth, after the session was cleared, handed over as a model or as its function: the same bytes."""
    keras.utils.clear_session()
    first = snapshot(name)
    for _ in range(3):
        snapshot(name, live=True)
        L.Dense(1), L.LSTM(1), keras.Input((1,)), keras.Sequential([]), L.MultiHeadAttention(1, 1)
    assert snapshot(name, live=True) == first
    assert snapshot(name) == first
    keras.utils.clear_session()
    assert snapshot(name, live=True) == first


def test_names_of_the_users_stay(summarize: Any) -> None:
    """A built model shows the names it was given; a live one too, unless one looks like a number of Keras'."""

    def build() -> keras.Model:
        return keras.Sequential([keras.Input((4,)), L.Dense(3, name="dense_2"), L.Dense(3, name="head"), L.Dense(3)])

    assert [row.path for row in summarize(build).layers] == ["dense_2", "head", "dense"]
    keras.utils.clear_session()
    assert [row.path for row in count(build()).layers] == ["dense_1", "head", "dense"]


def test_weights_without_a_name_are_numbered_in_their_row(summarize: Any) -> None:
    """Keras numbers them through the whole session."""
    summary = summarize(encoder, "float32[B, 7, 5]")
    assert summary.layers[0].weights_text == "scale 3 + variable 3 + variable_1 2"


@pytest.mark.parametrize("shown", [False, True], ids=["its own names", "the names shown"])
def test_inputs_of_a_live_model_are_declared_by_name(shown: bool) -> None:
    """Inputs may be named as in the model in hand or as in its snapshot, where they are numbered from the first."""
    keras.Input((1,))
    model = inline()
    own = [layer.name for layer in model.layers if isinstance(layer, L.InputLayer)]
    first, second = ("input_layer", "input_layer_1") if shown else own
    summary = count(model, inputs={second: "float32[B, 4]", first: "float32[3, 4]"})
    assert [str(port) for port in summary.inputs] == ["input_layer float32[3, 4]", "input_layer_1 float32[B, 4]"]


class Late(keras.Model):
    """Its layer is made when it is built."""

    def build(self, shape: Any) -> None:
        self.layer = L.Dense(3)

    def call(self, x: Any) -> Any:
        return self.layer(x)


def test_the_first_model_of_a_process_has_the_names_of_all_others(summarize: Any) -> None:
    """The look at what this Keras offers, which comes once in a process, uses up no name."""
    pins.unreadable.cache_clear()
    assert [[row.path for row in summarize(Late, "float32[B, 5]").layers] for _ in range(2)] == [["dense"]] * 2


def test_examples_of_labels() -> None:
    """The examples in the docstrings hold."""
    assert doctest.testmod(labels).failed == 0


OTHERS = """
import json, sys
sys.path.insert(0, {root!r})
from tests.backends.keras import test_labels as here
order = {order}
if {clutter}:
    here.L.Dense(1), here.recurrent(), here.encoder()
    here.keras.config.set_image_data_format("channels_last")
found = {{name: here.snapshot(name, live={live}) for name in order}}
print("found", json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("on", ["tensorflow", "torch", "jax"])
def test_other_processes_and_backends_write_the_same_bytes(on: str) -> None:
    """In another process, in another order, after other models, live or not, on any backend: the same bytes."""
    if importlib.util.find_spec(on) is None:
        pytest.skip(f"{on} is not installed")
    keras.utils.clear_session()
    expected = {name: snapshot(name) for name in MODELS}
    for order, clutter, live in ((list(MODELS), False, False), (list(MODELS)[::-1], True, True)):
        script = OTHERS.format(root=str(ROOT), order=order, clutter=clutter, live=live)
        environment = {**os.environ, "KERAS_BACKEND": on, "PYTHONHASHSEED": "7"}
        run = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
        )
        line = next(line for line in run.stdout.splitlines() if line.startswith("found "))
        assert json.loads(line.removeprefix("found ")) == expected


@pytest.mark.slow
@pytest.mark.parametrize("on", ["tensorflow", "torch", "jax"])
def test_every_backend_passes_the_tests_of_this_folder(on: str) -> None:
    """The published tables, the kinds of layers, graphs and classes come out the same whatever Keras runs on."""
    if on == keras.backend.backend():
        pytest.skip("this very process")
    if importlib.util.find_spec(on) is None:
        pytest.skip(f"{on} is not installed")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).parent),
    ]
    run = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "KERAS_BACKEND": on}, check=False
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert " passed" in run.stdout
