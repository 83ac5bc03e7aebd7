"""Annotations for GitHub: few, ranked, escaped, never doubled, and no way in for what a model prints."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from pytest_modelbudget import budget
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import Place
from pytest_modelbudget.reports import github
from pytest_modelbudget.reports.text import DEFAULT_SETTING, ReportSetting
from pytest_modelbudget.results import Result, Snapshot, SnapshotState, State, check
from pytest_modelbudget.system.escape import harmless_output
from tests.builders import towers
from tests.project import Project


def parse(line: str) -> tuple[str, dict[str, str], str]:
    """Kind, properties and message, read as the runner reads a command."""
    match = re.fullmatch(r"::(?P<kind>[a-z]+) (?P<properties>[^:]*)::(?P<message>.*)", line)
    assert match, line
    pairs = [pair.partition("=") for pair in match["properties"].split(",")]
    return match["kind"], {name: decoded(value) for name, _, value in pairs}, decoded(match["message"])


def decoded(value: str) -> str:
    """What the runner makes of escapes."""
    for code, char in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        value = value.replace(code, char)
    return value


def over(name: str, limit: int) -> Result:
    """The two towers (6,201 params) against a limit on line 7."""
    limits = tuple(budget.parse({"params": limit}, lambda below: Place("modelbudget.yaml", 7)))
    entry = ModelEntry(name, build="a:b", budgets=limits, place=Place("modelbudget.yaml", 5))
    return replace(check(entry, towers(), Snapshot(SnapshotState.EQUAL)), nodeid=f"modelbudget.yaml::{name}")


def test_an_error_points_at_the_line_of_the_limit() -> None:
    """File, line and title are properties; the message says number, limit and distance."""
    [line] = github.commands([replace(over("a", 6_000), id="a,b:c%")], DEFAULT_SETTING)
    kind, properties, message = parse(line)
    assert kind == "error"
    assert properties == {"file": "modelbudget.yaml", "line": "7", "title": "a,b:c%: OVER BUDGET"}
    assert message.splitlines()[0] == "params: 6,201 > 6,000 (+201, +3.4%)  [modelbudget.yaml:7]"


def test_files_are_named_from_the_repository() -> None:
    """A root below the checkout has its folder in front."""
    [line] = github.commands([over("a", 6_000)], ReportSetting(folder="services/vision"))
    assert parse(line)[1]["file"] == "services/vision/modelbudget.yaml"


def test_at_most_ten_errors_and_a_count() -> None:
    """The service drops the eleventh without a word, so the worst come first and the others are counted."""
    small = [over(f"small-{index:02}", 6_000 + index) for index in range(20)]
    results = [*small, over("huge", 3), Result("broken", State.BUILD_ERROR, error="E   KeyError: 'x'")]
    parsed = [parse(line) for line in github.commands(results, DEFAULT_SETTING)]
    assert [kind for kind, _, _ in parsed] == ["error"] * 10 + ["notice"]
    titles = [properties["title"] for _, properties, _ in parsed]
    assert titles[:3] == ["broken: BUILD ERROR", "huge: OVER BUDGET", "small-00: OVER BUDGET"]
    assert parsed[-1][2] == "12 more models failed: see the summary"


def test_a_warn_zone_is_a_warning() -> None:
    """It is annotated at its line and fails nothing."""
    limits = {"params": {"max": 6_300, "warn": "90%"}}
    near = check(ModelEntry("a", build="a:b", budgets=limits), towers(), Snapshot(SnapshotState.EQUAL))
    [line] = github.commands([near], DEFAULT_SETTING)
    assert parse(line)[0] == "warning"


@pytest.fixture
def failing(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project in a job of GitHub Actions, with a model over its limit whose builder prints commands."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(project.path))
    project.write(
        "zoo.py",
        """
        import sys
        from fakenet import Model

        def loud():
            print("::error::from the builder")
            print("  ::add-mask::a", file=sys.stderr)
            print("see ##[error]x and ##vso[task.complete]y")
            print("50%\\r100% \\x1b[31mred\\x1b[0m\\x1b[2J")
            return Model(dense=(32, 64))
        """,
    )
    project.manifest(
        """
        models:
          loud: {build: "zoo:loud", inputs: "float32[B, 32]", budgets: {params: 2000}}
        """
    )
    return project


def ours(lines: list[str]) -> list[str]:
    """The lines that the runner takes for commands."""
    return [line for line in lines if re.match(r"\s*::.*::", line) or re.search(r"##(vso)?\[", line)]


def test_only_our_own_commands_are_in_the_log(failing: Project) -> None:
    """What the builder printed is shown with its failure, and commands nothing."""
    lines = failing.run("-p", "no:pytest_github_actions_annotate_failures").outlines
    [command] = ours(lines)
    assert parse(command)[1] == {"file": "modelbudget.yaml", "line": "2", "title": "loud: OVER BUDGET"}
    text = "\n".join(lines)
    assert "from the builder" in text
    assert "100% red\\x1b[2J" in text
    assert "50%" not in text


@pytest.mark.parametrize("capture", ["no", *(pytest.param(way, marks=pytest.mark.slow) for way in ("tee-sys", "sys"))])
def test_output_that_is_not_captured_commands_nothing(failing: Project, capture: str) -> None:
    """Commands are off while the builder runs, and on again before ours."""
    lines = failing.alone(
        "--model-budget", f"--capture={capture}", "-p", "no:pytest_github_actions_annotate_failures"
    ).outlines
    stop = next(index for index, line in enumerate(lines) if line.startswith("::stop-commands::"))
    word = lines[stop].removeprefix("::stop-commands::")
    go = lines.index(f"::{word}::")
    assert re.fullmatch("[0-9a-f]{32}", word)
    loud = [index for index, line in enumerate(lines) if line == "::error::from the builder"]
    assert loud == ([] if capture == "sys" else [index for index in loud if stop < index < go])
    [command] = ours(lines[:stop] + lines[go + 1 :])
    assert parse(command)[1]["title"] == "loud: OVER BUDGET"


def test_nothing_is_annotated_twice(failing: Project) -> None:
    """A plugin that annotates failed tests does it alone."""
    failing.write(
        "conftest.py",
        """
        from pytest_modelbudget import backends

        backends.BACKENDS["fakenet"] = "fakenet"

        class Other:
            pass

        def pytest_configure(config):
            if not config.pluginmanager.hasplugin("pytest_github_actions_annotate_failures"):
                config.pluginmanager.register(Other(), "pytest_github_actions_annotate_failures")
        """,
    )
    errors = [line for line in ours(failing.run().outlines) if "OVER BUDGET" in line]
    assert errors == []


def test_elsewhere_nothing_is_annotated(failing: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of GitHub's jobs the log has no commands at all."""
    monkeypatch.delenv("GITHUB_ACTIONS")
    assert ours(failing.run().outlines) == []


def test_captured_output_stays_readable() -> None:
    """Colours go, tabs are spaces, and words with colons stay as they were."""
    assert harmless_output("\x1b[1mtorch::nn::Linear\x1b[0m\tok\n") == "torch::nn::Linear       ok\n"
    assert harmless_output("\n  ::group::x\n") == "\n  :\\x3agroup::x\n"
