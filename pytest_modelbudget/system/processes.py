"""Processes of this project's own, beside the one that the user started: how they begin, and how they end for sure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

_RUN = "runpy.run_module({!r}, run_name='__main__', alter_sys=True)"


def module_command(module: str) -> list[str]:
    """The command that runs a module of this project.

    The folder it is started in is not on its path: somebody may have put a module there that would run instead.
    """
    code = f"import sys; sys.path[:] = filter(None, sys.path); import runpy; {_RUN.format(module)}"
    return [sys.executable, *_flags(), "-c", code]


def child_environment() -> dict[str, str]:
    """That of this process, with this package on the search path, also when it is run from its sources."""
    package = Path(__file__).resolve().parents[1]
    paths = [str(Path(path).resolve()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if package.name not in ("site-packages", "dist-packages"):
        paths.append(str(package))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a session, and all that it started, at once."""
    child_processes = descendants(process.pid)  # those with a session of their own too
    if sys.platform != "win32":
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    for child in child_processes:
        with suppress(OSError, psutil.Error):
            child.kill()
    process.kill()
    process.wait()


def descendants(pid: int) -> list[psutil.Process]:
    """What a process started, and what that started; nothing once it has ended."""
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.Error:
        return []


def _flags() -> list[str]:
    """The interpreter's own options that change what code does."""
    options = [f"-X{name}" if value is True else f"-X{name}={value}" for name, value in sys._xoptions.items()]
    switches = [("-O", sys.flags.optimize == 1), ("-OO", sys.flags.optimize > 1), ("-B", sys.dont_write_bytecode)]
    return [*options, *(switch for switch, is_on in switches if is_on)]
