"""`modelbudget check` and `update` do what `pytest --model-budget` does with a manifest."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_modelbudget.system import pace
from tests.cli.conftest import Command
from tests.project import SMALL

STATES = """
    defaults: {budgets: {params: {warn: 90%}}}
    tags:
      edge: {sum: {params: 5000}}
    models:
      fine:
        build: zoo:small
        inputs: "float32[B, 32]"
        tags: [edge]
      near: {build: "zoo:small", inputs: "float32[B, 32]", budgets: {params: 2100}, tags: [edge]}
      over: {build: "zoo:small", inputs: "float32[B, 32]", budgets: {params: 1k}, tags: [edge]}
      moved: {build: "zoo:of_width", args: [10], inputs: "float32[B, 32]"}
      fresh: {build: "zoo:small", inputs: "float32[B, 32]"}
      damaged: {build: "zoo:small", inputs: "float32[B, 32]"}
      broken: {build: "more:broken"}
      absent: {build: "more:absent"}
      twice: {build: "zoo:small", inputs: "float32[B, 32]"}
      Twice: {build: "zoo:small", inputs: "float32[B, 32]"}
      wrong: {build: "zoo:small", inputs: "flaot32[B, 32]"}
    sources: ["more:source", "more:no_source"]
"""
MORE = """
    from fakenet import Model
    from pytest_modelbudget import ModelEntry

    def broken():
        print("before it broke")
        raise RuntimeError("broken")

    def absent():
        import nothing_of_the_kind
        return Model(dense=(1, 1))

    def source():
        yield ModelEntry(id="sourced", build="zoo:small", inputs="float32[B, 32]")

    def no_source():
        raise ValueError("none today")
"""


@pytest.fixture
def states(modelbudget: Command) -> Command:
    """A project with a model in every state, and a snapshot of a model that is gone."""
    modelbudget.write("more.py", MORE)
    modelbudget.project.manifest(STATES.replace("args: [10]", "args: [11]"))
    modelbudget("update")
    modelbudget.project.manifest(STATES)
    folder = modelbudget.project.path / "__model_budget__"
    (folder / "fresh.yaml").unlink()
    text = (folder / "fine.yaml").read_text(encoding="utf-8")
    (folder / "damaged.yaml").write_text(f"<<<<<<< a\n{text}", encoding="utf-8")
    return modelbudget


def report(path: Path) -> dict[str, Any]:
    """A JSON report without what differs from run to run."""
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for model in data["models"]:
        model.pop("seconds")
    return data


def test_results_are_those_of_pytest(states: Command) -> None:
    """The JSON reports of both are the same, in every state, with sums, sources and mistakes."""
    path = states.project.path
    done = states("check", "--report", "json:ours.json")
    ran = states.project.run("--model-budget-report=json:theirs.json")
    assert (done.code, ran.ret) == (1, 1)
    ours = report(path / "ours.json")
    assert ours == report(path / "theirs.json")
    words = {model["state"] for model in ours["models"]}
    assert words == {"ok", "CHANGED", "NO SNAPSHOT", "OVER BUDGET", "CONFLICT", "BUILD ERROR", "BAD CONFIG"}


def test_words_are_those_of_pytest(states: Command) -> None:
    """Each failure reads the same, and so do the lines at the end, but for the seconds."""
    done = states("check")
    printed = states.project.run().stdout.str()
    ours = [line for line in done.out.splitlines() if line.strip() and " s: " not in line]
    theirs = set(printed.splitlines())
    own = {"it printed:", "before it broke"}
    assert not [line for line in ours if line not in theirs and line not in own]
    assert "it printed:\nbefore it broke" in done.out


def test_update_writes_what_pytest_writes(states: Command) -> None:
    """The same bytes, and nothing for what failed to build."""
    states("update")
    ours = states.project.snapshots()
    for path in ours:
        (states.project.path / path).unlink()
    states.project.update()
    assert states.project.snapshots() == ours
    assert set(ours) == {f"__model_budget__/{name}.yaml" for name in
                         ("fine", "near", "over", "moved", "fresh", "damaged", "sourced")}  # fmt: skip


def test_from_nothing_to_green_to_red(modelbudget: Command) -> None:
    """The codes of a user's first hour."""
    modelbudget.project.manifest(SMALL)
    assert modelbudget("check").code == 1
    assert modelbudget.project.snapshots() == {}
    done = modelbudget("update")
    assert (done.code, done.err) == (0, "")
    assert "snapshots: wrote 1, 0 unchanged" in done.out
    assert modelbudget("check").code == 0
    assert "snapshots: wrote 0, 1 unchanged" in modelbudget("update").out
    modelbudget.write("zoo.py", "from fakenet import Model\ndef small(): return Model(dense=(32, 65))\n")
    done = modelbudget("check")
    assert done.code == 1
    assert "params 2,048 -> 2,080  (+32, +1.56%)" in done.out


