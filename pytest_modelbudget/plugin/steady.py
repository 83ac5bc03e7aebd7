"""A run goes on to its end when nobody reads what it prints, and whatever the code of models and tests left behind."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import suppress
from typing import TextIO, cast

import pytest

from pytest_modelbudget.system.intact import originals_restored
from pytest_modelbudget.system.streams import UnfailingStream

_SPARE = 32
"""Files that can be opened at the end of a run in which a model's code opened all that it could."""


class SteadyRun:
    """What the terminal cannot take any more is dropped; verdicts, reports and exit code are as ever."""

    def __init__(self) -> None:
        self._spare: list[int] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Before pytest prints its first line."""
        with suppress(OSError):
            self._spare += (os.open(os.devnull, os.O_RDONLY) for _ in range(_SPARE))
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            lasting = UnfailingStream(reporter._tw._file)
            reporter._tw._file = cast(TextIO, lasting)
            session.config.add_cleanup(lasting.flush)  # here, not when Python ends with an exit code of its own

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Generator[None]:
        """Reports, the hook, trackers and the last lines find Python as it was, and can open files."""
        for handle in self._spare:
            with suppress(OSError):
                os.close(handle)
        with originals_restored():
            return (yield)
