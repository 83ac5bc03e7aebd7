"""Run the worker over a project, and go on behind what kills it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_modelbudget.cli.discover.scan import LeftOut, Source

_WORKER = "pytest_modelbudget.cli.discover.worker"
_PAUSE = 0.05


@dataclass(frozen=True, slots=True)
class Found:
    """A model that can be built and counted; `inputs` and `dims` were guessed, unless they are empty."""

    reference: str
    is_class: bool
    framework: str
    params: int
    weight_bytes: int
    flops: int | None
    sameness: str
    inputs: str = ""
    dims: dict[str, int] = field(default_factory=dict)


def survey(root: Path, sources: Sequence[Source], *, seconds: float) -> tuple[list[Found], list[LeftOut]]:
    """Import each module and build its models; `seconds` is for each import and each model."""
    parts = sorted(frozenset().union(*(source.parts for source in sources)))
    paths = {source.module: source.path for source in sources}
    todo = [source.module for source in sources]
    found: list[Found] = []
    left: list[LeftOut] = []
    while todo:
        seen = [*(one.reference for one in found), *(one.what for one in left)]
        job = {"root": str(root), "modules": todo, "parts": parts, "skip": seen}
        lines, died = _run(job, seconds)
        found += [_found(line) for line in lines if line["kind"] == "found"]
        left += [LeftOut(line["what"], line["why"]) for line in lines if line["kind"] == "left"]
        if not died:
            break
        done = {line["module"] for line in lines if line["kind"] == "done"}
        last = next((line for line in reversed(lines) if line["kind"] in ("module", "build")), None)
        if last is None:
            left += [LeftOut(paths[module], died) for module in todo]
            break
        todo = [module for module in todo if module not in done]
        if last["kind"] == "build":
            left.append(LeftOut(last["what"], died))
        else:
            left.append(LeftOut(paths[last["module"]], died))
            todo.remove(last["module"])
    shown = [LeftOut(paths.get(one.what, one.what), one.why) for one in left]
    return found, shown


def _found(line: dict[str, Any]) -> Found:
    guess = line["guess"] or {"inputs": "", "dims": {}}
    names = ("reference", "is_class", "framework", "params", "weight_bytes", "flops", "sameness")
    return Found(**{name: line[name] for name in names}, inputs=guess["inputs"], dims=guess["dims"])


def _run(job: dict[str, Any], seconds: float) -> tuple[list[dict[str, Any]], str]:
    """What the worker wrote, and how it died, if it did."""
    with tempfile.TemporaryDirectory() as folder:
        task, out, noise = (Path(folder) / name for name in ("job", "out", "noise"))
        task.write_text(json.dumps(job), encoding="utf-8")
        out.touch()
        with noise.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", _WORKER, str(task), str(out)],
                cwd=job["root"],
                env={**os.environ, "PYTHONPATH": _paths()},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
            )
            died = _watch(process, out, seconds)
        lines = list(_lines(out))
        if lines and lines[-1]["kind"] == "end":
            return lines, ""
        last = noise.read_bytes()[-2000:].decode("utf-8", "replace").strip().splitlines()[-1:]
        return lines, f"{died}: {last[0]}" if last and not died.startswith("took") else died


def _paths() -> str:
    """Where the worker finds modules: as this process does, and this package where it is run from its sources."""
    package = Path(__file__).resolve().parents[3]
    own = "" if package.name in ("site-packages", "dist-packages") else str(package)
    return os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), own)))


def _watch(process: subprocess.Popen[bytes], out: Path, seconds: float) -> str:
    """Wait while there is progress; returns how the process ended."""
    size, since = -1, time.monotonic()
    try:
        while process.poll() is None:
            if (now := out.stat().st_size) != size:
                size, since = now, time.monotonic()
            if time.monotonic() - since > seconds:
                return f"took longer than {seconds:g} s"
            time.sleep(_PAUSE)
    finally:
        process.kill()
        process.wait()
    return f"ended the process (exit code {process.returncode})"


def _lines(out: Path) -> Iterator[dict[str, Any]]:
    for line in out.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # cut off by the end of the process
            return
