"""A line that says what is being tried, where a person looks on; a line for each thing where nobody does."""

from __future__ import annotations

import io
import shutil
from types import TracebackType
from typing import TextIO

from pytest_modelbudget.system.escape import harmless
from pytest_modelbudget.system.live import OneLine, copy_of, moves_cursor


class SurveyProgress:
    """Writes to a stream as it is now, whatever is put in its place while code of others runs."""

    def __init__(self, stream: TextIO) -> None:
        self._line = OneLine(stream) if moves_cursor(stream) else None
        try:
            self._log = copy_of(stream)
        except (OSError, ValueError, AttributeError):  # no file behind it
            self._log = io.StringIO()

    def __enter__(self) -> SurveyProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._line is not None:
            self._line.clear()
            self._line.close()
        self._log.close()

    def show(self, text: str) -> None:
        """Say what is done now."""
        if self._line is not None:
            self._line.show(harmless(text, longest=max(20, shutil.get_terminal_size().columns - 1)))
        else:
            self._log.write(f"{harmless(text)}\n")
            self._log.flush()
