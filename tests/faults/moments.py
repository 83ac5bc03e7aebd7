"""A program that runs one operation on a small project again and again, with a fault at another moment each time.

`python -m tests.faults.moments OPERATION FOLDER` prints as JSON what each run said and left behind, and what the next
run without a fault made of that. A moment is a call that changes something below the project: opening a file to write,
renaming, deleting, making a folder, changing a mode. Faults:

- `kill`: the process is killed just before the call (as by `kill -9`, or when the power fails)
- `cut`: it is killed in the middle of writing a file
- `full`: the call fails as on a full disk, and `short` fails in the middle of writing
- `read-only`: all these calls fail from one on, as on a file system that was made read-only

Each run is a fork of this process, so that everything is imported once, and builds its models itself: workers write nothing
below the project, and would import all of it again.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FAKENET = Path(__file__).parents[1] / "fakes.py"
ZOO = """
from fakenet import Model
from pytest_modelbudget import backends

backends.BACKENDS["fakenet"] = "fakenet"


def small():
    return Model(dense=(32, {width}))


def other():
    return Model(body=(32, {width}), head=({width}, 10))
"""
MANIFEST = """\
# limits of the team
models:
  small:
    build: zoo:small
    inputs: "float32[B, 32]"
    budgets: {params: {max: 9k, ratchet: {slack: 2%}}}
  b/other: {build: zoo:other, inputs: "float32[B, 32]"}
"""
TOTALS = "defaults: {snapshot: totals}\n"
GONE = """\
  gone: {build: zoo:small, inputs: "float32[B, 32]"}
"""

_EVENTS = {
    "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.chmod": 1, "os.truncate": 1, "os.link": 2,
    "os.symlink": 2,
}  # fmt: skip
"""Audit events of calls that change the file system, and how many of their arguments are paths."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One run with a fault, and the next without: where it was, how they ended, what they said and left."""

    fault: str
    at: str
    code: int
    said: str
    left: dict[str, str]
    next_code: int
    next_said: str
    final: dict[str, str]


Action = Callable[[], int]
Fault = Callable[[str], None]
"""Told each event of a run in the project, in their order."""


def command(*words: str) -> Action:
    """`modelbudget ...`"""

    def act() -> int:
        from pytest_modelbudget.cli import main

        return main(words)

    return act


def plain(*words: str) -> Action:
    """`pytest ...`"""

    def act() -> int:
        import pytest

        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # other plugins take longer than the run
        return int(pytest.main(["-p", "pytest_modelbudget.plugin", "-p", "no:cacheprovider", "-q", *words]))

    return act


def init() -> int:
    """`modelbudget init --force`, with what it would find in the project said at once."""
    from pytest_modelbudget.cli import init as module
    from pytest_modelbudget.cli.discover.trial.outcomes import BuildableModel

    found = BuildableModel("zoo:small", False, "torch", 1, 4, 2, "a")
    vars(module)["survey"] = lambda *_, **__: [found]
    return command("init", "--force")()


def outbox(times: int = 1) -> int:
    """An entry is written, what is too much is dropped, and what is left is read."""
    from pytest_modelbudget.trackers.mlflow import outbox as module

    folder = Path(".modelbudget", "outbox")
    for _ in range(times):
        at = 1 + max((int(path.name[:13]) for path in module.entries(folder)), default=0)
        run = module.RunRecord(f"{os.environ.get('SALT', '')}{at:032d}", "a run", "FINISHED", {}, {}, "job")
        entry = module.OutboxEntry("store", at, at, at, "modelbudget/nets", run)
        try:
            module.write(folder, entry, {"job/report.html": "<p>" * 999, "job/models.json": "{}"})
        except OSError as error:  # as `trackers.mlflow.log` does
            print(f"nothing was logged ({error})")
            return 1
        module.trim(folder, most_entries=3)
        for path in module.entries(folder):
            try:
                module.read(path)
            except module.UnreadableEntry:
                if path.exists():  # else another process has trimmed it
                    raise
    return 0


