"""A line that says what is being done: shown once a person has waited, taken away when it is done."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget.plugin.progress import LineBelow
from pytest_modelbudget.system.live import live_line, moves_cursor


class Screen:
    """What was shown, in order; empty for cleared."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.shown = threading.Event()

    def show(self, text: str) -> None:
        """Note it."""
        self.texts.append(text)
        self.shown.set()

    def clear(self) -> None:
        """Note that."""
        self.texts.append("")


def test_what_is_quick_shows_nothing() -> None:
    """Nor does it leave anything."""
    screen = Screen()
    with live_line(screen, "net", patience=60):
        pass
    assert screen.texts == []


def test_what_takes_long_is_shown_and_taken_away() -> None:
    """Also when it fails."""
    screen = Screen()

    def fail() -> None:
        with live_line(screen, "net", patience=0):
            screen.shown.wait(60)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert screen.texts == ["net", ""]


class Stream:
    """A terminal or none."""

    def __init__(self, terminal: bool) -> None:
        self.isatty = lambda: terminal


@pytest.mark.parametrize(
    ("stream", "term", "expected"),
    [
        pytest.param(Stream(True), "xterm", True, id="a terminal"),
        pytest.param(Stream(True), "dumb", False, id="one that only knows lines"),
        pytest.param(Stream(False), "xterm", False, id="a log"),
        pytest.param(object(), "xterm", False, id="something else"),
    ],
)
def test_where_a_line_can_be_taken_back(
    stream: Any, term: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nowhere else is one shown."""
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("WT_SESSION", "1")
    assert moves_cursor(stream) is expected


class Reporter:
    """pytest's, which has written 18 characters into a line."""

    class _tw:
        width_of_current_line = 18


def test_the_line_stands_below_that_of_pytest(tmp_path: Path) -> None:
    """Cut to the width and without what acts; the cursor is back where pytest goes on."""
    with (tmp_path / "terminal").open("wb") as file:
        line = LineBelow(Reporter(), os.dup(file.fileno()), 20)  # type: ignore[arg-type]
        line.show("a-model\x1b[2J-with-a-long-name")
        line.clear()
        line.close()
    back = b"\x1b[A\r\x1b[18C"
    assert (tmp_path / "terminal").read_bytes() == b"\n\r\x1b[Ka-model\\x1b[2J-w..." + back + b"\n\r\x1b[K" + back
