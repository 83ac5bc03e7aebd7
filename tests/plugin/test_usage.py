"""Command lines that cannot work: pytest's usage error (4), with a hint."""

from __future__ import annotations

import pytest

from tests.project import SMALL, Project


@pytest.mark.parametrize(
    "more", [pytest.param([], id="alone"), pytest.param(["-n", "2"], id="two workers", marks=pytest.mark.slow)]
)
def test_no_model_at_all(project: Project, more: list[str]) -> None:
    """Green tests without a model are not a checked budget."""
    project.write("test_plain.py", "def test_plain(): pass\n")
    result = (project.alone if more else project.plain)("--model-budget", *more)
    assert result.ret == 4
    text = result.stdout.str() + result.stderr.str()
    assert "model-budget: no model found. Register one in modelbudget.yaml" in text
    assert "--model-budget-file" in text


@pytest.mark.parametrize(
    ("more", "code"),  # as they are without this plugin
    [
        pytest.param([], 2, id="alone"),
        pytest.param(["-n", "2"], 1, id="two workers", marks=pytest.mark.slow),
    ],
)
def test_a_module_that_does_not_import_is_told_first(project: Project, more: list[str], code: int) -> None:
    """The collection error is the message, not the missing models."""
    project.write("test_broken.py", "import no_such_thing\n")
    result = (project.alone if more else project.plain)("--model-budget", *more)
    assert result.ret == code
    assert "no model found" not in result.stdout.str() + result.stderr.str()


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        pytest.param(
            "--model-budget-report=pdf:x.pdf", "*write KIND:PATH, with KIND one of json, md, html*", id="kind"
        ),
        pytest.param("--model-budget-report=json", "*write KIND:PATH*", id="no path"),
        pytest.param("--model-budget-report=json:", "*write KIND:PATH*", id="empty path"),
        pytest.param("--model-budget-file=nope.yaml", "*there is no manifest nope.yaml*", id="file"),
    ],
)
def test_a_wrong_value(project: Project, flag: str, words: str) -> None:
    """The message says what to write; nothing runs."""
    project.manifest(SMALL)
    result = project.update(flag)
    assert result.ret == 4
    result.stderr.fnmatch_lines([words])
    assert project.snapshots() == {}


@pytest.mark.parametrize(
    ("flag", "value", "needed"),
    [
        ("--model-budget-report", "=json:x.json", "--model-budget"),
        ("--model-budget-mlflow", "", "--model-budget"),
        ("--model-budget-file", "=modelbudget.yaml", "--model-budget"),
        ("--model-budget-base", "=main", "--model-budget"),
        ("--model-budget-shard", "=1/2", "--model-budget-part=FILE"),
    ],
)
def test_a_flag_that_needs_another(project: Project, flag: str, value: str, needed: str) -> None:
    """It would silently do nothing, so it is an error."""
    project.manifest(SMALL)
    result = project.plain(f"{flag}{value}")
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"*{flag} needs {needed} beside it"])


def test_a_path_after_a_flag_is_a_path(project: Project) -> None:
    """No flag swallows what follows it."""
    project.manifest(SMALL)
    project.write("tests/test_plain.py", "def test_plain(): pass\n")
    for flag in ("--model-budget-update", "--model-budget", "--model-budget-prune"):
        project.plain(flag, "modelbudget.yaml", "tests").assert_outcomes(passed=2)
