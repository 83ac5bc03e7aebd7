"""A project in a repository, of which all that only a whole run can tell is wrong, and its parts."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_modelbudget import backends
from pytest_modelbudget.cli import main
from pytest_modelbudget.engine import run as engine
from pytest_modelbudget.reports import REPORTS
from tests.cli.conftest import modelbudget as modelbudget
from tests.gitrepo import CI_VARIABLES, Repository, repository
from tests.project import MODULE, Project

MANIFEST = """
    defaults:
      budgets: {{params: {{max: {limit}, growth: +5%}}}}
    groups:
      edge: {{models: "edge/*", sum: {{params: 3k}}}}
      all: {{models: "*", sum: {{params: 100k}}}}
    models:
      edge/a: {{build: zoo:of_width, args: [10], tags: [small], inputs: "float32[B, 32]"}}
      edge/b: {{build: zoo:of_width, args: [40], inputs: "float32[B, 32]"}}
      edge/c: {{build: zoo:of_width, args: [50], inputs: "float32[B, 32]"}}
      wide: {{build: zoo:of_width, args: [{width}], inputs: "float32[B, 32]"}}
      other: {{build: zoo:of_width, args: [30], inputs: "float32[B, 32]"}}
      broken: {{build: zoo:nowhere, inputs: "float32[B, 32]"}}
      typo: {{buld: zoo:small}}
"""
IDS = ("edge/a", "edge/b", "edge/c", "wide", "other", "broken", "typo")


@dataclass(frozen=True)
class Zoo:
    """The project, and commands in it; what they print is in `capsys`."""

    project: Project
    repository: Repository
    capsys: pytest.CaptureFixture[str]

    @property
    def path(self) -> Path:
        """Its root."""
        return self.project.path

    def part(self, number: int, count: int = 3, *words: str) -> int:
        """Write the part of one shard; the exit code."""
        return int(self.project.plain(*self.options(number, count), *words).ret)

    def options(self, number: int, count: int = 3) -> tuple[str, ...]:
        """The options that write it."""
        return f"--model-budget-part=modelbudget-{number}.part", f"--model-budget-shard={number}/{count}"

    def merge(self, *words: str) -> SimpleNamespace:
        """`modelbudget merge ...`: its exit code, and what it printed."""
        self.capsys.readouterr()
        code = main(["merge", *words])
        out, err = self.capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    def reports(self) -> dict[str, bytes]:
        """Every report that was written, and none of it stays."""
        files = {path.name: path.read_bytes() for path in (self.path / "out").iterdir()}
        for name in files:
            (self.path / "out" / name).unlink()
        return files


REPORT_WORDS = [f"{kind}:out/report.{kind}" for kind in REPORTS]


@pytest.fixture
def zoo(project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Zoo:
    """Two limits on sums, one broken; models that fail; an obsolete snapshot and a deleted one; a loosened limit."""
    for name in CI_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(backends.BACKENDS, "fakenet", "fakenet")
    monkeypatch.setattr(engine, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    monkeypatch.setattr(sys, "path", [*sys.path])
    project.manifest(MANIFEST.format(limit="2_000", width=60))
    project.write("test_models.py", MODULE)
    project.write(".gitignore", "*.part\nout/\n__pycache__/\n.pytest_cache/\n")
    made = repository(project.path)
    project.update()
    for name in ("gone", "removed"):
        text = project.snapshot("other").read_text().replace("model: other", f"model: {name}")
        project.snapshot(name).write_text(text)
    made.commit("base")
    made.git("checkout", "-q", "-b", "topic")
    project.snapshot("removed").unlink()
    project.manifest(MANIFEST.format(limit="2_100", width=66))
    made.commit("topic")
    return Zoo(project, made, capsys)
