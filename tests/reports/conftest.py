"""A browser for the tests of the HTML page; without one they are skipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget import reports
from pytest_modelbudget.reports.text import ReportSetting
from pytest_modelbudget.results import Result
from tests.pages import Opened, launched


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One for all tests of a file."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver, launched(driver) as started:
        yield started


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens a page; afterwards it has loaded nothing but itself and complained of nothing."""
    opened: list[Opened] = []

    def open_page(results: list[Result], *, theme: str = "light", setting: ReportSetting | None = None) -> Opened:
        file = tmp_path / f"page-{len(opened)}.html"
        file.write_text(
            reports.render("html", results, *([setting] if setting else [])), encoding="utf-8", newline="\n"
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=theme)
        one = Opened(page, [], [])
        page.on("request", lambda request: one.asked.append(request.url))
        page.on("console", lambda message: one.problems.append(message.text))
        page.on("pageerror", lambda error: one.problems.append(str(error)))
        page.on("dialog", lambda dialog: one.problems.append(f"dialog: {dialog.message}"))
        page.goto(file.as_uri())
        opened.append(one)
        return one

    yield open_page
    for one in opened:
        assert one.problems == []
        assert [url for url in one.asked if not url.startswith("file:")] == []
        assert len(one.asked) == 1
        one.page.close()
