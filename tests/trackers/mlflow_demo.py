"""A demonstration repository: ten commits, three small models of which one grows, each commit logged to a server.

    python -m tests.trackers.mlflow_demo FOLDER URI

Its pages can then be looked at. The ninth commit grows a model without accepting it, the tenth accepts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.trackers.mlflow_helpers import SOURCES
from tests.trackers.mlflow_server import Repository, repository

MANIFEST = """
version: 1
models:
  classifier:
    build: zoo:classifier
    inputs: "float32[B, 32]"
    budgets: {params: 6k}
  autoencoder:
    build: zoo:autoencoder
    inputs: "float32[B, 64]"
    budgets: {params: 20k, weight_bytes: 100 KB}
  tagger:
    build: zoo:tagger
    inputs: "float32[B, 10, 8]"
"""

ZOO = """
from torch import nn


def classifier():
    return nn.Sequential(nn.Linear(32, {width}), nn.ReLU(), nn.Linear({width}, 10))


def autoencoder():
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 64))


def tagger():
    return nn.LSTM(8, 12, batch_first=True)
"""

WIDTHS = (64, 64, 72, 72, 96, 96, 96, 112, 144, 144)
"""The width of the growing model at each commit; a classifier of width w has 43 w + 10 params."""


def params(width: int) -> int:
    """Of the classifier: 32 w + w in its first layer, 10 w + 10 in its second."""
    return 33 * width + 10 * width + 10


def play(folder: Path, uri: str, commits: int = 10) -> list[str]:
    """Make the repository and its commits, each checked as a CI job does; returns what the last run printed."""
    event = folder / "event.json"
    folder.mkdir(parents=True, exist_ok=True)
    event.write_text(json.dumps({"repository": {"default_branch": "main"}}), encoding="utf-8")
    repo = repository(folder / "nets", "nets", MLFLOW_TRACKING_URI=uri)
    repo.git("checkout", "-q", "-b", "main")
    (repo.path / "modelbudget.yaml").write_text(MANIFEST, encoding="utf-8")
    (repo.path / ".gitignore").write_text("__pycache__/\n.pytest_cache/\nsummary.md\n", encoding="utf-8")
    lines: list[str] = []
    for number, width in enumerate(WIDTHS[:commits]):
        (repo.path / "zoo.py").write_text(ZOO.format(width=width), encoding="utf-8")
        (repo.path / "README").write_text(f"revision {number + 1}\n", encoding="utf-8")
        grows = number == 0 or width != WIDTHS[number - 1]
        if (grows and number != 8) or number == 9:
            _pytest(repo, "--model-budget-update")
        repo.git("add", "-A")
        repo.git("commit", "-q", "-m", f"classifier of width {width}")
        lines = _pytest(repo, "--model-budget-mlflow", "--model-budget-report=md:summary.md", **_ci(event, number))
    return lines


def _ci(event: Path, number: int) -> dict[str, str]:
    return {
        "GITHUB_ACTIONS": "true",
        "GITHUB_REF": "refs/heads/main",
        "GITHUB_EVENT_NAME": "push",
        "GITHUB_EVENT_PATH": str(event),
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_REPOSITORY": "team/nets",
        "GITHUB_RUN_ID": str(1000 + number),
    }


def _pytest(repo: Repository, *flags: str, **variables: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--model-budget", *flags]
    environment = {**os.environ, **repo.environment, "PYTHONPATH": f"{repo.path}{os.pathsep}{SOURCES}", **variables}
    done = subprocess.run(command, cwd=repo.path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout.splitlines()


def link(lines: list[str], name: str) -> str:
    """The address that a run printed under a name."""
    [found] = [line.partition(": ")[2] for line in lines if line.startswith(f"  {name}: ")]
    return found


if __name__ == "__main__":
    print("\n".join(play(Path(sys.argv[1]), sys.argv[2])))