def part() -> int:
    """`modelbudget check --part`, in no time, so that the bytes are the same each time."""
    from pytest_modelbudget.engine import run

    vars(run)["time"] = SimpleNamespace(perf_counter=lambda: 0.0)
    return command("check", "--part", "out/report.part")()


REPORTS = ("json", "html", "comment")
OPERATIONS: dict[str, Action] = {
    "update": command("update"),
    "update by pytest": plain("--model-budget-update"),
    "check": command("check"),
    "reports": command("check", *(f"--report={kind}:out/report.{kind}" for kind in REPORTS)),
    "part": part,
    "prune": plain("--model-budget-prune"),
    "update totals": command("update"),
    "update small of totals": command("update", "small"),
    "update other of totals": command("update", "b/other"),
    "prune totals": plain("--model-budget-prune"),
    "tighten": command("tighten", "--write"),
    "init": init,
    "outbox": outbox,
    "busy outbox": partial(outbox, 30),
}
FAULTS: dict[str, tuple[str, ...]] = {
    "update": ("kill", "cut", "full", "short", "read-only"),
    "update by pytest": ("kill",),
    "reports": ("kill", "cut", "full", "short"),
    "part": ("kill", "cut", "full", "short"),
    "prune": ("kill", "full"),
    "update totals": ("kill", "cut", "full", "short", "read-only"),
    "prune totals": ("kill", "full"),
    "tighten": ("kill", "cut", "full", "short", "read-only"),
    "init": ("kill", "cut", "full", "short", "read-only"),
    "outbox": ("kill", "cut", "full", "short", "read-only"),
}
"""What each operation is tried with: all but where it writes nothing, or does as another one does."""

_STEADY = ("tighten", "init", "outbox", "busy outbox")
"""Operations on a project that is as committed."""


def prepare(folder: Path, *, steady: bool, head: str = "") -> None:
    """The project: two models with snapshots, which are of other models unless it is `steady`, and one too many.

    `head` is what its manifest begins with.
    """
    folder.mkdir(parents=True)
    shutil.copy(FAKENET, folder / "fakenet.py")
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "zoo.py").write_text(ZOO.format(width=64 if steady else 60))
    (folder / "modelbudget.yaml").write_text(head + (MANIFEST if steady else MANIFEST + GONE))
    assert run(folder, OPERATIONS["update"])[0] == 0
    (folder / "zoo.py").write_text(ZOO.format(width=64))
    (folder / "modelbudget.yaml").write_text(head + MANIFEST)
    if not steady:
        (folder / "out").mkdir()
        for kind in REPORTS:
            (folder / "out" / f"report.{kind}").write_text("of an earlier run")


def run(folder: Path, action: Action, fault: Fault | None = None, *, bytes_of_a_file: int = 0) -> tuple[int, str]:
    """How an action ends in a process of its own (negative: by that signal), and what it says."""
    return finished(started(folder, action, fault, bytes_of_a_file=bytes_of_a_file))


def started(folder: Path, action: Action, fault: Fault | None = None, *, bytes_of_a_file: int = 0) -> tuple[int, int]:
    """The process of an action, and the end of the pipe that it writes to."""
    said, sink = os.pipe()
    sys.stdout.flush()
    process = os.fork()
    if process:
        os.close(sink)
        return process, said
    code = 70
    try:
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        sys.dont_write_bytecode = True
        if bytes_of_a_file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_of_a_file, resource.RLIM_INFINITY))
        if fault is not None:
            sys.addaudithook(listener(folder, fault))
        code = action()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finished(one: tuple[int, int]) -> tuple[int, str]:
    """Wait for it."""
    process, pipe = one
    with os.fdopen(pipe, errors="replace") as file:
        said = file.read()
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), said


