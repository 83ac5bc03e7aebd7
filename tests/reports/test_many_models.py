"""Reports of more models than anybody scrolls through."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pytest_modelbudget import reports
from pytest_modelbudget.budget import Finding
from pytest_modelbudget.reports import html, overall, terminal
from pytest_modelbudget.reports.listing import MOST_IN_FULL, MOST_OF_A_KIND
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.results.groups import RunSummary
from pytest_modelbudget.summary import Flops
from tests.builders import towers
from tests.pages import FEW, checked

FINE, MOVED, WARNED, OVER, BROKEN = (FEW[number] for number in range(5))
AT_LEAST = checked("bound", replace(towers(), flops=Flops(12_345, (("aten.foo", 1),))), {})
REAL = checked("real", replace(towers(), real_run=True), {})
SKIPPED = replace(BROKEN, state=State.SKIPPED, id="skipped", error="no framework")


def many(*numbers: tuple[int, Result]) -> list[Result]:
    """So many of each, with ids and node ids of their own."""
    each = [
        replace(result, id=f"{result.id}-{n:05}", nodeid=f"m.yaml::{result.id}-{n:05}")
        for count, result in numbers
        for n in range(count)
    ]
    return sorted(each, key=lambda result: result.id)


MIXED = many((500, FINE), (60, MOVED), (3, WARNED), (70, OVER), (1, BROKEN), (2, SKIPPED))
TEXTS = [
    pytest.param(lambda results: reports.render("md", results), id="Markdown"),
    pytest.param(lambda results: "\n".join(terminal.closing_lines(results, width=200)), id="terminal"),
]


@pytest.mark.parametrize("page", TEXTS)
def test_very_many_models_are_listed_where_something_is_to_be_seen(page: Callable[[list[Result]], str]) -> None:
    """Some of each kind, all of a rare one; the others are counted, and the verdict counts all."""
    shown = page(MIXED)
    listed = set(re.findall(r"(?:^|<code>)(\w+-\d{5})", shown, re.MULTILINE))
    kinds = {
        kind: sum(name.startswith(kind) for name in listed)
        for kind in ("towers", "gpt", "nested", "over", "broken", "skipped")
    }
    assert kinds == {"towers": 0, "gpt": MOST_OF_A_KIND, "nested": 3, "over": MOST_OF_A_KIND, "broken": 1, "skipped": 2}
    left_out = "20 more are OVER BUDGET, 10 more are CHANGED, 500 more are ok and unchanged"
    assert left_out in shown
    assert "1 build error, 70 over budget, 60 changed, 503 ok" in re.sub(r"(\d+ skipped), ", "", shown)


@pytest.mark.parametrize("page", TEXTS)
def test_all_of_few_models_are_listed(page: Callable[[list[Result]], str]) -> None:
    """Up to a number; one more, and those that are ok are counted."""
    assert page(many((MOST_IN_FULL, FINE))).count("towers-") == MOST_IN_FULL
    assert page(many((MOST_IN_FULL + 1, FINE))).count("towers-") == 0


def test_very_many_findings_are_counted() -> None:
    """Some of each kind, and how many more there are."""
    findings = tuple(Finding("model removed", f"net-{n}", "was registered at the base") for n in range(1_000))
    rare = Finding("snapshot deleted", "", "a.yaml is in the base")
    lines = list(overall.lines(RunSummary(findings=(*findings, rare)), ()))
    assert len(lines) == MOST_OF_A_KIND + 2
    assert "... and 950 more: model removed" in lines
    assert any("a.yaml" in line for line in lines)


def totals_in(page: str) -> Any:
    """The table of all models in an HTML page; None where there is none."""
    match = re.search(r'id="all-models".*?class="data">([^<]*)<', page, re.DOTALL)
    return None if match is None else json.loads(zlib.decompress(base64.b64decode(match[1])))


def test_a_page_of_very_many_models_has_the_totals_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of its own has only what failed, moved or warns; of few models all have one, and no such table is there."""
    monkeypatch.setattr(html, "_MOST_SECTIONS", 50)
    obsolete = Result("snapshot-files", State.OBSOLETE, error="1 snapshot file has no model")
    each = many((60, FINE), (1, MOVED), (1, WARNED), (1, OVER), (1, BROKEN), (1, AT_LEAST), (1, REAL))
    page = reports.render("html", [*each, obsolete])
    assert page.count('<section id="m') == 5
    assert "Totals of all 66 models" in page
    totals = totals_in(page)
    assert len(totals["names"]) == len(totals["params"]) == 66
    rows = {name: n for n, name in enumerate(totals["names"])}
    assert totals["params"][rows["towers-00059"]] == 6_201  # counted by hand in the builder of these towers
    assert totals["flops"][rows["broken-00000"]] is None
    assert (totals["flops"][rows["bound-00000"]], totals["at_least"]) == (12_345, [rows["bound-00000"]])
    assert [totals["words"][totals["states"][rows[f"{name}-00000"]]] for name in ("over", "nested", "real")] == [
        "OVER BUDGET",
        "warn",
        "ok (real run)",
    ]
    few = reports.render("html", many((50, FINE)))
    assert (few.count('<section id="m'), totals_in(few)) == (50, None)


def test_a_page_that_would_be_too_large_leaves_parts_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ones, which failed, have theirs; the totals of all are there, and the page says what is left out."""
    full = reports.render("html", FEW)
    monkeypatch.setattr(html, "_MOST_BYTES", 12_000)
    page = reports.render("html", FEW)
    parts = page.count('<section id="m')
    assert 1 <= parts < len(FEW)
    assert f"{len(FEW) - parts} more have no room on this page" in page
    assert sorted(totals_in(page)["names"]) == sorted(result.id for result in FEW)
    assert len(page.encode()) < len(full.encode()) + 10_000


@pytest.mark.parametrize("kind", ["json", "openmetrics", "cyclonedx", "card", "codequality"])
def test_what_grows_with_each_model_comes_in_pieces(kind: str) -> None:
    """None is much larger than what there is of one model."""
    pieces = list(reports.pieces(kind, many((60, WARNED))))
    one = len("".join(reports.pieces(kind, [WARNED])))
    assert max(map(len, pieces)) <= one
    assert len(pieces) >= 60
