"""A framework is imported when a model of it is registered, and not to be asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.project import WITHOUT_OTHERS

pytest.importorskip("torch")
pytest.importorskip("tensorflow")

MODELS = """
import torch

from pytest_modelbudget import model


@model(inputs="float32[B, 4]")
def small():
    return torch.nn.Linear(4, 3)


def test_fixture(model_budget):
    model_budget.check(torch.nn.Linear(4, 3), inputs="float32[B, 4]", params=15)
"""

CONFTEST = """
import sys
from pathlib import Path


def pytest_unconfigure():
    found = sorted({"tensorflow", "keras", "tf_keras", "jax", "torch"} & set(sys.modules))
    Path(__file__).with_name("imported.txt").write_text(" ".join(found))
"""


def test_models_of_torch_alone_import_no_other_framework(tmp_path: Path) -> None:
    """A whole run over torch models, with TensorFlow and Keras installed beside, imports neither."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_models.py").write_text(MODELS)
    options = [*WITHOUT_OTHERS, "-q", "-p", "no:cacheprovider", "--model-budget-update"]
    command = [sys.executable, "-m", "pytest", *options, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "imported.txt").read_text() == "torch"


@pytest.mark.slow
def test_a_summary_of_a_torch_model_imports_no_other_framework() -> None:
    """Nor does the library, called by itself."""
    code = (
        "import sys, torch; from pytest_modelbudget import summarize; "
        "print(summarize(torch.nn.Linear(4, 3), 'float32[B, 4]').params, "
        "{'tensorflow', 'keras', 'jax'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "15 set()"


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    [
        pytest.param("summarize(layer, 'float32[B, 4]').params", id="summarize"),
        pytest.param("plan(layer, 'float32[B, 4]').kind", id="plan", marks=pytest.mark.slow),
    ],
)
def test_the_library_counts_torch_after_tensorflow(call: str) -> None:
    """A user's process that has imported both, TensorFlow last, outlives the first model that it counts."""
    code = (
        "import torch, tensorflow; from pytest_modelbudget import plan, summarize; "
        f"layer = torch.nn.Linear(4, 3); print({call})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("15", "training")
