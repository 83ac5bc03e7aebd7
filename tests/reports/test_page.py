"""The HTML page as people use it, in a real browser: clicks, keys, both themes, many models, hostile names."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget.budget import Finding
from pytest_modelbudget.reports import html
from pytest_modelbudget.reports.text import ReportSetting
from pytest_modelbudget.results.groups import RunSummary
from pytest_modelbudget.summary import Flops, Layer, Summary
from pytest_modelbudget.system.escape import harmless
from tests import hostile
from tests.builders import towers, training
from tests.pages import FEW, checked, leaf


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_planned_run_is_drawn(show: Any, theme: str) -> None:
    """Inside of its frame, with the peak where the text says it, and readable against the page in both themes."""
    planned = replace(towers(), plans=(training(),))
    page = show([checked("planned", planned, {"fits": "40 MiB"})], theme=theme)
    curve = page.page.get_by_role("img", name="Memory alive in one training step")
    frame, line = curve.bounding_box(), curve.locator("polyline").bounding_box()
    assert frame["width"] > 500
    assert frame["x"] <= line["x"] <= line["x"] + line["width"] <= frame["x"] + frame["width"]
    assert frame["y"] <= line["y"] <= line["y"] + line["height"] <= frame["y"] + frame["height"]
    assert curve.locator("text.peak").text_content() == "peak 40.00 MiB"
    colours = "e => [getComputedStyle(e).stroke, getComputedStyle(document.body).backgroundColor]"
    ink, paper = curve.locator("polyline").evaluate(colours)
    assert contrast(ink, paper) >= 3
    assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.names(".plan caption") == ["Alive at the peak", "What would change the peak"]


def contrast(one: str, other: str) -> float:
    """How far two colours are apart, as the accessibility guidelines (WCAG 2.1) reckon it."""

    def light(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_models_are_sorted_by_a_click(show: Any) -> None:
    """Upwards, downwards, and as they were: failed ones first; a number that is not known comes last."""
    page = show(FEW)
    models = "#models tbody th"
    assert page.names(models) == ["broken", "gpt", "over", "nested", "towers"]
    params = page.page.locator("#models").get_by_role("button", name="Params")
    params.click()
    assert page.names(models) == ["nested", "gpt", "over", "towers", "broken"]
    params.click()
    assert page.names(models) == ["over", "towers", "gpt", "nested", "broken"]
    assert page.page.locator("#models th[aria-sort]").get_attribute("aria-sort") == "descending"
    params.click()
    assert page.names(models) == ["broken", "gpt", "over", "nested", "towers"]


def test_models_are_found_by_their_names(show: Any) -> None:
    """The others go away, with their sections, and the number that is left is told."""
    page = show(FEW)
    page.page.get_by_label("Find").fill("T")
    assert page.names("#models tbody tr:not(.hidden) th") == ["gpt", "nested", "towers"]
    page.page.get_by_label("only what failed").check()
    assert page.names("section:not(.hidden) h2 bdi") == ["gpt"]
    assert page.page.get_by_role("status").inner_text() == "1 of 5 shown"


def test_any_of_very_many_models_is_found(show: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their totals are drawn a page at a time, sort, and are searched as a whole; what failed has its part above."""
    monkeypatch.setattr(html, "_MOST_SECTIONS", 100)
    fine = [replace(FEW[0], id=f"net-{n:03}", nodeid=f"m.yaml::net-{n:03}") for n in range(350)]
    at_least = checked("at-least", replace(towers(), flops=Flops(12_345, (("aten.foo", 1),))), {})
    page = show([*fine, FEW[3], at_least])
    rows = "#all-models tbody tr"
    page.page.locator(rows).first.wait_for()
    assert (page.names("#models tbody th"), page.page.locator(rows).count()) == (["over"], 100)
    assert page.page.locator("#range").inner_text() == "1 to 100 of 352"
    for _ in range(3):
        page.page.get_by_role("button", name="Next").click()
    assert page.names(f"{rows} th")[-1] == "over"
    assert page.page.get_by_role("button", name="Next").is_disabled()
    for _ in range(2):
        page.page.locator("#all-models thead button", has_text="State").click()
    assert page.names(f"{rows} th")[:2] == ["over", "at-least"]
    page.page.get_by_label("Find among all").fill("T-34")
    assert page.names(f"{rows} th") == [f"net-{n}" for n in range(340, 350)]
    assert page.names(f"{rows}:first-child td")[:2] == ["ok", "6,201"]
    page.page.get_by_label("Find among all").fill("at-")
    assert page.names(f"{rows} td")[3] == ">= 12,345"
    page.page.get_by_label("Find among all").fill("")
    page.page.get_by_label("only what failed").check()
    assert page.names(f"{rows} th") == ["over"]


