"""The graph of a model in the HTML page, in a real browser: what it folds, what it colours, how keys move in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import training
from tests.pages import DECODER_NOW, FEW, Opened, checked, decoder


def drawn(show: Any) -> Opened:
    """A decoder with a widened block, a norm that came and a dropout that went."""
    page = show([checked("net", DECODER_NOW, {}, before=decoder(dropout=True))])
    page.page.locator(".node").first.wait_for()
    return page


def names(page: Opened) -> list[str]:
    """The nodes with their marks, in the order of the model."""
    return [" ".join(text.split()) for text in page.page.locator(".node .first").all_inner_texts()]


def shapes(page: Opened, state: str) -> list[str]:
    """What stands on the lines of one state."""
    return page.page.locator(f".line.{state} text").all_text_contents()


def test_equal_blocks_are_one_node_and_what_changed_is_open(show: Any) -> None:
    """The first block stands alone as it follows from what went; the widened one shows what is in it."""
    page = drawn(show)
    assert names(page) == [
        "tokens", "drop removed", "h.0", "h.1\u20132 \u00d72", "h.3 2 changed", "up changed", "down changed",
        "h.4\u20135 \u00d72", "norm added", "head",
    ]  # fmt: skip
    assert shapes(page, "added") == ["[B, T, 8]", "[B, T, 8]"]
    assert shapes(page, "removed") == ["[B, T, 8]"] * 3
    assert page.page.locator(".line text.moved").all_text_contents() == ["[B, T, 64]"]


def test_the_row_is_beside_the_drawing(show: Any) -> None:
    """At first the first that changed; any other once it is chosen, as it was and as it is."""
    page = drawn(show)
    assert page.page.locator(".facts h4").inner_text() == "drop removed"
    page.page.locator(".node", has_text="up").first.click()
    assert page.page.locator(".facts del").all_inner_texts() == ["[B, T, 32]", "256"]
    assert page.page.locator(".facts ins").all_inner_texts() == ["[B, T, 64]", "512"]
    assert "8*32 = 256 -> 8*64 = 512" in page.page.locator(".facts li").inner_text()
    page.page.get_by_role("button", name="Show in the table").click()
    assert page.page.locator("table.layers :focus bdi").inner_text() == "up"


def test_keys_move_and_open(show: Any) -> None:
    """One stop for the tab key; Enter opens equal blocks as one of them, a button shows each; zoom leads in and back."""
    page = drawn(show)
    assert page.page.locator(".node[tabindex='0']").count() == 1
    page.page.locator(".node", has_text="h.1").focus()
    page.page.keyboard.press("ArrowUp")
    assert page.page.locator(":focus .first").inner_text().split() == ["h.0"]
    page.page.keyboard.press("ArrowDown")
    page.page.keyboard.press("Enter")
    assert page.page.locator(":focus").get_attribute("aria-expanded") == "true"
    assert names(page)[3:6] == ["h.1\u20132 \u00d72", "up", "down"]
    page.page.get_by_role("button", name="Show all 2").click()
    assert names(page)[3:6] == ["h.1\u20132 \u00d72", "h.1", "h.2"]
    page.page.locator(".node", has_text="h.3").click()
    page.page.get_by_role("button", name="Zoom in").click()
    assert names(page) == ["up changed", "down changed"]
    assert page.names(".end") == ["from h.2", "to h.4"]
    page.page.locator(".graph .crumbs button").click()
    assert "tokens" in names(page)


def test_what_is_not_known_has_no_lines(show: Any) -> None:
    """The nodes stand in their order, and a sentence says why nothing leads to them."""
    page = show([checked("net", decoder(calls=None), {})])
    page.page.locator(".node").first.wait_for()
    assert page.page.locator(".line").count() == 0
    assert "What feeds 14 rows is not known" in page.page.locator(".graph").inner_text()


@pytest.mark.parametrize(
    ("theme", "width"), [("light", 390), ("dark", 1280)], ids=["light and narrow", "dark and wide"]
)
def test_axe_finds_nothing(show: Any, theme: str, width: int) -> None:
    """All its rules, with everything open; and nothing makes the page wider than a telephone."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    now = replace(DECODER_NOW, plans=(training(),))
    page = show([checked("net", now, {"params": 10}, before=decoder(dropout=True)), FEW[-1]], theme=theme)
    page.page.set_viewport_size({"width": width, "height": 900})
    page.page.evaluate("() => document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    page.page.locator("table.layers").wait_for()
    assert page.page.evaluate("() => document.documentElement.scrollWidth") <= width
    violations = axe.run(page.page).response["violations"]
    assert [(rule["id"], rule["nodes"][0]["html"]) for rule in violations] == []
