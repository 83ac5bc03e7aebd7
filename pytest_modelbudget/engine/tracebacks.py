"""The user's own part of a traceback, as text."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.system.frames import is_ours, is_pythons
from pytest_modelbudget.system.intact import intact

_MAX_FRAMES = 12
_MAX_LINE = 500


@intact()
def user_traceback(error: BaseException) -> str:
    """`file:line: in function`, the line of code, and the error, without frames of this package and of Python's own.

    Frames above the user's code are cut, and so is the inside of a deep library call. Of an error that came twice, as a
    model is built or run once more where that failed, the last one is shown.
    """
    blocks = ["\n".join(_lines(raised)) for raised in _chain(error) if raised is error or not _says_again(raised)]
    return "\n\nThe error above led to this one:\n\n".join(reversed(dict.fromkeys(reversed(blocks))))


def _chain(error: BaseException) -> list[BaseException]:
    """The errors that led to `error`, the first one first, and `error`."""
    chain: list[BaseException] = []
    above: BaseException | None = error
    while above is not None and all(above is not other for other in chain):
        chain.append(above)
        above = above.__cause__ or (None if above.__suppress_context__ else above.__context__)
    return chain[::-1]


def _says_again(error: BaseException) -> bool:
    """Whether it is an error of this project, whose cause stands beside it."""
    return isinstance(error, ModelBudgetError) and error.__cause__ is not None


def _lines(error: BaseException) -> list[str]:
    """The frames, the notes and the message of one error."""
    everything = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in everything if not (is_ours(frame) or is_pythons(frame))]
    shown = [*map(_frame, frames)]
    if len(frames) > _MAX_FRAMES:
        half = _MAX_FRAMES // 2
        shown[half:-half] = [f"    ... {len(frames) - 2 * half} more frames"]
    # Above the message, whose last line is the one that stands for the error in short.
    notes = (line for note in _notes(error) for line in as_text(note).splitlines())
    message = (f"E   {line[:_MAX_LINE]}" for line in _message(error).splitlines())
    return [*shown, *(f"note: {line[:_MAX_LINE]}" for line in notes), *message]


def _frame(frame: traceback.FrameSummary) -> str:
    shown = from_here(Path(frame.filename))
    code = f"\n    {frame.line}" if frame.line else ""
    return f"{shown}:{frame.lineno}: in {frame.name}{code}"


def from_here(path: Path) -> Path:
    """`path` as seen from the working directory, if it is below it."""
    with suppress(OSError):  # the working directory may be gone
        here = Path.cwd()
        return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path
    return path


def _notes(error: BaseException) -> tuple[object, ...]:
    """Its notes; user code may have made them anything."""
    notes = vars(error).get("__notes__", ())
    return tuple(notes) if isinstance(notes, (list, tuple)) else (notes,)


def _message(error: BaseException) -> str:
    text = as_text(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def in_short(error: BaseException) -> str:
    """An error on one line, whatever it is: `ValueError: too deep`."""
    return " ".join(_message(error).split())[:_MAX_LINE]


def as_text(value: object, how: Callable[[object], str] = str) -> str:
    """`how(value)`, also of what cannot be shown: it is user code that says how."""
    try:
        return how(value)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return "(the error cannot be shown as text)"
