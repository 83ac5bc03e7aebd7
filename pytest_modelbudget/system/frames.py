"""Whose code a line of a traceback is: the user's, that of an installed package, Python's own, or this project's."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

OURS = str(Path(__file__).parents[1])
"""The folder of this project."""

_PYTHON = tuple(str(Path(sysconfig.get_path(name))) for name in ("stdlib", "platstdlib"))
_NONE = Path("/no/framework")
_INSTALLED = ("site-packages", "dist-packages")


def is_ours(frame: traceback.FrameSummary) -> bool:
    """Whether it is a line of this project."""
    return frame.filename.startswith(OURS)


def is_pythons(frame: traceback.FrameSummary) -> bool:
    """Whether it is a line of the standard library, or of code that has no file."""
    return frame.filename.startswith(("<frozen", *_PYTHON)) and not is_installed(frame)


def is_installed(frame: traceback.FrameSummary) -> bool:
    """Whether it is a line of an installed package."""
    return package_of(frame.filename) is not None


def package_of(file: str) -> str | None:
    """The installed package that `file` belongs to, by the name of its folder or module; None of the user's own."""
    parts = Path(file).parts
    places = [place for place, folder in enumerate(parts) if folder in _INSTALLED]
    return Path(parts[places[-1] + 1]).stem if places and places[-1] + 1 < len(parts) else None


def is_installed_file(file: str) -> bool:
    """Whether it belongs to an installed package or to Python itself."""
    return file.startswith((OURS, *_PYTHON)) or any(folder in Path(file).parts for folder in _INSTALLED)


def users_line(error: BaseException, framework: Path = _NONE) -> traceback.FrameSummary | None:
    """The innermost line of the user's own code that led to `error`, else of a package that is not the `framework`.

    None where there is neither.
    """
    return innermost(traceback.extract_tb(error.__traceback__), framework)


def innermost(calls: Iterable[traceback.FrameSummary], framework: Path = _NONE) -> traceback.FrameSummary | None:
    """`users_line` among `calls`, the outermost first."""
    frames = [frame for frame in calls if not is_ours(frame)]
    theirs = [frame for frame in frames if not (is_pythons(frame) or frame.filename.startswith("<string>"))]
    users = [frame for frame in theirs if not is_installed(frame)]
    others = [frame for frame in theirs if is_installed(frame) and not Path(frame.filename).is_relative_to(framework)]
    return next(reversed(users or others), None)


def place(frame: traceback.FrameSummary) -> str:
    """`file:line`, the file as seen from the working directory, or from where packages are installed."""
    file = Path(frame.filename)
    if is_installed(frame):
        start = max(file.parts.index(folder) for folder in _INSTALLED if folder in file.parts)
        return f"{Path(*file.parts[start + 1 :])}:{frame.lineno}"
    return f"{file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file.name}:{frame.lineno}"