def listener(folder: Path, fault: Fault) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that tells `fault` each event below the folder."""

    def relative(path: Any) -> str | None:
        if not isinstance(path, (str, os.PathLike)):
            return None
        full = os.path.normpath(os.path.join(folder, path))
        return os.path.relpath(full, folder) if full.startswith(f"{folder}{os.sep}") else None

    def hear(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            writes = any(char in "wxa+" for char in mode or "") or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            paths = [relative(path)] if writes else []
        else:
            paths = [relative(path) for path in args[: _EVENTS.get(event, 0)]]
        if paths and all(paths):
            fault(f"{event} {' -> '.join(map(str, paths))}")

    return hear


class At:
    """A fault at the event of that number, counted from 0; `on` says that it stays."""

    def __init__(self, number: int, act: Callable[[], None], told: Path, *, on: bool = False) -> None:
        self.left, self.act, self.told, self.on = number, act, told, on

    def __call__(self, event: str) -> None:
        self.left -= 1
        if self.left == -1:
            handle = os.open(self.told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(handle, event.encode())
            os.close(handle)
        if self.left == -1 or (self.on and self.left < 0):
            self.act()


def kill() -> None:
    """As `kill -9`."""
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(number: int) -> Callable[[], None]:
    """The error of the system with that number."""

    def act() -> None:
        raise OSError(number, os.strerror(number))

    return act


def fatal_limit(action: Action) -> Action:
    """An action that the system kills where it writes more to a file than it may; Python would get an error."""

    def act() -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        return action()

    return act


def files(folder: Path) -> dict[str, str]:
    """What lies below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes().decode("utf-8", "replace")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def moments(template: Path, action: Action, fault: str) -> list[Moment]:
    """A run with the fault at each moment there is."""
    acts = {"kill": kill, "full": refuse(errno.ENOSPC), "read-only": refuse(errno.EROFS)}
    found: list[Moment] = []
    limits = (40, 400, 2000) if fault in ("cut", "short") else ()
    for number in range(len(limits) or 200):
        work = template.with_name(f"{template.name}-{fault}-{number}")
        shutil.copytree(template, work)
        told = work.with_suffix(".moment")
        if limits:
            told.write_text(f"after {limits[number]} bytes of a file")
            changed = fatal_limit(action) if fault == "cut" else action
            code, said = run(work, changed, bytes_of_a_file=limits[number])
        else:
            code, said = run(work, action, At(number, acts[fault], told, on=fault == "read-only"))
            if not told.exists():  # it came to its end before
                break
        left = files(work)
        next_code, next_said = run(work, action)
        found.append(Moment(fault, told.read_text(), code, said, left, next_code, next_said, files(work)))
        shutil.rmtree(work)
    return found


def together(template: Path, names: list[str], rounds: int) -> list[dict[str, Any]]:
    """Several operations at once on one project."""
    found = []
    for number in range(rounds):
        work = template.with_name(f"{template.name}-together-{number}")
        shutil.copytree(template, work)
        processes = []
        for index, name in enumerate(names):
            os.environ["SALT"] = str(index)
            processes.append(started(work, OPERATIONS[name]))
        ended = [finished(process) for process in processes]
        left = files(work)
        code, said = run(work, OPERATIONS["check"])
        found.append(
            {
                "ended": [(name, *end) for name, end in zip(names, ended, strict=True)],
                "left": left,
                "check": code,
                "said": said,
            }
        )
    return found


def import_all() -> None:
    """Import pytest and what all operations stand on, none of which needs a framework."""
    for name in (
        "cli.tighten",
        "cli.check",
        "cli.merge",
        "cli.init",
        "config.rewriting",
        "plugin.controller",
        "reports.html",
    ):
        import_module(f"pytest_modelbudget.{name}")


def main(operation: str, folder: Path) -> dict[str, Any]:
    """All faults at all moments of an operation, or, of several with `+` between, these at once."""
    import_all()
    os.environ["MODELBUDGET_ISOLATE"] = "0"
    names = operation.split("+")
    template = folder / "project"
    prepare(template, steady=names[0] in _STEADY, head=TOTALS if "totals" in names[0] else "")
    before = files(template)
    if len(names) > 1:
        return {"before": before, "rounds": together(template, names, rounds=2)}
    action = OPERATIONS[operation]
    work = template.with_name("undisturbed")
    shutil.copytree(template, work)
    code, said = run(work, action)
    after = files(work)
    told = [asdict(one) for fault in FAULTS[operation] for one in moments(template, action, fault)]
    return {"before": before, "code": code, "said": said, "after": after, "moments": told}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]).resolve())))
