"""A line that says what is being tried, where a person looks on; a line for each thing where nobody does."""

from __future__ import annotations

import os
import shutil
from types import TracebackType
from typing import TextIO

from pytest_modelbudget.system.escape import harmless


class SurveyProgress:
    """Writes to a stream as it is now, whatever is put in its place while code of others runs."""

    def __init__(self, stream: TextIO) -> None:
        self._is_terminal = stream.isatty()
        try:
            number = os.dup(stream.fileno())
            self._file: TextIO | None = os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace")
        except (OSError, ValueError, AttributeError):  # no file behind it
            self._file = None

    def __enter__(self) -> SurveyProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            if self._is_terminal:
                self._write("\r\x1b[K")
            self._file.close()

    def show(self, text: str) -> None:
        """Say what is done now."""
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            self._write(f"\r\x1b[K{harmless(text, longest=max(20, width))}")
        else:
            self._write(f"{harmless(text)}\n")

    def _write(self, text: str) -> None:
        if self._file is not None:
            self._file.write(text)
            self._file.flush()
