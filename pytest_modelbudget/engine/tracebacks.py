"""The user's own part of a traceback, as text."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import suppress
from itertools import groupby
from pathlib import Path

from pytest_modelbudget.engine.naming import FRAMEWORK_MODULES
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.system.frames import (
    frame_location,
    is_installed_frame,
    is_own_frame,
    is_python_frame,
    package_of,
    user_frame,
)
from pytest_modelbudget.system.intact import originals_restored

_MAX_FRAMES = 12
_MAX_LINE = 500


@originals_restored()
def user_traceback(error: BaseException) -> str:
    """`file:line: in function`, the line of code, and the error, without frames of this package and of Python's own.

    Of a call into an installed package its last frame is shown, of a framework none, and how many others there are. Of
    an error that came twice, as a model is built or run once more where that failed, the last one is shown.
    """
    blocks = [
        "\n".join(_error_lines(raised))
        for raised in _error_chain(error)
        if raised is error or not _repeats_cause(raised)
    ]
    return "\n\nThe error above led to this one:\n\n".join(reversed(dict.fromkeys(reversed(blocks))))


def with_cause(mistake: ModelBudgetError) -> str:
    """A mistake of this project with the user's part of what led to it, each sentence once."""
    if mistake.__cause__ is None:
        return str(mistake)
    trace = user_traceback(mistake.__cause__)
    told = {line.removeprefix("E").strip() for line in trace.splitlines() if line.startswith("E ")}
    own = [line for line in str(mistake).splitlines() if line.strip()[:_MAX_LINE] not in told]
    return "\n".join([*own, trace])


def _error_chain(error: BaseException) -> list[BaseException]:
    """The errors that led to `error`, the first one first, and `error`."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and all(current is not earlier for earlier in chain):
        chain.append(current)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return chain[::-1]


def _repeats_cause(error: BaseException) -> bool:
    """Whether it is an error of this project, whose cause stands beside it."""
    return isinstance(error, ModelBudgetError) and error.__cause__ is not None


def _error_lines(error: BaseException) -> list[str]:
    """The frames, the notes and the message of one error."""
    all_frames = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in all_frames if not (is_own_frame(frame) or is_python_frame(frame))]
    calls = [_call_text(package, list(group)) for package, group in groupby(frames, _package)]
    shown_frames = [text for texts in calls for text in texts]
    if len(shown_frames) > _MAX_FRAMES:
        half = _MAX_FRAMES // 2
        shown_frames[half:-half] = [f"    ... {len(shown_frames) - 2 * half} more frames"]
    # Above the message, whose last line is the one that stands for the error in short.
    notes = (line for note in _notes(error) for line in safe_text(note).splitlines())
    message = (f"E   {line[:_MAX_LINE]}" for line in _message(error).splitlines())
    return [*shown_frames, *(f"note: {line[:_MAX_LINE]}" for line in notes), *message]


def _package(frame: traceback.FrameSummary) -> str | None:
    return package_of(frame.filename)


def _call_text(package: str | None, frames: list[traceback.FrameSummary]) -> list[str]:
    """Frames of the user's own one by one; those of one call into a package as few."""
    if package is None:
        return [*map(_frame, frames)]
    shown = [] if package in FRAMEWORK_MODULES else frames[-1:]
    left_out = len(frames) - len(shown)
    count = [f"    ... {left_out} frame{'' if left_out == 1 else 's'} of {package}"] if left_out else []
    return [*count, *map(_frame, shown)]


def _frame(frame: traceback.FrameSummary) -> str:
    code = f"\n    {frame.line}" if frame.line else ""
    place = (
        frame_location(frame)
        if is_installed_frame(frame)
        else f"{relative_to_cwd(Path(frame.filename))}:{frame.lineno}"
    )
    return f"{place}: in {frame.name}{code}"


def relative_to_cwd(path: Path) -> Path:
    """`path` as seen from the working directory, if it is below it."""
    with suppress(OSError):  # the working directory may be gone
        cwd = Path.cwd()
        return path.relative_to(cwd) if path.is_absolute() and path.is_relative_to(cwd) else path
    return path


def _notes(error: BaseException) -> tuple[object, ...]:
    """Its notes; user code may have made them anything."""
    notes = vars(error).get("__notes__", ())
    return tuple(notes) if isinstance(notes, (list, tuple)) else (notes,)


def _message(error: BaseException) -> str:
    text = safe_text(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def one_line(error: BaseException) -> str:
    """An error on one line, whatever it is: `ValueError: too deep`."""
    return " ".join(_message(error).split())[:_MAX_LINE]


def safe_text(value: object, convert: Callable[[object], str] = str) -> str:
    """`convert(value)`, also of what cannot be shown: it is user code that converts."""
    try:
        return convert(value)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return "(the error cannot be shown as text)"


def reason_line(error: BaseException) -> str:
    """Why something could not be had, on one line, with the user's own line of code where there is one."""
    if isinstance(error, ModelBudgetError):
        return " ".join(str(error).split())
    message = _message(error).split("\n")[0]
    line = user_frame(error)
    return message if line is None else f"{message} ({frame_location(line)}: in {line.name})"