@pytest.mark.parametrize(
    ("words", "models"),
    [
        pytest.param([], 2, id="all"),
        pytest.param(["small"], 1, id="an id"),
        pytest.param(["*l*"], 2, id="a glob"),
        pytest.param(["modelbudget.yaml::small"], 1, id="a node id"),
        pytest.param(["small", "small"], 1, id="an id twice"),
    ],
)
def test_some_models(modelbudget: Command, words: list[str], models: int) -> None:
    """Ids, globs and the node ids that pytest prints."""
    modelbudget.project.manifest(f'{SMALL}\n      large: {{build: "zoo:small", inputs: "float32[B, 32]"}}\n')
    assert f"\n{models} model{'s' if models > 1 else ''} in " in modelbudget("update", *words).out


def test_obsolete_snapshots_fail_whole_runs_only(modelbudget: Command) -> None:
    """As pytest does; a selected model says nothing of others."""
    modelbudget.project.manifest(SMALL)
    modelbudget("update")
    modelbudget.project.manifest(SMALL.replace("small:", "other:", 1))
    modelbudget("update", "other")
    assert modelbudget("check", "other").code == 0
    done = modelbudget("check")
    assert done.code == 1
    assert "snapshot-files: OBSOLETE" in done.out


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        pytest.param(None, "there is no manifest", id="no manifest"),
        pytest.param("version: 1\nmodels: {}\n", "registers no model", id="no model"),
    ],
)
def test_nothing_to_check_is_code_4(modelbudget: Command, manifest: str | None, said: str) -> None:
    """As of pytest, so that a lost manifest is never green."""
    if manifest is not None:
        modelbudget.project.manifest(manifest)
    done = modelbudget("check")
    assert (done.code, done.out) == (4, "")
    assert said in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["nothing"], "no model 'nothing' is registered\n  registered: small", id="no such model"),
        pytest.param(["--file", "gone.yaml"], "there is no manifest", id="no such manifest"),
        pytest.param(["--base", "gone"], "gone", id="no such base"),
        pytest.param(["--report", "csv:x"], "write KIND:PATH, with KIND one of json", id="no such report"),
        pytest.param(["--report", "md:./modelbudget.yaml"], "is no report: name another file", id="over the manifest"),
    ],
)
def test_what_cannot_be_done_is_code_2(modelbudget: Command, words: list[str], said: str) -> None:
    """And nothing is printed as if it were a result."""
    modelbudget.project.manifest(SMALL)
    modelbudget.commit()
    done = modelbudget("check", *words)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_a_manifest_elsewhere(modelbudget: Command) -> None:
    """By its file or its folder; its snapshots lie beside it."""
    modelbudget.write("sub/models.yaml", SMALL)
    modelbudget.write("sub/modelbudget.yaml", SMALL.replace("small:", "other:", 1))
    assert modelbudget("update", "--file", "sub/models.yaml").code == 0
    assert modelbudget("update", "--file", "sub").code == 0
    assert {*modelbudget.project.snapshots()} == {f"sub/__model_budget__/{name}.yaml" for name in ("small", "other")}


