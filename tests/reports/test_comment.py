"""The comment on a pull request: only what changed, never too long, found again by its marker."""

from __future__ import annotations

from dataclasses import replace
from html import unescape

import pytest

from pytest_modelbudget import reports
from pytest_modelbudget.budget import Finding
from pytest_modelbudget.diff import changes
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.reports.text import ReportSetting
from pytest_modelbudget.results import BaseComparison, Result, Snapshot, SnapshotState, State, check
from pytest_modelbudget.results.groups import RunSummary
from pytest_modelbudget.summary import Summary
from tests.builders import dense, towers


def wider() -> Summary:
    """The two towers with a Dense(60) for the items: 10 * 21 more there, 10 more inputs of the last: +220."""
    layers = list(towers().layers)
    layers[3] = dense("dense_1", 20, 60, "item")
    layers[5] = dense("dense_2", 110, 1, "concatenate")
    return replace(towers(), layers=tuple(layers))


def equal(name: str = "net", summary: Summary | None = None, **more: object) -> Result:
    """A model that is as its snapshot says."""
    snapshot = Snapshot(SnapshotState.EQUAL, f"__model_budget__/{name}.yaml")
    return replace(check(ModelEntry(name, build="a:b"), summary or towers(), snapshot), **more)  # type: ignore[arg-type]


def since(before: Summary, after: Summary) -> BaseComparison:
    """What moved since the base."""
    return BaseComparison(
        "HEAD^1 4f1c2d9", totals={"params": before.params, "flops": before.flops.value}, changes=changes(before, after)
    )


def test_nothing_changed_is_quiet() -> None:
    """The marker says that no new comment is wanted."""
    page = reports.render("comment", [equal(since=since(towers(), towers()))], ReportSetting("linux"))
    assert page.splitlines()[0] == "<!-- modelbudget:linux quiet -->"
    assert page.splitlines()[-1] == "No model changed."


def test_an_accepted_change_is_shown_against_the_base() -> None:
    """Its snapshot is committed with it, so that the run passes; the reviewer still sees what moved, and why."""
    changed = equal("item-tower", wider(), since=since(towers(), wider()))
    page = reports.render(
        "comment", [changed, equal("left-alone")], ReportSetting(overall=RunSummary("HEAD^1 4f1c2d9"))
    )
    lines = page.splitlines()
    assert lines[0] == "<!-- modelbudget:model-budget -->"
    assert "### Model budget: 2 ok" in lines
    assert "Compared with <code>HEAD^1 4f1c2d9</code>." in lines
    [row] = [line for line in lines if line.startswith("| <code>")]
    assert row.startswith("| <code>item-tower</code> | ok | 6,421 | +220 (+3.5%) |")
    assert "since HEAD^1 4f1c2d9:" in lines
    assert any(line.startswith("  params 6,201 -> 6,421  (+220, +3.55%)") for line in lines)
    assert "left-alone" not in page


def test_a_failed_model_says_how_to_accept_it() -> None:
    """The numbers and the command are those of the terminal."""
    entry = ModelEntry("net", build="a:b", budgets={"params": 6_300})
    snapshot = Snapshot(SnapshotState.DIFFERENT, "__model_budget__/net.yaml", before=towers())
    failed = replace(check(entry, wider(), snapshot), nodeid="modelbudget.yaml::net")
    page = reports.render("comment", [failed])
    assert "params: 6,421 > 6,300 (+121, +1.9%)" in page
    assert 'then:    pytest --model-budget-update "modelbudget.yaml::net"' in page


@pytest.mark.parametrize(
    ("noted", "quiet"),
    [
        pytest.param(equal(findings=(Finding("budget loosened", "net", "params max 1 -> 2"),)), False, id="loosened"),
        pytest.param(equal(findings=(Finding("waiver", "net", "up to 2"),)), True, id="an old waiver"),
        pytest.param(equal(since=BaseComparison("HEAD^1", "not in the base (HEAD^1)")), False, id="new model"),
        pytest.param(equal(since=BaseComparison("", "there is no base (shallow clone)")), True, id="no base"),
        pytest.param(Result("net", State.SKIPPED, error="torch is not installed"), True, id="skipped"),
    ],
)
def test_what_is_worth_a_comment(noted: Result, quiet: bool) -> None:
    """What this change did, not what it found."""
    assert reports.render("comment", [noted]).startswith("<!-- modelbudget:model-budget quiet -->") is quiet


def test_a_deleted_snapshot_is_worth_one() -> None:
    """It belongs to no model that is left."""
    gone = RunSummary("HEAD^1", findings=(Finding("snapshot deleted", "", "__model_budget__/old.yaml"),))
    page = reports.render("comment", [equal()], ReportSetting(overall=gone))
    assert "quiet" not in page
    assert "snapshot deleted: __model_budget__/old.yaml" in unescape(page)


def test_a_comment_is_never_refused_for_its_length() -> None:
    """Far below 65,536 characters, whole sections, and a count of what is left out."""
    many = [
        replace(equal(f"model-{index}", wider()), state=State.BUILD_ERROR, error="x\n" * 9_000) for index in range(500)
    ]
    page = reports.render("comment", many)
    assert len(page.encode("utf-16-le")) // 2 < 65_536
    assert "450 more models are not shown here." in page
    assert "more lines and sections did not fit" in page
    assert page.count("<details>") == page.count("</details>") > 5
    assert page.count("```") % 2 == 0


@pytest.mark.parametrize(("key", "marker"), [("linux-3.12", "linux-3.12"), ("a --> b", "a-b"), ("", "model-budget")])
def test_the_key_cannot_leave_its_marker(key: str, marker: str) -> None:
    """It is part of an HTML comment."""
    assert reports.render("comment", [], ReportSetting(key)).startswith(f"<!-- modelbudget:{marker} quiet -->")
