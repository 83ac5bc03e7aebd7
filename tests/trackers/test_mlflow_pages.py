"""MLflow's pages in a browser: the printed links show the trend as lines, and the layers as a table."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.trackers import mlflow_demo
from tests.trackers.mlflow_helpers import free_port, needs_mlflow
from tests.trackers.mlflow_server import server, store_at

pytestmark = [pytest.mark.slow, needs_mlflow]

CHROMIUM = next(
    (path for name in ("chromium", "google-chrome", "chromium-browser") if (path := shutil.which(name))), ""
)
SECONDS = 60_000
"""Milliseconds that a page may take on a busy machine."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A server with the demonstration's runs, a browser, and what its last run of pytest printed."""

    page: Any
    uri: str
    lines: list[str]
    folder: Path

    def open(self, address: str) -> Any:
        """A page, as the link of a mail or a log opens it."""
        self.page.goto("about:blank")
        self.page.goto(address)
        return self.page

    def picture(self, name: str) -> None:
        """A picture of the page, for those who want to look."""
        self.page.screenshot(path=str(self.folder / f"{name}.png"))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """Four of the demonstration's commits, and a browser that has never been there."""
    playwright = pytest.importorskip("playwright.sync_api")
    pytest.importorskip("torch")
    if not CHROMIUM:
        pytest.skip("no Chromium is installed")
    folder, port = tmp_path_factory.mktemp("pages"), free_port()
    with server(folder, port) as uri, playwright.sync_playwright() as started:
        lines = mlflow_demo.play(folder / "demo", uri, commits=4)
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        page.set_default_timeout(SECONDS)
        yield Shown(page, uri, lines, folder)
        browser.close()


def test_the_printed_link_shows_the_trend_as_lines(shown: Shown) -> None:
    """A chart of params with one line that has more than one point: 64, then 72 units."""
    page = shown.open(mlflow_demo.link(shown.lines, "all models over time"))
    page.get_by_placeholder("Search metric charts").fill("params/total")
    page.get_by_text("params/total").first.wait_for()
    page.wait_for_function(
        """() => [...document.querySelectorAll('.scatterlayer path.js-line')]
            .some(one => (one.getAttribute('d').match(/[LHV]/g) || []).length >= 2)"""
    )
    shown.picture("trend")
    assert page.get_by_text("classifier").count()


def test_the_run_says_how_it_came_out(shown: Shown) -> None:
    """The verdict is in the first line of the description, and the commit beside the source."""
    page = shown.open(mlflow_demo.link(shown.lines, "this run"))
    page.get_by_text("OK: 3 ok").first.wait_for()
    page.get_by_role("link", name="table of models").wait_for()
    page.get_by_text("Show more").first.click()
    page.get_by_role("cell", name="classifier").wait_for()
    shown.picture("run")


def test_the_report_opens_in_its_sandbox(shown: Shown) -> None:
    """The page of the report shows the models, and says nothing of an error."""
    errors: list[str] = []
    shown.page.on("pageerror", lambda error: errors.append(str(error)))
    page = shown.open(mlflow_demo.link(shown.lines, "its report"))
    frame = page.frame_locator("iframe.mlflow-html-iframe")
    frame.get_by_role("link", name="classifier").wait_for()
    shown.picture("report")
    assert not [error for error in errors if "sandbox" in error or "SecurityError" in error]


def test_the_layers_are_a_table(shown: Shown) -> None:
    """With the names of the layers and their params: 32 x 72 + 72 in the first one."""
    base, _, query = mlflow_demo.link(shown.lines, "this run").partition("?")
    page = shown.open(f"{base}/artifacts/models/classifier/layers.json?{query}")
    page.get_by_text("output shape").first.wait_for()
    page.get_by_text("2376", exact=True).first.wait_for()
    shown.picture("layers")


def test_the_list_of_runs_has_our_columns(shown: Shown) -> None:
    """The saved view shows metrics, which a new page of MLflow hides."""
    page = shown.open(mlflow_demo.link(shown.lines, "all runs"))
    page.get_by_text("session/params_sum").first.wait_for()
    shown.picture("runs")
    assert not page.get_by_text("Error loading shared view state").count()


def test_the_history_has_a_point_for_each_change(shown: Shown) -> None:
    """Widths 64, 64, 72, 72: a point at the first commit, the hold point at the second, the change at the third."""
    store = store_at(shown.uri)
    run = store.run("modelbudget/nets/history", "classifier")
    small, large = mlflow_demo.params(64), mlflow_demo.params(72)
    assert store.points(run, "params/total") == [(1, small), (2, small), (3, large)]
    for name in ("autoencoder", "tagger"):
        assert len(store.points(store.run("modelbudget/nets/history", name), "params/total")) == 1
    text = (shown.folder / "demo" / "nets" / "summary.md").read_text(encoding="utf-8")
    assert f"[all models over time](<{mlflow_demo.link(shown.lines, 'all models over time')}>)" in text
