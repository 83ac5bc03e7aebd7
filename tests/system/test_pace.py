"""How fast a long run goes."""

from __future__ import annotations

import pytest

from pytest_modelbudget.system.pace import Pace, time_left


def paced(total: int, *steps: tuple[float, int]) -> str:
    """The last text of a run in which, by a clock, things of these numbers began."""
    now = [0.0]
    pace = Pace(total, lambda: now[0])
    for seconds, number in steps:
        now[0] = seconds
        shown = pace.text(number)
    return shown


@pytest.mark.parametrize(
    ("total", "steps", "shown"),
    [
        pytest.param(30, [(0, 1), (3, 3)], "[3/30]", id="a short run"),
        pytest.param(100_000, [(0, 1), (30, 1_231)], "[1,231/100,000] 41/s, about 40 min left ·", id="a long one"),
        pytest.param(500, [(0, 1), (60, 61)], "[61/500] 1.0/s, about 7 min left ·", id="one each second"),
        pytest.param(9, [(0, 1), (60, 2)], "[2/9] 1.0/min, about 8 min left ·", id="one each minute"),
        pytest.param(9, [(0, 1), (60, 1)], "[1/9]", id="nothing is done yet"),
        pytest.param(
            2_000, [(0, 1), (100, 2), (101, 12), (130, 302), (162, 622)], "[622/2,000] 10/s, about 2 min left ·",
            id="the rate is that of the last minute",
        ),
    ],
)  # fmt: skip
def test_a_long_run_says_how_fast_it_goes(total: int, steps: list[tuple[float, int]], shown: str) -> None:
    """How far it is, its rate, and how long it will go on."""
    assert paced(total, *steps) == shown


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        pytest.param(20, "less than a minute left", id="seconds"),
        pytest.param(2_400, "about 40 min left", id="minutes"),
        pytest.param(7_200, "about 2 h left", id="full hours"),
        pytest.param(7_800, "about 2 h 10 min left", id="hours"),
        pytest.param(40_000, "about 11 h left", id="many hours"),
    ],
)
def test_the_time_left_is_in_words(seconds: float, words: str) -> None:
    """With no more digits than anybody can know."""
    assert time_left(seconds) == words


def test_a_log_gets_a_line_now_and_then() -> None:
    """Not before half a minute, and not again before another."""
    now = [0.0]
    pace = Pace(10, lambda: now[0])
    due = []
    for now[0] in (0, 29, 31, 32, 60, 62):
        due.append(pace.is_due())
    assert due == [False, False, True, False, False, True]
