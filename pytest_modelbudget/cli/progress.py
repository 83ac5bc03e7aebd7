"""What is being done: on a terminal where a person looks on, gone when it is done; in a log now and then."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

from pytest_modelbudget.system.escape import harmless
from pytest_modelbudget.system.live import OneLine, live_line, moves_cursor


@contextmanager
def progress(text: str, *, alone: bool = True, logged: bool = False) -> Iterator[None]:
    """Show `text`, and how long it takes where that is done `alone`, in another process, and may be watched.

    Where lines stay it is printed when it is to be `logged`.
    """
    if not moves_cursor(sys.stderr):
        if logged:
            print(f"modelbudget: {harmless(text)}", file=sys.stderr, flush=True)
        yield
        return
    shown = harmless(text, longest=max(20, shutil.get_terminal_size().columns - 10))
    with closing(OneLine(sys.stderr)) as line:
        if alone:
            with live_line(line, shown, patience=0):
                yield
            return
        line.show(shown)
        try:
            yield
        finally:
            line.clear()
