"""Whose code a line of a traceback is: the user's, that of an installed package, Python's own, or this project's."""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

PACKAGE_FOLDER = str(Path(__file__).parents[1])
"""The folder of this project."""

_STDLIB_FOLDERS = tuple(f"{Path(sysconfig.get_path(name))}{os.sep}" for name in ("stdlib", "platstdlib"))
_OWN_FOLDER = f"{PACKAGE_FOLDER}{os.sep}"  # and not that of a package whose name begins as this one's
_NO_FRAMEWORK = Path("/no/framework")
_INSTALL_FOLDERS = ("site-packages", "dist-packages")


def is_own_frame(frame: traceback.FrameSummary) -> bool:
    """Whether it is a line of this project."""
    return frame.filename.startswith(_OWN_FOLDER)


def is_python_frame(frame: traceback.FrameSummary) -> bool:
    """Whether it is a line of the standard library, or of code that has no file."""
    return frame.filename.startswith(("<frozen", *_STDLIB_FOLDERS)) and not is_installed_frame(frame)


def is_installed_frame(frame: traceback.FrameSummary) -> bool:
    """Whether it is a line of an installed package."""
    return package_of(frame.filename) is not None


def package_of(file: str) -> str | None:
    """The installed package that `file` belongs to, by the name of its folder or module; None of the user's own."""
    parts = Path(file).parts
    positions = [position for position, folder in enumerate(parts) if folder in _INSTALL_FOLDERS]
    return Path(parts[positions[-1] + 1]).stem if positions and positions[-1] + 1 < len(parts) else None


def is_installed_file(file: str) -> bool:
    """Whether it belongs to an installed package or to Python itself."""
    return file.startswith((_OWN_FOLDER, *_STDLIB_FOLDERS)) or any(
        folder in Path(file).parts for folder in _INSTALL_FOLDERS
    )


def user_frame(error: BaseException, framework: Path = _NO_FRAMEWORK) -> traceback.FrameSummary | None:
    """The innermost line of the user's own code that led to `error`, else of a package that is not the `framework`.

    None where there is neither.
    """
    return innermost_user_frame(traceback.extract_tb(error.__traceback__), framework)


def innermost_user_frame(
    calls: Iterable[traceback.FrameSummary], framework: Path = _NO_FRAMEWORK
) -> traceback.FrameSummary | None:
    """`user_frame` among `calls`, the outermost first."""
    frames = [frame for frame in calls if not is_own_frame(frame)]
    file_frames = [frame for frame in frames if not (is_python_frame(frame) or frame.filename.startswith("<string>"))]
    user_frames = [frame for frame in file_frames if not is_installed_frame(frame)]
    package_frames = [
        frame
        for frame in file_frames
        if is_installed_frame(frame) and not Path(frame.filename).is_relative_to(framework)
    ]
    return next(reversed(user_frames or package_frames), None)


def frame_location(frame: traceback.FrameSummary) -> str:
    """`file:line`, the file as seen from the working directory, or from where packages are installed."""
    file = Path(frame.filename)
    if is_installed_frame(frame):
        start = max(file.parts.index(folder) for folder in _INSTALL_FOLDERS if folder in file.parts)
        return f"{Path(*file.parts[start + 1 :])}:{frame.lineno}"
    return f"{file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file.name}:{frame.lineno}"
