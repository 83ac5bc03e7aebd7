"""Bytes held for the backward pass: as many as real steps hold, on each backend that says so."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import pytest
from keras import layers as L

from pytest_modelbudget import ModelEntry, Summary, summarize
from pytest_modelbudget.engine.run import summarize_entry

SCRIPT = Path(__file__).with_name("held_for_real.py")
FLOAT = 4
NOT_BY_CALLS = {
    "torch": {"recurrent with a mask", "own call"},
    "jax": {"gradient stopped", "own call"},
    "tensorflow": {"gradient stopped", "own call"},
}
"""Models that run as one call, so that the shares of their layers are not known."""
LOOPS = {"recurrent", "recurrent with a mask", "bidirectional"}
"""Models whose layers are loops on TensorFlow, of which is not known what their rounds keep."""


@functools.cache
def found(on: str, *names: str) -> dict[str, dict[str, Any]]:
    environment = {**os.environ, "KERAS_BACKEND": on}
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *names], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("on", "names"),
    [
        pytest.param("torch", (), id="torch", marks=pytest.mark.slow),
        pytest.param("jax", (), id="jax", marks=pytest.mark.slow),
        pytest.param("tensorflow", (), id="tensorflow", marks=pytest.mark.slow),
    ],
)
def test_as_many_bytes_as_a_real_step_holds(on: str, names: tuple[str, ...]) -> None:
    """Followed call by call or run at once, built here or alive, the number is that of a real step."""
    if find_spec(on) is None:
        pytest.skip(f"{on} is not installed")
    results = found(on, *names)
    ways = ("said", "whole", "live")
    assert not {name: one for name, one in results.items() if any(one[way] != one["real"] for way in ways)}
    assert all(one["untouched"] for one in results.values())
    assert results["dense"]["real"] > 0
    for name, one in results.items():
        if on == "tensorflow" and name in LOOPS:
            assert one["said"] is None
            assert any("what the rounds of the loop" in note for note in one["notes"])
            continue
        assert one["rows"] == (None if name in NOT_BY_CALLS[on] else one["real"]), name
        assert any(note.startswith("activation_bytes: as ") for note in one["notes"])


@pytest.mark.slow
def test_by_hand_on_torch() -> None:
    """What ReLU gave is held once, for itself and for the second layer."""
    assert found("torch", "dense", "residual", "own call")["dense"]["real"] == 3 * 8 * FLOAT


Count = Callable[[Callable[[], Any]], Summary]


def as_entry(**options: Any) -> Count:
    """Count what a builder makes as the plugin does."""
    return lambda build: summarize_entry(ModelEntry("small", build, batch=3, **options))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the bytes are what TensorFlow keeps")
@pytest.mark.parametrize(
    ("count", "held"),
    [
        pytest.param(as_entry(budgets={"activation_bytes": "1 MiB"}), [3 * 8 * FLOAT, 0, 3 * 8, 0], id="by a limit"),
        pytest.param(as_entry(training={"batch": 3}), [3 * 8 * FLOAT, 0, 3 * 8, 0], id="by a recipe"),
        pytest.param(
            functools.partial(summarize, batch=3, activations=True), [3 * 8 * FLOAT, 0, 3 * 8, 0], id="in the library"
        ),
        pytest.param(as_entry(budgets={"params": "1k"}), [None] * 4, id="not at all"),
    ],
)
def test_it_is_counted_where_it_is_asked_for(count: Count, held: list[int | None]) -> None:
    """By hand: what ReLU gives, and a mask of one byte; a view and what only sums its gradient keep nothing."""

    def build() -> Any:
        return keras.Sequential(
            [keras.Input((4,)), L.Dense(8, activation="relu"), L.Reshape((2, 4)), L.Dropout(0.5), L.Flatten()]
        )

    summary = count(build)
    assert [row.activation_bytes for row in summary.layers] == held
    assert summary.activation_bytes == (None if None in held else 3 * 8 * (FLOAT + 1))
    [note] = [note for note in summary.notes if note.startswith("activation_bytes")]
    assert ("not known" in note) == (None in held)
