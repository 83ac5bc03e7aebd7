"""Whatever a builder does to its process costs its own model, is named, and is in all reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.project import WITHOUT_OTHERS

HERE = Path(__file__).parent
UNFIT = "left its process unfit for other models: "
FAULTS = {
    "segfault": "ended by SIGSEGV (a segmentation fault)\nfaults.py:33: in segfault",
    "abort": "ended by SIGABRT",
    "leave": "ended with exit code 0, before the model was counted",
    "leave_with_code": "ended with exit code 3",
    "terminated": "ended by SIGTERM",
    "killed": "ended by SIGKILL",
    "exits": "called sys.exit(0)",
    "loops": "took longer than the 4 s that limits.seconds allows\nfaults.py:",
    "sleeps": "took longer than the 4 s that limits.seconds allows\nfaults.py:",
    "loops_in_c": "took longer than the 4 s that limits.seconds allows\nfaults.py:",
    "hoards": "took more memory than the 700.0 MiB that limits.memory allows",
    "hoards_in_a_child": "took more memory than the 700.0 MiB that limits.memory allows",
    "forks": f"{UNFIT}it forked it",
    "starts_a_thread": f"{UNFIT}its thread",
    "leaves_from_a_thread": "ended with exit code 0",
    "replaces_len": f"{UNFIT}builtins.len was replaced",
    "replaces_open": f"{UNFIT}builtins.open was replaced",
    "removes_print": f"{UNFIT}builtins.print was replaced",
    "empties_path": f"{UNFIT}sys.path was emptied",
    "empties_modules": UNFIT,
    "closes_files": "its process",
    "closes_output": f"{UNFIT}it closed its output",
    "writes_everywhere": "broke the connection",
    "limits_files": f"{UNFIT}the limits of its process",
    "limits_memory": "",
    "recurses": "RecursionError",
    "recurses_without_limit": "",
    "leaves_the_folder": "ValueError: nowhere",
    "asks": "EOFError",
    "unspeakable": "Unspeakable",
    "generator_exit": "GeneratorExit",
    "no_memory": "MemoryError",
    "nothing": "returned None",
}
"""What is said of a builder that costs its model."""

HARMLESS = (
    "exits_at_the_end", "leaves_at_the_end", "lowers_the_recursion_limit", "sets_an_alarm", "empties_the_environment",
    "traces", "patches_json", "patches_warnings", "raises_limits", "takes_a_folder",
)  # fmt: skip
"""What is put back, or comes too late to matter."""


def project(folder: Path, builders: list[str]) -> list[str]:
    """A project with these builders, a good one behind each; returns the ids in their order."""
    (folder / "fakenet.py").write_text((HERE.parent / "fakes.py").read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "faults.py").write_text((HERE / "faults.py").read_text(encoding="utf-8"), encoding="utf-8")
    ids = {f"{index:03}-{name}": name for index, name in enumerate(one for bad in builders for one in (bad, "good"))}
    lines = ["version: 1", "defaults: {limits: {seconds: 4, memory: 700 MiB}}", "models:"]
    lines += [f'  {name}: {{build: "faults:{builder}", inputs: "float32[B, 32]"}}' for name, builder in ids.items()]
    (folder / "modelbudget.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return list(ids)


def checked(folder: Path, command: list[str]) -> tuple[int, dict[str, dict[str, Any]], str]:
    """The exit code, the models of the JSON report, and the comment, of an updating run with isolation."""
    if "pytest" in command:
        reports = ["--model-budget-update", "--model-budget-report=json:r.json", "--model-budget-report=comment:c.md"]
    else:
        reports = ["--report", "json:r.json", "--report", "comment:c.md"]
    run = subprocess.run(
        [sys.executable, "-m", *command, *reports],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert "INTERNALERROR" not in run.stdout, run.stdout
    assert "Traceback" not in run.stderr, run.stderr
    models = {model["id"]: model for model in json.loads((folder / "r.json").read_text())["models"]}
    return run.returncode, models, (folder / "c.md").read_text(encoding="utf-8")


def environment() -> dict[str, str]:
    """This one's, with isolation on and this package found."""
    left_out = ("MODELBUDGET_ISOLATE", "CI", "GITHUB_ACTIONS", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**kept, "PYTHONPATH": str(HERE.parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}


def as_expected(name: str, model: dict[str, Any]) -> bool:
    """Whether the model that a fault costs says what it was, and any other has its params."""
    builder = name.partition("-")[2]
    if builder in FAULTS:
        return model["state"] == "BUILD ERROR" and FAULTS[builder] in model["error"]
    return model["state"] == "ok" and model["summary"]["params"] == 32 * 64


def check_all(folder: Path, builders: list[str], command: list[str]) -> None:
    """Each model has its verdict, in all reports."""
    ids = project(folder, builders)
    code, models, comment = checked(folder, command)
    assert list(models) == ids
    assert {name: model["error"] for name, model in models.items() if not as_expected(name, model)} == {}
    assert all(name in comment for name, model in models.items() if model["state"] != "ok")
    assert code == int(any(builder in FAULTS for builder in builders))
    assert "quiet" not in comment.splitlines()[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["pytest", "-q", "-p", "no:cacheprovider"], id="serial"),
        pytest.param(["pytest", "-q", "-p", "no:cacheprovider", "-n", "2"], id="two workers"),
        pytest.param(["pytest", "-q", "-p", "no:cacheprovider", "-n", "4"], id="four workers"),
        pytest.param(["pytest_modelbudget.cli", "update"], id="the command"),
    ],
)
def test_every_fault_costs_its_model_alone(tmp_path: Path, command: list[str]) -> None:
    """Forty models that do something to their process each, and as many good ones between them."""
    check_all(tmp_path, [*FAULTS, *HARMLESS], command)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_some_faults_cost_their_model_alone(tmp_path: Path) -> None:
    """The commonest of them, in one run."""
    check_all(
        tmp_path,
        ["leave", "replaces_len", "segfault", "exits_at_the_end"],
        ["pytest", *WITHOUT_OTHERS, "-q", "-p", "no:cacheprovider"],
    )
