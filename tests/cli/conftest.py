"""The `modelbudget` command in a fresh user's project with the fake framework."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

from pytest_modelbudget import backends
from pytest_modelbudget.cli import main
from tests.project import Project


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Command:
    """`modelbudget ...` in the root of a project."""

    project: Project
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: str) -> Done:
        """Run it in this process, with the modules of the project as they are now."""
        for name in ("zoo", "more", "nets"):
            sys.modules.pop(name, None)
        self.capsys.readouterr()
        code = main(words)
        out, err = self.capsys.readouterr()
        return Done(code, out, err)

    def write(self, name: str, text: str) -> None:
        """A file of the user's."""
        self.project.write(name, text)

    def git(self, *words: str) -> None:
        """`git ...`"""
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *words], cwd=self.project.path, check=True, capture_output=True)

    def commit(self) -> None:
        """Everything as it is."""
        if not (self.project.path / ".git").exists():
            self.git("init", "-q", "-b", "main")
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "x", "--allow-empty")


@pytest.fixture
def modelbudget(project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command; the fake framework is registered as the project's conftest.py registers it for pytest."""
    monkeypatch.setitem(backends.BACKENDS, "fakenet", "fakenet")
    return Command(project, capsys)