def test_a_tree_folds_and_sorts(show: Any) -> None:
    """A row hides what it holds; sorting keeps rows below the one that holds them."""
    section = show(FEW).section("nested")
    name = ".layers tbody td:first-child bdi"
    assert section.locator(name).all_inner_texts() == ["one", "conv", "two", "wide", "thin", "head"]
    section.locator(".layers tbody tr", has_text="two (Stage)").locator("button").click()
    assert section.locator(name).all_inner_texts() == ["one", "conv", "two", "head"]
    section.get_by_role("button", name="Fold all", exact=True).click()
    assert section.locator(name).all_inner_texts() == ["one", "two", "head"]
    section.get_by_role("button", name="Unfold all").click()
    section.locator(".layers thead button", has_text="Params").click()
    assert section.locator(name).all_inner_texts() == ["head", "one", "conv", "two", "thin", "wide"]


def test_a_tree_shows_what_each_row_holds(show: Any) -> None:
    """Params and FLOPs with everything inside, the share of all, and why."""
    section = show(FEW).section("nested")
    cells = section.locator(".layers tbody tr").nth(2).locator("td").all_inner_texts()
    assert [cell.strip() for cell in cells[2:5]] == ["3,060", "98.7%", "6.120 kFLOPs"]
    assert section.locator(".layers tbody tr").nth(3).locator("td").nth(6).inner_text() == "weight 3000 = 3,000"


def test_a_tree_is_used_by_keys(show: Any) -> None:
    """One stop for the tab key; arrows move, fold and unfold; a screen reader is told level and state."""
    page = show(FEW)
    section = page.section("nested")
    assert section.locator(".layers tbody tr[tabindex='0']").count() == 1
    section.locator(".layers tbody tr").first.focus()

    def press(*keys: str) -> tuple[str, str | None, str | None]:
        for key in keys:
            page.page.keyboard.press(key)
        row = page.page.locator(":focus")
        return row.locator("bdi").inner_text(), row.get_attribute("aria-level"), row.get_attribute("aria-expanded")

    assert press("ArrowDown") == ("conv", "2", None)
    assert press("ArrowLeft") == ("one", "1", "true")
    assert press("ArrowLeft") == ("one", "1", "false")
    assert press("ArrowDown") == ("two", "1", "true")
    assert press("ArrowRight") == ("wide", "2", None)
    assert press("End") == ("head", "1", None)
    assert press("Home", "Enter") == ("one", "1", "true")


def test_a_treemap_leads_inwards_and_to_the_row(show: Any) -> None:
    """Areas are in proportion; a click on a part opens it, on a layer goes to its row; the trail leads back."""
    page = show(FEW)
    section = page.section("nested")
    tiles = section.locator(".map button")
    assert tiles.evaluate_all("all => all.map(one => one.getAttribute('aria-label'))") == [
        "two, 3,060 (98.7%) params, open",
        "one, 30 (1.0%) params, open",
        "head, 10 (0.3%) params",
    ]
    sizes = section.locator(".map li").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect()).map(box => box.width * box.height)"
    )
    assert sizes[0] / sum(sizes) == pytest.approx(3060 / 3100, abs=0.01)
    tiles.first.press("Enter")
    assert [label.splitlines()[0] for label in tiles.all_inner_texts() if label] == ["wide"]
    assert section.locator(".map-part").inner_text().split() == ["whole", "model", "two"]
    section.get_by_role("button", name="Fold all", exact=True).click()
    tiles.first.click()
    assert page.page.locator(":focus bdi").inner_text() == "wide"
    section.get_by_role("button", name="whole model").click()
    assert tiles.count() == 3


def test_what_changed_is_a_table(show: Any) -> None:
    """Before, after, params that moved and why, sortable."""
    section = show(FEW).section("gpt")
    rows = section.locator(".changes tbody tr")
    assert rows.first.locator("td, th").all_inner_texts()[:5] == ["total", "params", "3,536", "3,680", "+144"]
    section.locator(".changes thead button", has_text="Moved").click()
    moved = [cell for cell in section.locator(".changes td.number").all_inner_texts() if cell]
    numbers = [int(cell.replace(",", "")) for cell in moved]
    assert numbers == sorted(numbers)


