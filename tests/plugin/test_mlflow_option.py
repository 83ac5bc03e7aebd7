"""The options of MLflow in a run of pytest: skipped, kept as a warning, or required; links in the Markdown report."""

from __future__ import annotations

import pytest

from pytest_modelbudget.trackers import Delivery, mlflow
from tests.project import SMALL, Project
from tests.trackers.mlflow_helpers import free_port


@pytest.fixture
def accepted(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose model is as its snapshot says."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    project.manifest(SMALL)
    project.update()
    return project


def test_a_fork_without_secrets_skips_with_one_line(accepted: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """CI sets the variables of missing secrets to nothing; that fails nobody, also where MLflow is required."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    result = accepted.run("--model-budget-mlflow-required")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["mlflow: skipped: MLFLOW_TRACKING_URI is set but empty*fork*"])
    assert not (accepted.path / ".modelbudget").exists()


@pytest.mark.parametrize(("flag", "status"), [("--model-budget-mlflow", 0), ("--model-budget-mlflow-required", 1)])
def test_a_server_that_is_away(accepted: Project, monkeypatch: pytest.MonkeyPatch, flag: str, status: int) -> None:
    """It is a warning, or a failure where it is required; the results are kept in both cases."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    result = accepted.run(flag)
    assert result.ret == status
    result.stdout.fnmatch_lines(["mlflow: not sent: nobody answers*", "  kept in .modelbudget/outbox: 1;*"])
    assert ("as --model-budget-mlflow-required demands" in result.stdout.str()) == bool(status)


def test_links_are_added_to_the_markdown_report(accepted: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which a CI service shows on the page of the job."""
    links = (("this run", "https://h/#/experiments/1/runs/2?workflowType=machine_learning"),)
    monkeypatch.setattr(mlflow, "log", lambda *_, **__: Delivery(True, ("mlflow: logged",), links))
    accepted.run("--model-budget-mlflow", "--model-budget-report=md:page.md", "--model-budget-report=json:r.json")
    text = (accepted.path / "page.md").read_text(encoding="utf-8")
    assert text.endswith(f"\nMLflow: [this run](<{links[0][1]}>)\n")
    assert "MLflow" not in (accepted.path / "r.json").read_text(encoding="utf-8")
