"""What pytest's terminal says of a long run and while a model takes long.

A line below its progress, which is gone afterwards; in a log now and then a line that stays.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

import pytest
from _pytest.terminal import TerminalReporter

from pytest_modelbudget.summary.show.table import WIDTH
from pytest_modelbudget.system.escape import harmless
from pytest_modelbudget.system.live import live_line, moves_cursor
from pytest_modelbudget.system.pace import Pace

_LINE: pytest.StashKey[LineBelow] = pytest.StashKey()
_WIDTH: pytest.StashKey[int] = pytest.StashKey()
_PACE: pytest.StashKey[RunPace] = pytest.StashKey()


class RunPace:
    """The pace of a run, and how many of its items came to their end."""

    def __init__(self, items: int, clock: Callable[[], float]) -> None:
        self.pace = Pace(items, clock)
        self._done = 0

    def advance(self) -> None:
        """An item is done."""
        self._done += 1

    def is_long(self) -> bool:
        """Whether it goes on for long, and is not at its end."""
        return self._done < self.pace.total and self.pace.is_long()

    def text(self) -> str:
        """That of the item which is next; see `Pace.text`."""
        return self.pace.text(min(self._done + 1, self.pace.total))


class ProgressLine:
    """Gets hold of the terminal before pytest puts files in the place of standard output, as it does for each item."""

    def __init__(self, config: pytest.Config, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._log: TerminalReporter | None = None

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Where a person looks on, and no other plugin reports in a way of its own."""
        config = session.config
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            config.stash[_WIDTH] = max(40, reporter._tw.fullwidth)
        if type(reporter) is not TerminalReporter:
            return
        if not moves_cursor(reporter):
            self._log = reporter
        elif config.getoption("capture") != "no":
            with suppress(OSError, ValueError, AttributeError):  # what has no file behind it
                config.stash[_LINE] = LineBelow(reporter, os.dup(reporter._tw._file.fileno()), terminal_width(config))
                config.add_cleanup(config.stash[_LINE].close)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """The items are run here, but for the controller of xdist's workers."""
        if session.items:
            self._config.stash[_PACE] = RunPace(len(session.items), self._clock)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """Each worker collected all items; together they run each once."""
        if _PACE not in self._config.stash:
            self._config.stash[_PACE] = RunPace(len(ids), self._clock)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """An item is done; a log is told of it now and then."""
        run = self._config.stash.get(_PACE, None)
        if run is None or report.when != "teardown":
            return
        run.advance()
        if self._log is not None and run.pace.is_due():
            self._log.ensure_newline()
            self._log.write_line(f"model-budget: {run.text().removesuffix(' ·')}")


def terminal_width(config: pytest.Config) -> int:
    """Columns of the terminal, also while standard output is a file; `WIDTH` without one."""
    return config.stash.get(_WIDTH, WIDTH)


def while_waiting(config: pytest.Config, text: str) -> AbstractContextManager[None]:
    """Says `text` and the seconds so far, when it takes some, in a long run also how far that is; nothing in a log."""
    line, run = config.stash.get(_LINE, None), config.stash.get(_PACE, None)
    if line is None:
        return nullcontext()
    if run is None or not run.is_long():
        return live_line(line, text)
    return live_line(line, f"{run.text()} {text}", patience=0)


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
