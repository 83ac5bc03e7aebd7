"""How the end of a worker reads: what ended it, or which limit it hit, and the user's lines that it was at."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from traceback import FrameSummary

from pytest_modelbudget import units
from pytest_modelbudget.isolation.process import WorkerEnded
from pytest_modelbudget.system.frames import is_own_frame, is_python_frame

_FRAME = re.compile(r'^  File "(?P<file>[^"\n]+)", line (?P<line>\d+) in (?P<name>.+)$', re.MULTILINE)
_MOST_FRAMES = 6

_SIGNAL_MEANINGS = {
    "SIGSEGV": "a segmentation fault",
    "SIGABRT": "it aborted",
    "SIGBUS": "a bus error",
    "SIGFPE": "a division by zero in C code",
    "SIGILL": "an instruction that this CPU does not have",
    "SIGKILL": "perhaps by the system, which was short of memory",
}


def describe_end(ended: WorkerEnded, before: str, folder: str) -> str:
    """`ended its process: SIGSEGV (a segmentation fault)`, and the lines where that was, when they are known.

    Files below `folder`, where the worker was, are named as seen from there.
    """
    return "\n".join((_what_happened(ended, before), *_user_frames(ended.end.stderr, folder)))


def short_text(ended: WorkerEnded) -> str:
    """The same in a few words: `ended the process (exit code 3)`, `took longer than 3 s`."""
    end = ended.end
    if end.limit == "seconds":
        return f"took longer than {end.amount:g} s"
    if end.limit is not None or end.code is None or end.nonsense:
        return _what_happened(ended, "")
    return f"ended the process ({_signal_name(-end.code) if end.code < 0 else f'exit code {end.code}'})"


def _what_happened(ended: WorkerEnded, before: str) -> str:
    end = ended.end
    match end.limit:
        case "seconds":
            return f"took longer than the {end.amount:g} s that limits.seconds allows"
        case "memory":
            return f"took more memory than the {units.size(int(end.amount))} that limits.memory allows"
        case "output":
            return f"printed more than {units.size(int(end.amount))}"
    if end.nonsense or end.code is None:
        return "broke the connection to its process"
    if end.code < 0:
        name = _signal_name(-end.code)
        meaning = _SIGNAL_MEANINGS.get(name, "")
        return f"its process was ended by {name}{f' ({meaning})' if meaning else ''}"
    return f"its process ended with exit code {end.code}, before {before}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _user_frames(stderr: str, folder: str) -> Iterator[str]:
    """The user's frames of the last stack that the worker wrote, the outermost first, as in a traceback."""
    current = stderr.rpartition("Current thread ")[2] or stderr.rpartition("Thread 0x")[2]
    if not current or current == stderr:
        return
    stack = current.partition("\n\n")[0].partition("\nThread 0x")[0]
    frames = [FrameSummary(match["file"], int(match["line"]), match["name"]) for match in _FRAME.finditer(stack)]
    user_frames = [
        frame for frame in frames if not (is_own_frame(frame) or is_python_frame(frame) or frame.filename == "<string>")
    ]
    yield from (
        f"{_relative(Path(frame.filename), folder)}:{frame.lineno}: in {frame.name}"
        for frame in user_frames[:_MOST_FRAMES][::-1]
    )


def _relative(path: Path, folder: str) -> Path:
    return path.relative_to(folder) if folder and path.is_absolute() and path.is_relative_to(folder) else path
