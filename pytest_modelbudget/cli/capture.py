"""What a user's code prints is kept apart from what the command says."""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pytest_modelbudget.system import debug

_MOST_BYTES = 20_000


@contextmanager
def captured_output() -> Iterator[Callable[[], str]]:
    """Inside, everything written to standard output and error goes to a file, from C code and child processes too.

    Yields a function that gives the end of what was written so far. What `MODELBUDGET_DEBUG` asks for is written to
    standard error on leaving.
    """
    lines = io.StringIO()
    with tempfile.TemporaryFile() as sink, debug.lines_to(lines):
        before = sys.stdout, sys.stderr
        for stream in before:
            stream.flush()
        saved = [os.dup(number) for number in (1, 2)]
        text = open(os.dup(sink.fileno()), "w", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
        try:
            for number in (1, 2):
                os.dup2(sink.fileno(), number)
            sys.stdout = sys.stderr = text

            def written() -> str:
                text.flush()
                sink.seek(max(0, sink.seek(0, os.SEEK_END) - _MOST_BYTES))
                return sink.read().decode("utf-8", "replace")  # read to the end, where writing goes on

            yield written
        finally:
            sys.stdout, sys.stderr = before
            for number, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, number)
                os.close(copy)
            text.close()
            before[1].write(lines.getvalue())
