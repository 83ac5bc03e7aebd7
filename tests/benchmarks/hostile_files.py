"""What files that somebody made to hurt cost: `python tests/benchmarks/hostile_files.py`.

Reads each manifest and snapshot of `tests/hostile_files.py` in a process of its own, beside a plain file of a megabyte of
snapshot rows as the floor, and prints the dearest. The bar: 5 CPU s and 500 MB for any file below 1 MB.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

from pytest_modelbudget import snapshot
from pytest_modelbudget.config import holds_manifest, load
from tests.builders import towers
from tests.hostile_files import SNAPSHOT, SNAPSHOTS, TOML, YAML

SECONDS, MEGABYTES = 5, 500
SHOWN = 8


class Cost(NamedTuple):
    """What reading one file took."""

    seconds: float
    """CPU time."""
    megabytes: float
    """By how much the process grew at its peak."""


def measured(read: Callable[[], object]) -> Cost:
    """The cost of a call in a fork of this process, of which nothing is left behind."""
    with tempfile.TemporaryFile() as answer:
        if not (child := os.fork()):
            before = resource.getrusage(resource.RUSAGE_SELF)
            read()
            after = resource.getrusage(resource.RUSAGE_SELF)
            seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            answer.write(f"{seconds} {(after.ru_maxrss - before.ru_maxrss) / 1024}".encode())
            answer.flush()
            os._exit(0)
        os.waitpid(child, 0)
        answer.seek(0)
        return Cost(*map(float, answer.read().split()))


def reading_manifest(folder: Path, file: str, text: str) -> Callable[[], object]:
    """A call that reads a manifest as a run does."""

    def read() -> object:
        path = folder / file
        path.write_bytes(text.encode())
        return holds_manifest(path), load(path, file=file)

    return read


def reading_snapshot(text: str) -> Callable[[], object]:
    """A call that reads a snapshot as the one of a base."""
    return lambda: snapshot.baseline(text, towers(), SNAPSHOT, name="main", path="__model_budget__/two-towers.yaml")


def main() -> int:
    """Measure and print; 1 where a file is over the bar."""
    costs: dict[str, Cost] = {}
    with tempfile.TemporaryDirectory() as name:
        for file, cases in (("modelbudget.yaml", YAML), ("pyproject.toml", TOML)):
            for case, (text, _) in cases.items():
                costs[f"{file}: {case}"] = measured(reading_manifest(Path(name), file, text))
    for case, (text, _) in SNAPSHOTS.items():
        costs[f"snapshot: {case}"] = measured(reading_snapshot(text))
    floor = measured(lambda: [line.split() for line in SNAPSHOT.splitlines() * (10**6 // len(SNAPSHOT))])
    print(f"{len(costs)} files; splitting a megabyte of snapshot into words: {floor.seconds:.2f} CPU s")
    print("| file | CPU s | MB |\n| --- | ---: | ---: |")
    for case, cost in sorted(costs.items(), key=lambda item: -item[1].seconds)[:SHOWN]:
        print(f"| {case} | {cost.seconds:.2f} | {cost.megabytes:.0f} |")
    print(f"the most memory: {max(cost.megabytes for cost in costs.values()):.0f} MB")
    return int(any(cost.seconds > SECONDS or cost.megabytes > MEGABYTES for cost in costs.values()))


if __name__ == "__main__":
    sys.exit(main())
