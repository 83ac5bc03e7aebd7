"""A fresh user's project for each test, with a fake framework in it."""

from __future__ import annotations

import gc
import os
import sys
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

from pytest_modelbudget import backends
from pytest_modelbudget.reports import REPORTS
from tests.project import SMALL, USE_FAKENET, ZOO, Project

pytest_plugins = ["pytester"]

# A process for each of thousands of small runs would take hours; tests/isolation has its own.
os.environ["MODELBUDGET_ISOLATE"] = "0"

# A run inside a test drops what it imported; what is here already is imported once for all of them.
for _module in ("plugin.collect", "plugin.controller", "plugin.fixture"):
    import_module(f"pytest_modelbudget.{_module}")
for _module in REPORTS.values():
    import_module(_module)

CI_VARIABLES = ("CI", "TF_BUILD", "BUILD_NUMBER", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY")

SHARING = (
    "backends/keras/test_torch_and_keras.py",
    "backends/test_same_shapes.py",
    "faults/test_moments.py",
    "isolation/test_isolation.py",
    "test_demonstration.py",
    "test_examples.py",
    "trackers/test_mlflow.py",
)
"""Modules whose tests share something that takes seconds to make: a process, a repository."""

for _name, _examples in (("fast", 20), ("long", 500)):  # the same examples on every machine and in every run
    settings.register_profile(
        _name, derandomize=True, database=None, deadline=None, max_examples=_examples, report_multiple_bugs=False,
        phases=[Phase.explicit, Phase.generate, Phase.shrink], suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share something go first: xdist gives the first eighth to one worker, so it is made once."""
    paths = {Path(__file__).parent / name for name in SHARING}
    items.sort(key=lambda item: item.path not in paths)


def pytest_collection_finish() -> None:
    """Frameworks are there for good from here on: the collector of garbage need not look through them again."""
    gc.collect()
    gc.freeze()


class Installed:
    """A distribution whose files are read once."""

    def __init__(self, distribution: metadata.Distribution) -> None:
        self._distribution = distribution

    def __getattr__(self, name: str) -> Any:
        value = vars(self)[name] = getattr(self._distribution, name)
        return value


@cache
def installed() -> list[Installed]:
    """All there are: each run of pytest looks for plugins among them, twice, and names those in its header."""
    return [Installed(distribution) for distribution in metadata.distributions()]


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A fresh project on a user's own machine: 80 columns, no colour, no CI."""
    for name in CI_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a module is rewritten within the second that .pyc files see
    distributions = installed()
    monkeypatch.setattr(metadata, "distributions", lambda: iter(distributions))
    monkeypatch.setattr(backends, "BACKENDS", {})  # the real ones may be loaded by other tests of this process
    project = Project(pytester)
    project.write("fakenet.py", (Path(__file__).parent / "fakes.py").read_text(encoding="utf-8"))
    project.write("conftest.py", USE_FAKENET)
    project.write("zoo.py", ZOO)
    project.write("pytest.ini", "[pytest]\n")
    return project


@pytest.fixture
def small(project: Project) -> Project:
    """A project whose manifest registers the model `small` (2,048 params), with its snapshot written."""
    project.manifest(SMALL)
    assert project.update().ret == 0
    return project
