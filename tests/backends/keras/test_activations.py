"""Bytes held for the backward pass: as many as real steps hold, on each backend that says so."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import pytest
from keras import layers as L

SCRIPT = Path(__file__).with_name("held_for_real.py")
FLOAT = 4
NOT_BY_CALLS = {"torch": {"recurrent with a mask", "own call"}, "jax": {"gradient stopped", "own call"}}
"""Models that run as one call, so that the shares of their layers are not known."""


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
        assert one["rows"] == (None if name in NOT_BY_CALLS[on] else one["real"]), name
        assert any(note.startswith("activation_bytes: as ") for note in one["notes"])


@pytest.mark.slow
def test_by_hand_on_torch() -> None:
    """What ReLU gave is held once, for itself and for the second layer."""
    assert found("torch", "dense", "residual", "own call")["dense"]["real"] == 3 * 8 * FLOAT


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="other backends know it")
def test_tensorflow_says_that_it_is_not_known(summarize: Any) -> None:
    """Nothing is shown as 0, and a note gives the reason."""
    summary = summarize(lambda: keras.Sequential([keras.Input((4,)), L.Dense(2)]))
    assert summary.activation_bytes is None
    assert [row.activation_bytes for row in summary.layers] == [None] * len(summary.layers)
    assert "activation_bytes is not known: what tensorflow keeps for the backward pass is not followed" in summary.notes
