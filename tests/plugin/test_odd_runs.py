"""Runs whose models, terminals and reports are odd: every verdict is right, and so is the exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project import SMALL, Project
from tests.system.test_writing import environment

posix = pytest.mark.skipif(sys.platform == "win32", reason="pipes and shells of POSIX")

HEAD = """
import builtins, io, json, os, resource, sys
from pytest_modelbudget import model
from fakenet import Model

def net():
    return Model(dense=(32, 64))

@model(inputs="float32[B, 32]")
def first():
    return net()

@model(inputs="float32[B, 32]")
def odd():
    {body}

@model(inputs="float32[B, 32]")
def last():
    return net()
"""

HARMLESS = {
    "builtins.open is gone": "builtins.open = io.open = None; return net()",
    "json is another": "json.dumps = json.loads = lambda *_, **__: 1 / 0; return net()",
    "no path": "sys.path.clear(); sys.path_importer_cache.clear(); return net()",
    "no folder": "os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); return net()",
    "few frames": """
    for limit in range(sys.getrecursionlimit()):
        try:
            sys.setrecursionlimit(limit + 1)
        except RecursionError:
            continue
        sys.setrecursionlimit(limit + 30)
        return net()
""".strip(),
    "no more files": """
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    return net()
""".strip(),
}

SILENT = """
    class Silent({base}):
        def __str__(self):
            raise {error}
        __repr__ = __str__
    {act}
