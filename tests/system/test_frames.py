"""Whose line an error points at."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_modelbudget import ModelBudgetError
from pytest_modelbudget.engine.tracebacks import user_traceback, with_cause
from pytest_modelbudget.system import frames

PACKAGES = Path("/opt/env/lib/python3.12/site-packages")
FRAMEWORK = PACKAGES / "framework"
USERS, LIBRARY = "/home/me/nets.py", str(PACKAGES / "zoo" / "models" / "net.py")
TORCH = str(PACKAGES / "torch" / "nn" / "linear.py")
INSIDE, OURS, STANDARD = str(FRAMEWORK / "nn.py"), frames.__file__, contextlib.__file__


def error_through(*files: str) -> Exception:
    """An error that was raised by code in the last of `files`, called from that in the one before, and so on."""

    def call(then: Callable[[], object], file: str) -> Callable[[], object]:
        names: dict[str, object] = {"then": then}
        exec(compile("def call():\n    return then()\n", file, "exec"), names)
        return names["call"]  # type: ignore[return-value]

    run: Callable[[], object] = lambda: 1 / 0  # noqa: E731
    for file in reversed(files):
        run = call(run, file)
    with pytest.raises(ZeroDivisionError) as caught:
        run()
    start = caught.tb.tb_next  # after this function
    last = start
    while last is not None and last.tb_next is not None and last.tb_next.tb_next is not None:
        last = last.tb_next
    assert last is not None
    last.tb_next = None  # the division, which is in this file
    return caught.value.with_traceback(start)


@pytest.mark.parametrize(
    ("files", "place"),
    [
        pytest.param((OURS, USERS, INSIDE), "nets.py:2", id="what called the framework"),
        pytest.param((OURS, USERS, STANDARD), "nets.py:2", id="not the standard library"),
        pytest.param((OURS, USERS, LIBRARY, INSIDE), "nets.py:2", id="before a package that it called"),
        pytest.param((OURS, LIBRARY, INSIDE, STANDARD), "zoo/models/net.py:2", id="a package, where nobody else is"),
        pytest.param((OURS, LIBRARY, USERS, LIBRARY), "nets.py:2", id="called back by a package"),
        pytest.param((OURS, INSIDE, "<string>"), None, id="the framework alone"),
    ],
)
def test_the_users_line(files: tuple[str, ...], place: str | None) -> None:
    """The innermost line of the user's own, else of a package other than the framework."""
    line = frames.user_frame(error_through(*files), FRAMEWORK)
    assert (None if line is None else frames.frame_location(line)) == place


def test_a_traceback_has_no_plumbing() -> None:
    """Lines of this project and of the standard library are left out, those of packages stay."""
    shown = user_traceback(error_through(OURS, STANDARD, USERS, STANDARD, LIBRARY))
    assert [line.rpartition("/")[2] for line in shown.splitlines() if ": in " in line] == [
        "nets.py:2: in call",
        "net.py:2: in call",
    ]


@pytest.mark.parametrize(
    ("files", "shown"),
    [
        pytest.param((USERS, TORCH, TORCH), ["/home/me/nets.py:2: in call", "... 2 frames of torch"], id="a framework"),
        pytest.param((TORCH, USERS), ["... 1 frame of torch", "/home/me/nets.py:2: in call"], id="called back by it"),
        pytest.param(
            (USERS, LIBRARY, LIBRARY, TORCH),
            [
                "/home/me/nets.py:2: in call",
                "... 1 frame of zoo",
                "zoo/models/net.py:2: in call",
                "... 1 frame of torch",
            ],
            id="the last frame of a package",
        ),
    ],
)
def test_a_traceback_counts_what_is_not_the_users(files: tuple[str, ...], shown: list[str]) -> None:
    """Frames of frameworks say nothing of a model, and of another package only where it was left."""
    *frames_shown, message = user_traceback(error_through(*files)).splitlines()
    assert [line.strip() for line in frames_shown] == shown
    assert message == "E   ZeroDivisionError: division by zero"


def test_a_mistake_with_its_cause_says_each_thing_once() -> None:
    """The cause's own words stand below its frames, and what was added to them above."""
    mistake = ModelBudgetError("the forward pass failed\n  ZeroDivisionError: division by zero\n  check `inputs:`")
    mistake.__cause__ = error_through(USERS)
    assert with_cause(mistake).splitlines() == [
        "the forward pass failed", "  check `inputs:`", "/home/me/nets.py:2: in call", "E   ZeroDivisionError: division by zero",
    ]  # fmt: skip


def test_a_traceback_shows_each_error_once() -> None:
    """What failed again in the same way is not repeated, nor what this project said of it."""

    first, second = (error_through(USERS, INSIDE) for _ in range(2))
    between = ModelBudgetError(f"the forward pass failed: {first}")
    between.__cause__, second.__context__ = first, between
    assert user_traceback(second) == user_traceback(first)


def test_a_folder_beside_this_packages_own_is_the_users() -> None:
    """Though its name begins as this one's does."""
    frame = traceback.FrameSummary(f"{frames.PACKAGE_FOLDER}_models/nets.py", 1, "build")
    assert not frames.is_own_frame(frame)
