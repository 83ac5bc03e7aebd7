"""A line that says what is being done while a person waits for it, and is gone when it is done."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

PATIENCE = 3.0
"""Seconds that a person waits without being told for what."""


class Screen(Protocol):
    """Where the line is shown."""

    def show(self, text: str) -> None:
        """Put `text` in the place of the line."""
        ...

    def clear(self) -> None:
        """Take the line away, and leave all others as they were."""
        ...


@contextmanager
def live_line(screen: Screen, text: str, *, patience: float = PATIENCE) -> Iterator[None]:
    """Show `text` and the seconds so far, once what runs takes longer than `patience`.

    A thread does it: not for code that may copy its process.
    """
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(screen, text, patience, done.wait), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _watch(screen: Screen, text: str, patience: float, wait: Callable[[float], bool]) -> None:
    seconds = patience
    if wait(patience):
        return
    try:
        while True:
            screen.show(f"{text}, {seconds:.0f} s" if seconds >= 1 else text)
            if wait(1):
                return
            seconds += 1
    finally:
        screen.clear()


def copy_of(stream: TextIO) -> TextIO:
    """What leads where `stream` leads now, whatever is put in its place.

    Raises:
        OSError, ValueError, AttributeError: there is no file behind it.
    """
    return open(os.dup(stream.fileno()), "w", encoding="utf-8", errors="backslashreplace")


class OneLine:
    """The line that the cursor is in, on a terminal that nothing else is written to; it stays what it was at first."""

    def __init__(self, stream: TextIO) -> None:
        self._file = copy_of(stream)

    def show(self, text: str) -> None:
        """Write over the line."""
        self._file.write(f"\r\x1b[K{text}")
        self._file.flush()

    def clear(self) -> None:
        """Leave it empty."""
        self.show("")

    def close(self) -> None:
        """Write no more."""
        self._file.close()


def moves_cursor(stream: object) -> bool:
    """Whether what is written there can be taken back: a terminal, and none that only knows lines."""
    isatty = getattr(stream, "isatty", False)
    plain = os.environ.get("TERM") == "dumb" or (sys.platform == "win32" and "WT_SESSION" not in os.environ)
    return bool(isatty() if callable(isatty) else isatty) and not plain