def test_what_is_about_no_single_model_is_told(show: Any) -> None:
    """The base, and what a reviewer should see."""
    gone = RunSummary("HEAD^1 4f1c2d9", findings=(Finding("snapshot deleted", "", "__model_budget__/old.yaml"),))
    page = show(FEW, setting=ReportSetting(overall=gone))
    assert page.names("main > ul li") == ["base: HEAD^1 4f1c2d9", "warn: snapshot deleted: __model_budget__/old.yaml"]


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const blend = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((part) => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || ["SCRIPT", "OPTION"].includes(element.tagName)) continue;
    const layers = [];
    for (let above = element; above; above = above.parentElement) layers.unshift(getComputedStyle(above).backgroundColor);
    const [back, text] = [light(blend(layers)), light(blend([...layers, getComputedStyle(element).color]))];
    const ratio = (Math.max(back, text) + 0.05) / (Math.min(back, text) + 0.05);
    found.push([ratio, element.textContent.trim().slice(0, 30)]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}"""
"""Contrast of each text with what is behind it, as WCAG counts it."""


@pytest.mark.parametrize(("theme", "system"), [("light", "light"), ("dark", "light")], ids=["as the system", "chosen"])
def test_both_themes_can_be_read(show: Any, theme: str, system: str, tmp_path: Path) -> None:
    """Every text has the contrast that is asked for (4.5:1); a screenshot is kept with the test's files."""
    page = show(FEW, theme=system)
    if theme != system:
        page.page.get_by_label("Theme").select_option(theme)
    page.section("gpt")
    page.section("nested")
    picture = page.page.screenshot(path=tmp_path / f"{theme}.png", full_page=True)
    assert len(picture) > 20_000
    background = page.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(16, 21, 27)"}[theme]
    contrasts = page.page.evaluate(CONTRAST)
    assert len(contrasts) > 100
    assert contrasts[0][0] >= 4.5, contrasts[:5]


def test_a_printed_page_has_the_failures_and_no_tools(show: Any) -> None:
    """On paper it is light and no wider than a page of A4; what was opened is printed whole."""
    page = show(FEW, theme="dark")
    page.section("gpt")
    page.page.emulate_media(media="print")
    page.page.set_viewport_size({"width": 720, "height": 1000})
    assert page.page.evaluate("() => document.documentElement.scrollWidth") <= 720
    assert page.page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.page.locator("#find").is_visible()
    assert page.page.locator("pre", has_text="KeyError").is_visible()
    assert page.page.locator(".scroll.high").first.evaluate("one => getComputedStyle(one).overflowY") == "visible"


@pytest.mark.parametrize("word", ["html", "closing tag", "right to left", "newline", "very long", "template", "quotes"])
def test_hostile_names_are_text(show: Any, word: str) -> None:
    """Nothing runs and nothing is added; the page does not grow wider than the screen."""
    page = show(hostile.results(hostile.NAMES[word]))
    section = page.section("net")
    assert page.page.locator("img, section script:not(.data)").count() == 0
    for width in (1280, 390):
        page.page.set_viewport_size({"width": width, "height": 900})
        assert page.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    assert section.locator(".layers bdi").first.inner_text() == harmless(hostile.NAMES[word])


def deep(rows: int) -> Summary:
    """A model of that many rows in blocks of ten."""
    layers: list[Layer] = []
    for block in range(rows // 10):
        layers.append(Layer(f"b.{block}", "Block", container=True))
        layers += [leaf(f"b.{block}.l{index}", 100 + index) for index in range(9)]
    return Summary("deep", "torch", tuple(layers))


def test_a_model_of_two_thousand_rows_unfolds(show: Any) -> None:
    """Every row is there (`tests/benchmarks/many_rows.py` measures it)."""
    page = show([checked("deep", deep(2_000), {})])
    page.page.locator("table.layers").wait_for()
    page.page.get_by_role("button", name="Unfold all").click()
    assert page.page.locator(".layers tbody tr").count() == 2_000


@pytest.mark.slow
def test_a_page_of_1300_models_is_small(show: Any) -> None:
    """Rows are packed, and unpacked one model at a time."""
    summary = deep(340)
    results = [checked(f"zoo/model-{index:04}", replace(summary, model=f"m{index}"), {}) for index in range(1_300)]
    page = show(results)
    assert len(page.page.content()) < 12_000_000
    page.section("zoo/model-0700")
    page.page.locator("#models thead button", has_text="Params").click()
    page.page.get_by_label("Find").fill("model-12")
    assert page.page.get_by_role("status").inner_text() == "100 of 1300 shown"
