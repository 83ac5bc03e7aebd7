"""A repository with a base branch and a pull request, and every report on it.

    python -m tests.demonstration FOLDER

makes it in a new folder and leaves there what a CI job of the pull request would show: `reports/` and `job.log`.
The models are of the framework in `fakes.py`, so that it needs nothing but git and this project.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from pytest_modelbudget.reports import REPORTS
from tests.project import USE_FAKENET, WITHOUT_OTHERS

CI_VARIABLES = ("CI", "TF_BUILD", "BUILD_NUMBER", "GITHUB_", "CI_", "PYTEST_ADDOPTS", "MLFLOW_")

ZOO = """
    from fakenet import Model

    def encoder(width=64):
        return Model({"stem": (32, width), "blocks.0": (width, width), "blocks.1": (width, width), "out": (width, 16)})

    def classifier(classes=10):
        return Model(body=(32, 64), head=(64, classes))

    def ranker():
        return Model(left=(32, 48), right=(48, 8))

    def tagger():
        return Model(words=(32, 96), tags=(96, 12))

    def broken():
        return Model(only=(32, 4))
"""
MANIFEST = """
    version: 1
    defaults:
      budgets: {params: {growth: "+2%"}}
    models:
      encoder: {build: "zoo:encoder", inputs: "float32[B, 32]", budgets: {params: 12k}}
      classifier: {build: "zoo:classifier", inputs: "float32[B, 32]"}
      ranker:
        build: zoo:ranker
        inputs: "float32[B, 32]"
        budgets: {params: {max: 2k, warn: 90%}}
      stable: {build: "zoo:ranker", inputs: "float32[B, 32]"}
      retired: {build: "zoo:ranker", inputs: "float32[B, 32]"}
      broken: {build: "zoo:broken", inputs: "float32[B, 32]"}
"""
BREAKS = """
    def broken():
        print("::error::printed by a builder")
        raise ValueError("no such width: <img src=x onerror=alert(1)>\\n::error::raised by a builder")
"""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """The repository, checked out as CI checks out a pull request: merged into its base for trial."""

    root: Path

    @property
    def reports(self) -> Path:
        """Where the job puts its reports, each as `report.KIND`."""
        return self.root.with_name(f"{self.root.name}-reports")

    def git(self, *words: str) -> str:
        """What git says, as somebody whose settings are nobody's."""
        who = ["-c", "user.name=A Reviewer", "-c", "user.email=reviewer@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", *who, *words], cwd=self.root, capture_output=True, encoding="utf-8", check=True, timeout=60
        )
        return done.stdout.strip()

    def write(self, name: str, text: str) -> None:
        """A file of the project."""
        (self.root / name).write_text(dedent(text).lstrip("\n"), encoding="utf-8")

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace what is there once."""
        text = (self.root / name).read_text(encoding="utf-8")
        assert text.count(old) == 1, (name, old)
        (self.root / name).write_text(text.replace(old, new), encoding="utf-8")

    def commit(self, message: str) -> None:
        """Everything there is."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)

    def pytest(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """A run in a process of its own; what this machine's CI has set is left out."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(CI_VARIABLES)}
        here = str(Path(__file__).parents[1])
        environment = {**kept, "PYTHONPATH": here, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "100", **variables}
        command = [sys.executable, "-m", "pytest", *WITHOUT_OTHERS, "-p", "no:cacheprovider", *words]
        return subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, encoding="utf-8", check=False, timeout=300
        )


def make(root: Path) -> Demonstration:
    """The base: six models with their snapshots. The pull request: one accepted change that grew too much, one that
    was not announced, one limit loosened, one model new, one gone, and one that cannot be built any more."""
    root.mkdir(parents=True)
    repository = Demonstration(root)
    repository.git("init", "--quiet", "--initial-branch", "main")
    repository.write("fakenet.py", (Path(__file__).parent / "fakes.py").read_text(encoding="utf-8"))
    for name, text in (("conftest.py", USE_FAKENET), ("zoo.py", ZOO), ("modelbudget.yaml", MANIFEST)):
        repository.write(name, text)
    repository.write("pytest.ini", "[pytest]\n")
    _update(repository)
    repository.commit("Six models")

    repository.git("switch", "--quiet", "--create", "wider")
    repository.edit("zoo.py", "classes=10", "classes=100")
    repository.edit("modelbudget.yaml", '  retired: {build: "zoo:ranker"', '  tagger: {build: "zoo:tagger"')
    _update(repository, "modelbudget.yaml::classifier", "modelbudget.yaml::tagger")
    repository.edit("zoo.py", "encoder(width=64)", "encoder(width=80)")
    repository.edit("zoo.py", "\ndef broken():\n    return Model(only=(32, 4))\n", dedent(BREAKS))
    repository.edit("modelbudget.yaml", "max: 2k", "max: 2100")
    (root / "__model_budget__/retired.yaml").unlink()
    repository.commit("Wider models")

    repository.git("switch", "--quiet", "--detach", "main")
    repository.git("merge", "--quiet", "--no-ff", "--message", "Merge wider into main", "wider")
    return repository


def _update(repository: Demonstration, *items: str) -> None:
    done = repository.pytest("--model-budget-update", "--model-budget-base=off", *items)
    assert done.returncode == 0, done.stdout


def job(repository: Demonstration) -> subprocess.CompletedProcess[str]:
    """What a job of GitHub Actions does with the pull request."""
    flags = [f"--model-budget-report={kind}:{repository.reports / f'report.{kind}'}" for kind in REPORTS]
    return repository.pytest(
        "--model-budget",
        "-p",
        "no:pytest_github_actions_annotate_failures",
        *flags,
        CI="true",
        GITHUB_ACTIONS="true",
        GITHUB_REF="refs/pull/1/merge",
        GITHUB_SHA=repository.git("rev-parse", "HEAD"),
        GITHUB_BASE_REF="main",
        GITHUB_WORKSPACE=str(repository.root),
    )


if __name__ == "__main__":
    made = make(Path(sys.argv[1]).resolve())
    done = job(made)
    (made.reports / "job.log").write_text(done.stdout, encoding="utf-8")
    print(done.stdout)
    print(f"reports: {made.reports}")
