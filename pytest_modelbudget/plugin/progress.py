"""What pytest's terminal says while a model takes long: a line below its progress, which is gone afterwards."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext, suppress

import pytest
from _pytest.terminal import TerminalReporter

from pytest_modelbudget.summary.show.table import WIDTH
from pytest_modelbudget.system.escape import harmless
from pytest_modelbudget.system.live import live_line, moves_cursor

_LINE: pytest.StashKey[LineBelow] = pytest.StashKey()
_WIDTH: pytest.StashKey[int] = pytest.StashKey()


class ProgressLine:
    """Gets hold of the terminal before pytest puts files in the place of standard output, as it does for each item."""

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Where a person looks on, and no other plugin reports in a way of its own."""
        config = session.config
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            config.stash[_WIDTH] = max(40, reporter._tw.fullwidth)
        if type(reporter) is not TerminalReporter or config.getoption("capture") == "no" or not moves_cursor(reporter):
            return
        with suppress(OSError, ValueError, AttributeError):  # what has no file behind it
            config.stash[_LINE] = LineBelow(reporter, os.dup(reporter._tw._file.fileno()), terminal_width(config))
            config.add_cleanup(config.stash[_LINE].close)


def terminal_width(config: pytest.Config) -> int:
    """Columns of the terminal, also while standard output is a file; `WIDTH` without one."""
    return config.stash.get(_WIDTH, WIDTH)


def while_waiting(config: pytest.Config, text: str) -> AbstractContextManager[None]:
    """Says `text` and the seconds so far, when it takes some; nothing in a log."""
    line = config.stash.get(_LINE, None)
    return nullcontext() if line is None else live_line(line, text)


class LineBelow:
    """The line below the one that pytest is writing, to which the cursor goes back each time."""

    def __init__(self, reporter: TerminalReporter, terminal: int, width: int) -> None:
        self._reporter = reporter
        self._terminal = terminal
        self._width = width

    def show(self, text: str) -> None:
        """Write over the line below."""
        column = self._reporter._tw.width_of_current_line
        shown = harmless(text, longest=self._width - 1) if text else ""
        back = f"\x1b[A\r\x1b[{column}C" if column else "\x1b[A\r"
        with suppress(OSError):  # nobody looks on any more
            os.write(self._terminal, f"\n\r\x1b[K{shown}{back}".encode())

    def clear(self) -> None:
        """Leave the line below empty, as it was."""
        self.show("")

    def close(self) -> None:
        """Let go of the terminal."""
        os.close(self._terminal)
