"""What a model takes from the machine's `keras.json` is in a note, on Keras 3 and on tf_keras."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_modelbudget.backends import keras_config

USUAL = {"floatx": "float32", "image_data_format": "channels_last"}
OTHER = {"floatx": "float16", "image_data_format": "channels_first"}


class Layer:
    """Something with the attributes of a layer."""

    def __init__(self, dtype: str, compute_dtype: str | None = None, **attributes: str) -> None:
        self.dtype = dtype
        self.compute_dtype = compute_dtype or dtype
        vars(self).update(attributes)


class InputLayer(Layer):
    """One that only its dtype matters of."""


class Model(Layer):
    """One that holds weights of layers, and a dtype that it makes no use of."""

    weights: tuple[Layer, ...] = ()


def package(settings: dict[str, str]) -> Any:
    """What a version of Keras offers, with these settings in force."""
    backend = SimpleNamespace(**{name: lambda value=value: value for name, value in settings.items()})
    return SimpleNamespace(Model=Model, layers=SimpleNamespace(InputLayer=InputLayer), backend=backend)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a machine that has other settings."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    path = tmp_path / "keras.json"
    path.write_text(json.dumps(OTHER), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        pytest.param(json.dumps(OTHER), OTHER, id="other"),
        pytest.param(json.dumps({**USUAL, "backend": "jax"}), {}, id="usual"),
        pytest.param('{"floatx": "bfloat16"}', {"floatx": "bfloat16"}, id="one"),
        pytest.param("{", {}, id="broken"),
        pytest.param("[]", {}, id="no settings"),
    ],
)
def test_settings_that_are_not_kerass_own(file: Path, text: str, settings: dict[str, str]) -> None:
    """Only what differs from Keras' own defaults is of interest."""
    file.write_text(text, encoding="utf-8")
    assert keras_config.settings() == settings


def test_no_file_no_settings(file: Path) -> None:
    """Most machines have none."""
    file.unlink()
    assert keras_config.settings() == {}


@pytest.mark.parametrize(
    ("in_force", "layers", "named"),
    [
        pytest.param(OTHER, [Layer("float16")], ["floatx"], id="dtype"),
        pytest.param(OTHER, [Layer("float32", "float16")], ["floatx"], id="dtype to compute in"),
        pytest.param(OTHER, [InputLayer("float16")], ["floatx"], id="dtype of an input"),
        pytest.param(OTHER, [Layer("int8", data_format="channels_first")], ["image_data_format"], id="layout"),
        pytest.param(OTHER, [Layer("float16", data_format="channels_first")], list(OTHER), id="both"),
        pytest.param(OTHER, [Layer("float32", data_format="channels_last")], [], id="asked otherwise"),
        pytest.param(OTHER, [InputLayer("float32", "float16"), Model("float16")], [], id="nothing taken"),
        pytest.param(USUAL, [Layer("float16")], [], id="set by code"),
    ],
)
def test_notes_name_what_was_taken(file: Path, in_force: dict[str, str], layers: list[Any], named: list[str]) -> None:
    """A setting has a note when it is in force and a layer is made of it."""
    notes = list(keras_config.notes(package(in_force), layers))
    assert [note.partition(" is ")[0] for note in notes] == named
    assert all("keras.json" in note for note in notes)


SCRIPT = """
    import json, sys
    import keras
    from keras import layers as L
    from pytest_modelbudget import summarize

    def recurrent():
        return keras.Sequential([keras.Input((50, 1)), L.LSTM(4)])

    def own():
        keras.config.set_floatx("float32")
        return recurrent()

    def asked():
        return keras.Sequential([keras.Input((50, 1), dtype="float32"), L.LSTM(4, dtype="float32")])

    found = {}
    for build in (recurrent, own, asked):
        summary = summarize(build, name="model")
        found[build.__name__] = summary.weight_bytes, [note for note in summary.notes if "keras.json" in note]
    alone = summarize(lambda: L.Dense(3, dtype="float32"), "float32[B, 5]", name="model")
    found["alone"] = alone.params, alone.flops.value
    print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("jax") is None or find_spec("keras") is None, reason="jax or keras is not installed")
def test_a_process_with_such_a_file(file: Path) -> None:
    """A model that takes its dtype from the file says so; one that sets or asks for its own does not."""
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    run = subprocess.run(
        [sys.executable, "-c", dedent(SCRIPT)], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    weights = 4 * 4 * (1 + 4 + 1)
    assert found["recurrent"][0] == 2 * weights
    assert found["recurrent"][1] == [
        "floatx is float16 by keras.json, a file of this machine: set it where the model is built, since it may be "
        "float32 on another"
    ]
    assert found["own"] == found["asked"] == [4 * weights, []]
    assert found["alone"] == [5 * 3 + 3, 2 * 5 * 3]
