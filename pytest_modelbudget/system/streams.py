"""Standard output and error that outlast whoever reads them: what nobody takes is dropped, and work goes on."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class UnfailingStream:
    """A text stream that never fails for want of a reader, or of room where it is kept."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._gone = False

    def write(self, text: str) -> int:
        """Write, with escapes for characters that the encoding lacks, or drop what cannot be written."""
        if self._gone:
            return len(text)
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                coding = self._stream.encoding
                self._stream.write(text.encode(coding, "backslashreplace").decode(coding))
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Write what is held back, or drop it."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Let everything go to nowhere, also what is held back, which Python would try once more when it ends."""
        first, self._gone = not self._gone, True
        with suppress(OSError, ValueError):
            number = self._stream.fileno()
            if first and isinstance(error, OSError) and error.errno not in (errno.EPIPE, errno.EBADF) and number != 2:
                os.write(2, f"output is lost: {error.strerror}\n".encode())
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_missing_streams() -> None:
    """Give a process that was started without standard streams some that lead nowhere.

    Else the first files that it opens take their numbers, and what is printed ends up in them.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # as long as the process


@contextmanager
def lasting() -> Iterator[None]:
    """Inside, what is printed is never an error."""
    open_missing_streams()
    originals = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, UnfailingStream(stream)) for stream in originals)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = originals