""".strip()

FAILING = {
    "an error that cannot be shown": SILENT.format(base="Exception", error="ValueError", act="raise Silent"),
    "one that leaves when it is shown": SILENT.format(base="BaseException", error="SystemExit(0)", act="raise Silent"),
    "one of endless words": SILENT.format(base="Exception", error="RecursionError", act="raise Silent"),
    "a note that cannot be shown": SILENT.format(
        base="Exception", error="ValueError", act="error = ValueError('x'); error.__notes__ = [Silent()]; raise error"
    ),
    "an exit that cannot be shown": SILENT.format(base="Exception", error="ValueError", act="sys.exit(Silent())"),
    "a cause that cannot be shown": SILENT.format(base="Exception", error="ValueError", act="raise ValueError from Silent()"),
}  # fmt: skip


def states(path: Path) -> dict[str, str]:
    """How each model came out, as the JSON report says."""
    return {model["id"]: model["state"] for model in json.loads(path.read_text(encoding="utf-8"))["models"]}


@posix
@pytest.mark.slow
@pytest.mark.parametrize("body", HARMLESS.values(), ids=HARMLESS)
def test_what_a_builder_leaves_behind_costs_nobody_a_verdict(project: Project, body: str) -> None:
    """In the process of the run itself: snapshots, all reports and the last lines are there."""
    project.write("test_nets.py", HEAD.format(body=body))
    result = project.alone(
        "--model-budget-update", *(f"--model-budget-report={kind}:r.{kind}" for kind in ("html", "json", "md"))
    )
    assert result.ret == 0, result.stdout.str()
    result.stdout.fnmatch_lines(["3 models in * 3 ok", "snapshots: wrote 3, 0 unchanged"])
    assert states(project.path / "r.json") == {"first": "ok", "odd": "ok", "last": "ok"}
    assert (project.path / "r.html").exists()
    assert (project.path / "r.md").exists()


def test_errors_that_cannot_be_shown_are_build_errors(project: Project) -> None:
    """Each of its model alone."""
    for number, body in enumerate(FAILING.values()):
        project.write(f"test_{number}.py", HEAD.format(body=body).replace(" resource,", ""))
        source = (project.path / f"test_{number}.py").read_text()
        for name in ("first", "odd", "last"):
            source = source.replace(f"def {name}(", f"def {name}_{number}(")
        project.write(f"test_{number}.py", source)
    result = project.update("--model-budget-report=json:r.json")
    assert result.ret == 1
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
    found = states(project.path / "r.json")
    assert {name: found[name] for name in found if name.startswith("odd")} == {
        f"odd_{number}": "BUILD ERROR" for number in range(len(FAILING))
    }
    assert sorted(found.values()) == ["BUILD ERROR"] * len(FAILING) + ["ok"] * 2 * len(FAILING)


def test_reports_and_the_hook_are_independent(small: Project) -> None:
    """Each that fails is told and fails the run, also a hook that leaves with code 0; the others go on. What killed
    writes left goes."""
    (small.path / "target.json").write_text("")
    (small.path / "link.json").symlink_to("target.json")
    killed = [small.path / folder / ".modelbudget-dead.tmp" for folder in (".", "__model_budget__")]
    for draft in killed:
        draft.mkdir()
    conftest = (small.path / "conftest.py").read_text()
    hook = "import pytest\ndef pytest_modelbudget_finish(results):\n    pytest.exit('enough', 0)\n"
    small.write("conftest.py", f"{conftest}\n{hook}")
    result = small.run("--model-budget-report=html:zoo.py/x.html", "--model-budget-report=json:link.json")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "1 model in * 1 ok",
            "ERROR report html: *x.html cannot be written (Not a directory)",
            "ERROR pytest_modelbudget_finish failed:",
        ]
    )
    assert (small.path / "link.json").is_symlink()
    assert states(small.path / "target.json") == {"small": "ok"}
    assert not any(draft.exists() for draft in killed)


def test_a_report_in_the_wrong_place_is_wrong_usage(small: Project) -> None:
    """Before anything is run or taken away."""
    (small.path / "r.json").write_text("yesterday")
    before = small.snapshots()
    for report in (
        "json:modelbudget.yaml",
        "md:__model_budget__/small.yaml",
        "html:pytest.ini",
        "md:./r.json",
        "json:",
    ):
        result = small.run("--model-budget-report=json:r.json", f"--model-budget-report={report}")
        assert result.ret == 4
        result.stderr.fnmatch_lines(["ERROR: --model-budget-report=*: *"])
    assert (small.path / "r.json").read_text() == "yesterday"
    assert small.snapshots() == before


def test_no_report_of_an_earlier_run_outlives_one_that_could_not_write_its_own(project: Project) -> None:
    """Whoever looks finds none, or a comment that says so; where nothing is checked nothing is taken away."""
    project.manifest(SMALL)
    reports = ["--model-budget-report=json:r.json", "--model-budget-report=comment:c.md"]
    for name in ("r.json", "c.md"):
        (project.path / name).write_text("yesterday")
    project.run(*reports, "--collect-only")
    assert (project.path / "r.json").read_text() == (project.path / "c.md").read_text() == "yesterday"
    project.write("conftest.py", "import not_there\n")
    assert project.run(*reports).ret == 4
    assert not (project.path / "r.json").exists()
    assert "the run did not finish" in (project.path / "c.md").read_text()


MANY = "models:\n" + "".join(
    f'  m{number}: {{build: "zoo:small", inputs: "float32[B, 32]"}}\n' for number in range(40)
)  # fmt: skip


@posix
@pytest.mark.slow
@pytest.mark.parametrize("options", ["", "-s", "-n 2"], ids=["captured", "direct", "two workers"])
@pytest.mark.parametrize("redirected", ["| head -1", ">&-", ">&- 2>&-", ">/dev/full"])
def test_a_run_whose_output_nobody_takes(project: Project, redirected: str, options: str) -> None:
    """Every model is checked, the report is there, and the exit code is the verdict's."""
    project.manifest(f"{MANY}  overweight: {{build: 'zoo:small', inputs: 'float32[B, 32]', budgets: {{params: 1}}}}\n")
    run = f'"$0" -m pytest -p no:cacheprovider -v --model-budget-update {options} --model-budget-report=json:r.json'
    command = f'{{ {run}; echo $? >failing; {run} -k "not overweight"; echo $? >passing; }} {redirected}'
    subprocess.run(
        ["bash", "-c", command, sys.executable], cwd=project.path, env=environment(), capture_output=True, check=False
    )
    assert (project.path / "failing").read_text() == "1\n"
    assert (project.path / "passing").read_text() == "0\n"
    assert states(project.path / "r.json") == {f"m{number}": "ok" for number in range(40)}
    assert len(project.snapshots()) == 41  # of a model that is over its limit too