def test_growth_is_held_against_the_base(modelbudget: Command) -> None:
    """2,080 is 1.56% above the 2,048 of the commit."""
    modelbudget.project.manifest(f'{SMALL}        budgets: {{params: {{growth: "+1%"}}}}\n')
    modelbudget("update")
    modelbudget.commit()
    modelbudget.write("zoo.py", "from fakenet import Model\ndef small(): return Model(dense=(32, 65))\n")
    done = modelbudget("update")
    assert done.code == 1
    assert "OVER BUDGET" in done.out
    assert modelbudget("update", "--base", "off").code == 0


def test_tables_on_demand(modelbudget: Command) -> None:
    """`-v` shows models that pass, `-vv` says why."""
    modelbudget.project.manifest(SMALL)
    modelbudget("update")
    assert "Layer (type)" not in modelbudget("check").out
    assert "Layer (type)" in modelbudget("check", "-v").out
    assert "32*64 = 2,048" in modelbudget("check", "-vv").out


def test_many_new_models_get_a_line_each(modelbudget: Command) -> None:
    """As in pytest; of few, each gets its table."""
    model = '{build: zoo:small, inputs: "float32[B, 32]"}'
    modelbudget.project.manifest("models:\n" + "".join(f"  net{number}: {model}\n" for number in range(4)))
    lines = modelbudget("check").out.splitlines()
    numbers = "2,048 params, 4.096 kFLOPs, 1 layer"
    assert lines[:4] == [f"net{n}: NO SNAPSHOT: no __model_budget__/net{n}.yaml yet; {numbers}" for n in range(4)]
    assert "look:    modelbudget show net0" in lines
    assert modelbudget("check", "net[012]").out.count("Layer (type)") == 3


def test_a_report_that_cannot_be_written_fails(modelbudget: Command) -> None:
    """The others are written."""
    modelbudget.project.manifest(SMALL)
    modelbudget("update")
    (modelbudget.project.path / "folder").mkdir()
    done = modelbudget("check", "--report", "json:folder", "--report", "md:ok.md")
    assert done.code == 1
    assert "ERROR report json:" in done.err
    assert (modelbudget.project.path / "ok.md").is_file()


def test_annotations_where_github_reads(modelbudget: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands that pytest prints there."""
    modelbudget.project.manifest(SMALL)
    assert "::error" not in modelbudget("check").out
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert "\n::error file=modelbudget.yaml,line=2" in modelbudget("check").out


def test_no_pytest_is_needed(modelbudget: Command) -> None:
    """Neither to find, to check nor to write."""
    modelbudget.project.manifest(SMALL)
    code = """
import sys
sys.modules["pytest"] = sys.modules["_pytest"] = None
from pytest_modelbudget import backends
from pytest_modelbudget.cli import main
backends.BACKENDS["fakenet"] = "fakenet"
print(main(["update"]), main(["check"]), main(["diff", "small", "small"]), main(["why", "small"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 0 0 0"


def test_the_hook_of_pre_commit_is_the_check(modelbudget: Command) -> None:
    """Its entry is run when a source, manifest or snapshot is among what is committed, and fails as the check does."""
    [hook] = yaml.safe_load((Path(__file__).parents[2] / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    command, *words = shlex.split(hook["entry"])
    assert (command, hook["language"], hook["pass_filenames"]) == ("modelbudget", "system", False)
    for name, starts in {
        "zoo.py": True,
        "modelbudget.yaml": True,
        "__model_budget__/a.yaml": True,
        "README.md": False,
    }.items():
        assert bool(re.search(hook["files"], name)) == starts
    modelbudget.project.manifest(SMALL)
    assert modelbudget(*words).code == 1
    modelbudget("update")
    assert modelbudget(*words).code == 0


def test_a_log_of_a_long_run_says_how_far_it_is(modelbudget: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """On standard error, a line now and then, which here is each time; a short run says nothing there."""
    modelbudget.write("modelbudget.yaml", SMALL)
    assert modelbudget("update").err == ""
    monkeypatch.setattr(pace, "_EVERY", 0)
    assert modelbudget("check").err == "modelbudget: [1/1] small\n"
