"""A model that was collected is in every report, whatever ended the run before it."""

from __future__ import annotations

import json
from textwrap import dedent

import pytest

from tests.project import Project

MANY = """
    models:
      first: {build: zoo:small, inputs: "float32[B, 32]"}
      middle: {build: ends:now, inputs: "float32[B, 32]", tags: [edge]}
      last: {build: zoo:small, inputs: "float32[B, 32]"}
"""
REPORTS = tuple(
    f"--model-budget-report={kind}:r.{kind}" for kind in ("json", "md", "html", "comment", "codequality", "openmetrics")
)


def ending(project: Project, how: str) -> None:
    """A project whose middle model does something, with the snapshots of the others."""
    project.manifest(MANY)
    project.write("ends.py", "from zoo import small as now\n")
    assert project.update().ret == 0
    project.write("ends.py", f"def now():\n    {how}\n")


def states(project: Project) -> dict[str, str]:
    """What the JSON report says of each model."""
    models = json.loads((project.path / "r.json").read_text(encoding="utf-8"))["models"]
    return {model["id"]: model["state"] for model in models}


def test_an_interrupt(project: Project) -> None:
    """Those behind it are NOT CHECKED, in the table and in each report, and the comment is not a quiet one."""
    ending(project, "raise KeyboardInterrupt")
    result = project.pytester.runpytest_inprocess("--model-budget", *REPORTS, no_reraise_ctrlc=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert states(project) == {"first": "ok", "last": "NOT CHECKED", "middle": "NOT CHECKED"}
    result.stdout.fnmatch_lines(["last * NOT CHECKED", "middle * NOT CHECKED", "3 models in *: 2 not checked, 1 ok"])
    for kind in ("md", "html", "comment"):
        text = (project.path / f"r.{kind}").read_text(encoding="utf-8")
        assert text.count("NOT CHECKED") >= 2, kind
        assert "the run was interrupted before it was checked" in text
    assert "quiet" not in (project.path / "r.comment").read_text(encoding="utf-8").splitlines()[0]
    quality = json.loads((project.path / "r.codequality").read_text(encoding="utf-8"))
    assert sorted(one["check_name"] for one in quality) == ["modelbudget/not-checked"] * 2


def test_an_update_that_is_interrupted_keeps_what_it_has_not_checked(project: Project) -> None:
    """Snapshots of models behind the interrupt stay as they were."""
    ending(project, "raise KeyboardInterrupt")
    before = project.snapshots()
    project.pytester.runpytest_inprocess("--model-budget-update", no_reraise_ctrlc=True)
    assert project.snapshots() == before


def test_the_first_failure_with_x(project: Project) -> None:
    """Those that `-x` left out are NOT CHECKED, and say so."""
    ending(project, "raise ValueError('broken')")
    result = project.run("-x", *REPORTS)
    assert result.ret == 1
    assert states(project) == {"first": "ok", "last": "NOT CHECKED", "middle": "BUILD ERROR"}
    assert "the run ended before it was checked: stopping after 1 failures" in (project.path / "r.md").read_text()


def test_deselected_models_are_told_apart(project: Project) -> None:
    """They are no results and fail nothing, but the run says how many they are, and its comment is not quiet."""
    ending(project, "raise ValueError('broken')")
    result = project.run("-k", "not edge", *REPORTS)
    assert result.ret == 0
    assert states(project) == {"first": "ok", "last": "ok"}
    result.stdout.fnmatch_lines(["note: deselected: 1 model was left out by the options of this run"])
    comment = (project.path / "r.comment").read_text(encoding="utf-8")
    assert "quiet" not in comment.splitlines()[0]
    assert "1 model was left out" in comment
    assert "No model changed" not in comment


def test_all_checked_is_quiet(project: Project) -> None:
    """The comment of a run that has nothing to say, and says it of all models."""
    ending(project, "from zoo import small; return small()")
    assert project.run(*REPORTS).ret == 0
    assert "quiet" in (project.path / "r.comment").read_text(encoding="utf-8").splitlines()[0]


def test_a_skipped_model_has_its_reason(project: Project) -> None:
    """Another plugin, or a conftest, may skip it before it is built."""
    ending(project, "raise ValueError('broken')")
    with (project.path / "conftest.py").open("a", encoding="utf-8") as file:
        file.write(
            "\nimport pytest\n\ndef pytest_collection_modifyitems(items):\n"
            "    items[1].add_marker(pytest.mark.skip(reason='not today'))\n"
        )
    result = project.run(*REPORTS)
    assert result.ret == 0
    models = json.loads((project.path / "r.json").read_text(encoding="utf-8"))["models"]
    assert [(model["state"], model["error"]) for model in models] == [("ok", ""), ("ok", ""), ("skipped", "not today")]


def test_a_test_module_that_cannot_be_collected(project: Project) -> None:
    """The models of the manifest are NOT CHECKED, and those in the module are said to be unknown."""
    ending(project, "from zoo import small; return small()")
    project.write("test_nets.py", "import nowhere\n")
    result = project.run(*REPORTS)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert set(states(project).values()) == {"NOT CHECKED"}
    result = project.run("--continue-on-collection-errors", *REPORTS)
    assert result.ret == 1
    assert set(states(project).values()) == {"ok"}
    comment = (project.path / "r.comment").read_text(encoding="utf-8")
    assert "quiet" not in comment.splitlines()[0]
    assert "test_nets.py could not be collected" in comment


@pytest.mark.slow
def test_a_worker_of_xdist_that_ends(project: Project) -> None:
    """Where models are not isolated, its model is a BUILD ERROR that says so, and xdist goes on with another worker."""
    ending(project, "import os; os._exit(0)")
    result = project.alone("--model-budget", "-n", "2", *REPORTS)
    assert result.ret == 1
    assert states(project) == {"first": "ok", "last": "ok", "middle": "BUILD ERROR"}
    assert "crashed while running" in (project.path / "r.md").read_text(encoding="utf-8")


def test_an_interrupt_of_collection_is_no_quiet_run(project: Project) -> None:
    """A source that is interrupted leaves no model that is known, which reports say."""
    project.manifest("sources: [ends:now]\n")
    project.write("ends.py", "def now():\n    raise KeyboardInterrupt\n")
    project.pytester.runpytest_inprocess("--model-budget", *REPORTS, no_reraise_ctrlc=True)
    comment = (project.path / "r.comment").read_text(encoding="utf-8")
    assert "quiet" not in comment.splitlines()[0]
    # pytest 8.0 takes it for an error of the source
    assert "ended before all models were collected" in comment or "not collected: modelbudget.yaml" in comment


def test_last_failed_says_what_it_left_out(project: Project) -> None:
    """`--lf` takes models away without telling other plugins, and the comment is not a quiet one all the same."""
    ending(project, "raise ValueError")
    project.run()
    project.write("ends.py", "from zoo import small as now\n")
    project.run("--lf", *REPORTS)
    comment = (project.path / "r.comment").read_text(encoding="utf-8")
    assert "2 models were left out" in comment


@pytest.mark.slow
def test_a_source_that_interrupts_workers_of_xdist(project: Project) -> None:
    """Nobody sits at their keyboard, and each would be replaced: the source has failed, and the models are checked."""
    ending(project, "from zoo import small; return small()")
    project.manifest(f"sources: [ends:source]\n{dedent(MANY)}")
    with (project.path / "ends.py").open("a", encoding="utf-8") as file:
        file.write("def source():\n    raise KeyboardInterrupt\n")
    result = project.alone("--model-budget", "-n", "2", *REPORTS)
    assert result.ret == 1
    assert states(project) == {"first": "ok", "middle": "ok", "last": "ok", "sources": "BAD CONFIG"}
    assert "ends:source raised KeyboardInterrupt" in (project.path / "r.md").read_text(encoding="utf-8")
