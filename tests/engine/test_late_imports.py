"""A builder that imports its framework itself."""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget import ModelEntry, backends
from pytest_modelbudget.engine.late_imports import FrameworkImported, stopped_at_frameworks
from pytest_modelbudget.engine.run import run
from tests.fakes import Model
from tests.project import Project

FRAMEWORK = "tests.fakes"


@pytest.fixture
def framework(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A framework that is in use once `late_library` is imported, which imports it halfway through its own code."""
    (tmp_path / "late_framework.py").touch()
    (tmp_path / "late_library.py").write_text("import late_framework\ncomplete = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(backends, "BACKENDS", {FRAMEWORK: FRAMEWORK})
    monkeypatch.setattr(backends, "_SIGNS", {FRAMEWORK: ("late_framework",)})
    for name in ("late_framework", "late_library"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "late_library"


def test_nothing_is_built_for_real_after_the_import(framework: str, tmp_path: Path) -> None:
    steps: list[str] = []

    def build() -> Model:
        steps.append("before")
        import_module(framework)
        steps.append("after")
        return Model(dense=(32, 64))

    result = run(ModelEntry("net", build, inputs="float32[B, 32]"), tmp_path, snapshots=False)
    assert result.summary is not None
    assert (result.summary.params, steps) == (2_048, ["before", "before", "after"])


def test_a_builder_that_catches_everything_begins_anew(framework: str, tmp_path: Path) -> None:
    def build() -> Model | None:
        try:
            import_module(framework)
        except BaseException:
            return None
        return Model(dense=(32, 64))

    result = run(ModelEntry("net", build, inputs="float32[B, 32]"), tmp_path, snapshots=False)
    assert result.summary is not None
    assert result.summary.params == 2_048


def test_what_the_builder_raises_stands_alone(framework: str, tmp_path: Path) -> None:
    def build() -> None:
        try:
            import_module(framework)
        finally:
            raise ValueError("of the user")

    result = run(ModelEntry("net", build), tmp_path, snapshots=False)
    assert result.error
    assert "of the user" in result.error
    assert "FrameworkImported" not in result.error


def test_the_outermost_import_is_done_first(framework: str) -> None:
    with pytest.raises(FrameworkImported), stopped_at_frameworks():
        exec(f"import {framework}")
    assert sys.modules[framework].complete


@pytest.mark.usefixtures("framework")
def test_other_imports_and_other_threads_go_on() -> None:
    errors: list[Any] = []

    def import_late() -> None:
        try:
            import_module("late_framework")
        except BaseException as error:
            errors.append(error)

    with stopped_at_frameworks():
        import_module("json")
        thread = threading.Thread(target=import_late)
        thread.start()
        thread.join()
    assert not errors


def test_a_model_of_terabytes_is_counted(project: Project) -> None:
    """Its builder is the first in the process to import torch: 4 TB would be allocated by it if it were let go on."""
    project.write(
        "nets.py",
        """
        def net():
            import torch

            return torch.nn.Linear(1_000_000, 1_000_000)
        """,
    )
    project.manifest('models: {net: {build: "nets:net", inputs: "float32[B, 1000000]"}}')
    assert project.alone("--model-budget-update").ret == 0
    assert "params: 1000001000000" in project.snapshot("net").read_text(encoding="utf-8")
