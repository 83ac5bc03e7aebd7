"""The user's own part of a traceback, as text."""

from __future__ import annotations

import traceback
from pathlib import Path

from pytest_modelbudget.frames import is_ours, is_pythons

_MAX_FRAMES = 12
_MAX_LINE = 500


def user_traceback(error: BaseException) -> str:
    """`file:line: in function`, the line of code, and the error, without frames of this package and of Python's own.

    Frames above the user's code are cut, and so is the inside of a deep library call.
    """
    return "\n".join(_chain(error, set()))


def _chain(error: BaseException, seen: set[int]) -> list[str]:
    seen.add(id(error))
    above = _above(error)
    while above and id(above) not in seen and _message(error) in _message(above):  # the same, of an earlier try
        seen.add(id(above))
        above = _above(above)
    lines = (
        [*_chain(above, seen), "", "The error above led to this one:", ""] if above and id(above) not in seen else []
    )
    found = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in found if not (is_ours(frame) or is_pythons(frame))]
    if len(frames) > _MAX_FRAMES:
        half = _MAX_FRAMES // 2
        lines += [
            *map(_frame, frames[:half]),
            f"    ... {len(frames) - 2 * half} more frames",
            *map(_frame, frames[-half:]),
        ]
    else:
        lines += map(_frame, frames)
    # Above the message, whose last line is the one that stands for the error in short.
    lines += [
        f"note: {line[:_MAX_LINE]}" for note in getattr(error, "__notes__", ()) for line in str(note).splitlines()
    ]
    return [*lines, *(f"E   {line[:_MAX_LINE]}" for line in _message(error).splitlines())]


def _above(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _frame(frame: traceback.FrameSummary) -> str:
    path = Path(frame.filename)
    shown = path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path
    code = f"\n    {frame.line}" if frame.line else ""
    return f"{shown}:{frame.lineno}: in {frame.name}{code}"


def _message(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = "(the error cannot be shown as text)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
