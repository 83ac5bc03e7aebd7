"""A user's project with a fake framework in it, and the commands the user types."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from textwrap import dedent

import pytest

from pytest_modelbudget import backends

pytest_plugins = ["pytester"]

# A run inside a test drops what it imported; what is here already is imported once for all of them.
for _module in ("plugin.collect", "plugin.controller", "plugin.fixture", "reports.html", "reports.json"):
    import_module(f"pytest_modelbudget.{_module}")
import_module("pytest_modelbudget.reports.markdown")

USE_FAKENET = """
    from pytest_modelbudget import backends

    backends.BACKENDS["fakenet"] = "fakenet"
"""
ZOO = """
    from fakenet import Model

    def small():
        return Model(dense=(32, 64))

    def of_width(width):
        return Model(dense=(32, width))

    def two_layers():
        return Model(body=(32, 64), head=(64, 10))
"""
CI_VARIABLES = ("CI", "TF_BUILD", "BUILD_NUMBER", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY")


@dataclass(frozen=True, slots=True)
class Project:
    """A folder with `fakenet` (the framework), `zoo` (some builders), and what a test writes into it."""

    pytester: pytest.Pytester

    @property
    def path(self) -> Path:
        """The root."""
        return self.pytester.path

    def write(self, name: str, text: str) -> Path:
        """A file of the user's, indented as the test is."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip("\n"), encoding="utf-8")
        return path

    def manifest(self, text: str) -> Path:
        """`modelbudget.yaml`; the first line of `text` that is not empty is line 1."""
        return self.write("modelbudget.yaml", text)

    def run(self, *args: str) -> pytest.RunResult:
        """`pytest --model-budget ...`"""
        return self.plain("--model-budget", *args)

    def update(self, *args: str) -> pytest.RunResult:
        """`pytest --model-budget-update ...`"""
        return self.plain("--model-budget-update", *args)

    def plain(self, *args: str) -> pytest.RunResult:
        """`pytest ...`, as it is typed."""
        return self.pytester.runpytest_inprocess(*args)

    def alone(self, *args: str) -> pytest.RunResult:
        """The same in a process of its own: slower, for what must not reach this one."""
        return self.pytester.runpytest_subprocess(*args)

    def snapshot(self, model: str) -> Path:
        """The snapshot of a model that the root's manifest declares."""
        return self.path / "__model_budget__" / f"{model}.yaml"

    def snapshots(self) -> dict[str, bytes]:
        """Every file in a snapshot folder, with its bytes."""
        files = self.path.rglob("__model_budget__/**/*")
        return {file.relative_to(self.path).as_posix(): file.read_bytes() for file in files if file.is_file()}


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A fresh project on a user's own machine: 80 columns, no colour, no CI."""
    for name in CI_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a module is rewritten within the second that .pyc files see
    monkeypatch.setattr(backends, "BACKENDS", {})  # the real ones may be loaded by other tests of this process
    project = Project(pytester)
    project.write("fakenet.py", (Path(__file__).parent / "fakes.py").read_text(encoding="utf-8"))
    project.write("conftest.py", USE_FAKENET)
    project.write("zoo.py", ZOO)
    project.write("pytest.ini", "[pytest]\n")
    return project


SMALL = """
    models:
      small:
        build: zoo:small
        inputs: "float32[B, 32]"
"""


@pytest.fixture
def small(project: Project) -> Project:
    """A project whose manifest registers the model `small` (2,048 params), with its snapshot written."""
    project.manifest(SMALL)
    assert project.update().ret == 0
    return project
