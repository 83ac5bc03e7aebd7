"""What a user's project is made of, and the commands the user types."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

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

MODULE = """
    from pytest_modelbudget import model
    from fakenet import Model

    @model(inputs="float32[B, 32]")
    def decorated():
        return Model(dense=(32, 2))

    def test_fixture(model_budget):
        model_budget.check(Model(dense=(32, 3)), inputs="float32[B, 32]", params="1k")

    def test_ordinary():
        pass
"""
"""A test module with all that may be in one: a model, a test that checks one, and an ordinary test."""

WITHOUT_OTHERS = ("-p", "no:hypothesispytest", "-p", "no:jaxtyping", "-p", "no:anyio")
"""Plugins of pytest that import all of their libraries, which takes four times as long as a small run."""

SMALL = """
    models:
      small:
        build: zoo:small
        inputs: "float32[B, 32]"
"""


@dataclass(frozen=True, slots=True)
class Project:
    """A folder with `fakenet` (the framework), `zoo` (some builders), and what a test writes into it."""

    pytester: pytest.Pytester

    @property
    def path(self) -> Path:
        """The root."""
        return self.pytester.path

    @property
    def outside(self) -> Path:
        """A folder of this test that is not in the project."""
        path = self.path.with_name(f"{self.path.name}-outside")
        path.mkdir(exist_ok=True)
        return path

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
        return self.pytester.runpytest_subprocess(*WITHOUT_OTHERS, *args)

    def snapshot(self, model: str) -> Path:
        """The snapshot of a model that the root's manifest declares."""
        return self.path / "__model_budget__" / f"{model}.yaml"

    def snapshots(self) -> dict[str, bytes]:
        """Every file in a snapshot folder, with its bytes."""
        files = self.path.rglob("__model_budget__/**/*")
        return {file.relative_to(self.path).as_posix(): file.read_bytes() for file in files if file.is_file()}
