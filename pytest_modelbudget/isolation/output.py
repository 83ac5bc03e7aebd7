"""What the code of a model prints in its worker, and warns of: collected there, repeated in the process that asked."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_modelbudget.engine.run import in_ci
from pytest_modelbudget.engine.tracebacks import relative_to_cwd
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.system import debug
from pytest_modelbudget.system.escape import without_commands

_MOST_SHOWN = 1 << 20

_STACKS = re.compile(
    r"^(?:Fatal Python error: .*\n\n?)?"
    r"(?:(?:(?:Current thread|Thread) 0x[0-9a-f]+(?: \[.*\])?|Current thread's C stack trace)"
    r" \(most recent call first\):\n(?:  .*\n)*\n?)+"
    r"(?:Extension modules: .*\n?)?",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Printed:
    """What was printed during one job, by stream, and the lines that `MODELBUDGET_DEBUG` asked for."""

    stdout: str = ""
    stderr: str = ""
    debug: str = ""


def print_here(printed: Printed) -> None:
    """Print it here, so that it is captured and shown as if the model were built in this process."""
    for text, stream in ((printed.stdout, sys.stdout), (printed.stderr, sys.stderr)):
        text = _without_stacks(text)
        text = without_commands(text) if in_ci() else text
        if text and stream is not None:
            with suppress(OSError, ValueError):
                stream.write(text.encode(stream.encoding or "utf-8", "replace").decode(stream.encoding or "utf-8"))
    debug.write(printed.debug)


def _without_stacks(printed: str) -> str:
    """What a worker printed, without the stacks that Python writes when it crashes or is asked for them.

    A report has the user's frames of the last one (`ending`).
    """
    return _STACKS.sub("", printed)


class OutputFile:
    """A file that a worker writes its output to."""

    def __init__(self, path: Path, most: int = _MOST_SHOWN) -> None:
        self.path = path
        self._most = most
        self._offset = 0
        path.touch()

    def size(self) -> int:
        """Bytes written so far."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def fresh(self) -> str:
        """What was written since it was last asked, its middle left out when that is very much."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                content = file.read(self._most)
                end = file.seek(0, os.SEEK_END)
        except OSError:
            return ""
        left_out = end - self._offset - len(content)
        self._offset = end
        text = content.decode("utf-8", "replace")
        return f"{text}\n... {left_out:,} bytes left out ...\n" if left_out else text

    def tail(self) -> str:
        """The end of what was written since it was last asked."""
        with suppress(OSError), self.path.open("rb") as file:
            file.seek(max(self._offset, file.seek(0, os.SEEK_END) - 20_000))
            return file.read().decode("utf-8", "replace")
        return ""


def repeat_warnings(recorded: Iterable[tuple[str, str, str, int]]) -> None:
    """Warn here of what was warned of there, so that the filters of this process hold, and pytest's summary has it.

    Raises:
        ModelBudgetError: a filter makes an error of it, which says where it was warned.
    """
    for category, message, file, line in recorded:
        kind = getattr(__import__("builtins"), category, None)
        is_warning = isinstance(kind, type) and issubclass(kind, Warning)
        text = message if is_warning else f"{category}: {message}"
        try:
            warnings.warn_explicit(text, kind if is_warning else UserWarning, file, line)  # type: ignore[arg-type]
        except Warning as error:
            location = f"{relative_to_cwd(Path(file))}:{line}"
            raise ModelBudgetError(
                f"{location}: {type(error).__name__}: {error} (the run takes it for an error)"
            ) from None
