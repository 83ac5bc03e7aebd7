"""The same layers have the same symbolic dimensions in every framework: one table, and one process for each backend."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("same_shapes.py")
ROOT = SCRIPT.parents[2]

NAMED = {
    "transposed convolution": "[B, 2*T+2, 4]",
    "valid convolution": "[B, T-2, 4]",
    "strided convolution": "[B, (T+1)//2, 4]",
    "strided, then transposed": "[B, 2*((T+1)//2), 4]",
    "pooled": "[B, T//2, 4]",
    "repeated": "[B, 3*T, 4]",
    "concatenation": "[B, T+S, 4]",
    "concatenation, then a convolution": "[B, T+S-2, 4]",
    "folded into the batch": "[B*T, 4]",
    "heads in the batch": "[2*B, 10, 2]",
    "steps first": "[10, B, 4]",
}
GRAPH_OF_FIXED_SIZES = {"heads in the batch", "steps first"}

KERAS = [f"keras, {way}" for way in ("its own inputs", "a graph", "a class")]
WAYS = {
    "jax": KERAS,
    "torch": [*KERAS, "torch"],
    "tensorflow": [*KERAS, *(f"tf_{way}" for way in KERAS), "tf.Module"],
}
"""How the models are written under each backend of Keras."""


@functools.cache
def found(backend: str) -> dict[str, dict[str, str]]:
    """What a process says that has Keras on this backend: by the way a model is written, the shape of each."""
    if backend == "torch":  # one that is there anyway
        from tests.backends.keras import test_torch_and_keras

        of_torch: dict[str, dict[str, str]] = test_torch_and_keras.found()["shapes"]
        return of_torch
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": path}
    run = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    shapes: dict[str, dict[str, str]] = json.loads(run.stdout.splitlines()[-1])
    return shapes


def ways() -> list[Any]:
    return [
        pytest.param(backend, way, id=f"{way}, on {backend}", marks=_marks(backend))
        for backend, ways in WAYS.items()
        for way in ways
    ]


def _marks(backend: str) -> list[pytest.MarkDecorator]:
    """One process has torch and Keras; those of the other backends are slow to start."""
    modules = {"keras", backend, *(["tf_keras"] if backend == "tensorflow" else [])}
    missing = sorted(module for module in modules if find_spec(module) is None)
    skipped = pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")
    return [skipped] if backend == "torch" else [skipped, pytest.mark.slow]


@pytest.mark.parametrize(("backend", "way"), ways())
def test_dimensions_have_the_same_names(backend: str, way: str) -> None:
    """By hand, for models with T=10, S=6 and B=2; what no formula explains is open, and in torch the number it has."""
    shapes = dict(NAMED, **{"all in one axis": "[200]" if way == "torch" else "[?]"})
    if way.endswith("its own inputs"):
        shapes = {case: shape for case, shape in NAMED.items() if case in GRAPH_OF_FIXED_SIZES}
    assert found(backend)[way] == shapes
