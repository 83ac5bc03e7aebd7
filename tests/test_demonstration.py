"""The reports of a pull request in a demonstration repository, each read by the strict parser of its format."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from importlib import resources
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from pytest_modelbudget import reports
from tests.demonstration import Demonstration, job, make
from tests.reports.test_github import parse

parser = pytest.importorskip("prometheus_client.openmetrics.parser")
jsonschema = pytest.importorskip("jsonschema")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("git") is None, reason="needs git")]


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> tuple[Demonstration, str]:
    """The repository and the log of the pull request's job, which failed."""
    repository = make(tmp_path_factory.mktemp("demonstration") / "project")
    done = job(repository)
    assert done.returncode == 1, done.stdout
    assert repository.git("status", "--porcelain") == "", "a check writes nothing into the project"
    return repository, done.stdout


def report(request: tuple[Demonstration, str], kind: str) -> str:
    """One report as text."""
    return (request[0].reports / f"report.{kind}").read_text(encoding="utf-8")


def lines_of(request: tuple[Demonstration, str], text: str) -> int:
    """The number of the manifest's line that holds a text."""
    manifest = (request[0].root / "modelbudget.yaml").read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(manifest, 1) if text in line)


def test_annotations(request_: tuple[Demonstration, str]) -> None:
    """Failures first, each at its line; then what the request did to its guards; nothing that a builder printed."""
    commands = [parse(line) for line in request_[1].splitlines() if re.match(r"\s*::.*::", line)]
    assert [(kind, where["title"], int(where["line"])) for kind, where, _ in commands] == [
        ("error", "broken: BUILD ERROR", lines_of(request_, "broken:")),
        ("error", "classifier: OVER BUDGET", lines_of(request_, "growth:")),
        ("error", "encoder: OVER BUDGET", lines_of(request_, "growth:")),
        ("warning", "ranker: warning", lines_of(request_, "warn: 90%")),
        ("warning", "ranker: budget loosened", lines_of(request_, "max: 2100")),
        ("warning", "retired: model removed", 1),
        ("warning", "snapshot deleted", 1),
    ]
    assert "params growth: 8,448 is +5,760 (+214.3%) on 2,688 (HEAD^1 " in commands[1][2]


def test_comment(request_: tuple[Demonstration, str]) -> None:
    """One row for each model that changed, why it did, and not a word of the one that did not."""
    page = report(request_, "comment")
    assert page.startswith("<!-- modelbudget:report -->\n### Model budget: 1 build error, 2 over budget, 3 ok\n")
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(page)
    assert re.findall(r"<tr>\s*<td[^>]*><code>(\w+)</code>", html) == [
        "broken",
        "classifier",
        "encoder",
        "ranker",
        "tagger",
    ]
    text = unescape(re.sub(r"<[^>]+>", "", html))
    assert "~ head  widened  640 params [B, 10] -> 6,400 params [B, 100]  (+5,760): in*out: 64*10 = 640" in text
    assert "input from blocks.1 widened 64 -> 80" in text
    assert "budget loosened: ranker: params max 2,000 -> 2,100 (+100, +5.0%)" in text
    assert "not in the base (HEAD^1 " in text
    assert "stable" not in text


def test_step_summary(request_: tuple[Demonstration, str]) -> None:
    """All models, with what moved since the base."""
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(report(request_, "md"))
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)[1:]]
    cells = {re.sub("<[^>]+>", "", row[0]): [unescape(cell) for cell in row[1:4]] for row in rows}
    assert cells == {
        "broken": ["BUILD ERROR", "?", "?"],
        "classifier": ["OVER BUDGET", "8,448", "+5,760 (+214.3%)"],
        "encoder": ["OVER BUDGET", "16,640", "+5,376 (+47.7%)"],
        "ranker": ["warn", "1,920", "="],
        "stable": ["ok", "1,920", "="],
        "tagger": ["ok", "4,224", "-"],
    }


def test_code_quality(request_: tuple[Demonstration, str]) -> None:
    """What the service asks for, with severities and lines."""
    found = json.loads(report(request_, "codequality"))
    assert all(re.fullmatch("[0-9a-f]{64}", one["fingerprint"]) for one in found)
    assert len({one["fingerprint"] for one in found}) == len(found)
    assert {(one["check_name"], one["severity"]) for one in found} == {
        ("modelbudget/build-error", "blocker"),
        ("modelbudget/params", "critical"),
        ("modelbudget/params", "minor"),
        ("modelbudget/budget-loosened", "minor"),
        ("modelbudget/model-removed", "minor"),
        ("modelbudget/snapshot-deleted", "minor"),
    }
    lines = {one["description"].partition(":")[0]: one["location"]["lines"]["begin"] for one in found}
    assert lines["broken"] == lines_of(request_, "broken:")
    assert {one["location"]["path"] for one in found} == {"modelbudget.yaml"}


def test_metrics(request_: tuple[Demonstration, str]) -> None:
    """The numbers are those of the kernels; the model that was not built has none."""
    families = parser.text_string_to_metric_families(report(request_, "openmetrics"))
    samples = {(sample.name, sample.labels["model"]): sample.value for family in families for sample in family.samples}
    params = {model: value for (name, model), value in samples.items() if name == "model_params"}
    assert params == {
        "classifier": 32 * 64 + 64 * 100,
        "encoder": 32 * 80 + 2 * 80 * 80 + 80 * 16,
        "ranker": 32 * 48 + 48 * 8,
        "stable": 32 * 48 + 48 * 8,
        "tagger": 32 * 96 + 96 * 12,
    }
    assert {model for (name, model), value in samples.items() if name == "model_check_failed" and value} == {
        "broken",
        "classifier",
        "encoder",
    }


def test_json(request_: tuple[Demonstration, str]) -> None:
    """It is as its schema says."""
    schema = json.loads((resources.files(reports) / "report.schema.json").read_text(encoding="utf-8"))
    data = json.loads(report(request_, "json"))
    jsonschema.Draft202012Validator(schema).validate(data)
    assert data["base"].startswith("HEAD^1 ")
    assert {model["id"]: model["state"] for model in data["models"]}["classifier"] == "OVER BUDGET"


def test_html(request_: tuple[Demonstration, str], tmp_path: Path) -> None:
    """The page opens in both themes, says what moved since the base, and nothing in it acts."""
    playwright = pytest.importorskip("playwright.sync_api")
    from tests.pages import launched

    with playwright.sync_playwright() as driver, launched(driver) as browser:
        for theme in ("light", "dark"):
            page = browser.new_page(color_scheme=theme)
            problems: list[str] = []
            page.on("console", lambda message, problems=problems: problems.append(message.text))
            page.on("dialog", lambda dialog, problems=problems: problems.append(dialog.message))
            page.goto((request_[0].reports / "report.html").as_uri())
            page.locator("#models a", has_text="classifier").click()
            page.locator("table.layers").last.wait_for()
            assert page.locator(".changes caption").first.inner_text().startswith("since HEAD^1 ")
            assert page.locator("img").count() == 0
            assert len(page.screenshot(path=tmp_path / f"{theme}.png", full_page=True)) > 20_000
            assert problems == []
