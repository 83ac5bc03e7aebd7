"""What logging to MLflow costs at the end of a run of many models: `python -m tests.benchmarks.mlflow_speed`.

    python -m tests.benchmarks.mlflow_speed [MODELS] [URI] [ROWS]

Three runs of pytest at three commits: all models are new, none changed, ten changed. Without URI the embedded store,
whose growth is what was sent. ROWS is about how many layers each model has (90).
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from pytest_modelbudget.results import Result, Snapshot, SnapshotState, State
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.trackers import mlflow
from tests.builders import gpt


@dataclass(frozen=True)
class Results(Sequence[Result]):
    """Results that are made when they are asked for, so that a hundred thousand of them take no memory."""

    models: int
    changed: int
    narrow: Summary
    wide: Summary

    def __len__(self) -> int:
        return self.models

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Result]: ...
    def __getitem__(self, index: int | slice) -> Result | Sequence[Result]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(self.models))]
        if index >= self.models:
            raise IndexError(index)
        name = f"net-w{64 << index % 3}-{index:06d}"
        summary = self.wide if index < self.changed else self.narrow
        snapshot = Snapshot(SnapshotState.EQUAL, f"__model_budget__/{name}.yaml")
        return Result(name, State.OK, summary, snapshot=snapshot, nodeid=f"modelbudget.yaml::{name}")


def main(models: int, uri: str, rows: int) -> None:
    """Print seconds and bytes of each run."""
    os.environ |= {"MLFLOW_TRACKING_URI": uri} if uri else {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        _git("init", "-q", "-b", "main", ".")
        narrow, wide = gpt(depth=rows // 3), gpt(depth=rows // 3, width=9)
        print(f"{models:,} models of {len(narrow.layers)} rows, {uri or 'embedded store'}")
        size = 0
        for number, changed in enumerate((0, 0, 10)):
            _git("commit", "-q", "--allow-empty", "-m", "x")
            start, used = time.perf_counter(), os.times()
            results = Results(models, changed, narrow, wide)
            delivery = mlflow.log(results, Path.cwd(), exit_failed=False, deadline=3600)
            now = os.times()
            cpu = now.user - used.user + now.children_user - used.children_user
            print(f"run {number + 1}: {time.perf_counter() - start:.2f} s ({cpu:.1f} s of processor time)")
            print("\n".join(delivery.lines))
            size, before = sum(_sizes(Path(".modelbudget"))), size
            print(f"the project's folder grew by {size - before:,} bytes")
        for name, who in (("pytest", resource.RUSAGE_SELF), ("sender", resource.RUSAGE_CHILDREN)):
            print(f"{name}: at most {resource.getrusage(who).ru_maxrss / 1024:.0f} MiB of memory")


def _sizes(folder: Path) -> Iterator[int]:
    return (path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _git(*arguments: str) -> None:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
    subprocess.run(["git", *identity, *arguments], check=True)


if __name__ == "__main__":
    arguments = [*sys.argv[1:], *("1300", "", "90")[len(sys.argv) - 1 :]]
    main(int(arguments[0]), arguments[1], int(arguments[2]))
