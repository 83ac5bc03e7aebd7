"""How comparing, checking and showing scale with rows: `python tests/benchmarks/many_rows.py`.

Ten times the rows should take about ten times as long; the floor is writing the same rows down as JSON. To look at, not a test.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from pytest_modelbudget import compare, reports
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.results import Snapshot, SnapshotState, check
from pytest_modelbudget.summary import Summary
from tests.builders import gpt

BLOCKS = 66, 660
"""A block is three rows."""


def seconds(call: Callable[[], object]) -> float:
    """CPU time, the least of three."""
    times: list[float] = []
    for _ in range(3):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def costs(blocks: int) -> dict[str, float]:
    """CPU seconds for each task on a model of so many blocks."""
    summary, wider = gpt(blocks), gpt(blocks, width=16)
    data = summary.to_dict()
    return {
        "write as JSON (floor)": seconds(lambda: json.dumps(data)),
        "check rows": seconds(lambda: Summary.checked(data)),
        "compare, every row widened": seconds(lambda: compare(summary, wider)),
        "HTML page": seconds(
            lambda: reports.render(
                "html", [check(ModelEntry("net", build="a:b"), summary, Snapshot(SnapshotState.EQUAL, "net.yaml"))]
            )
        ),
    }


def main() -> None:
    """Measure and print."""
    few, many = map(costs, BLOCKS)
    print(f"| task | {len(gpt(BLOCKS[0]).layers)} rows, CPU s | {len(gpt(BLOCKS[1]).layers)} rows | ratio |")
    print("| --- | ---: | ---: | ---: |")
    for task in few:
        print(f"| {task} | {few[task]:.4f} | {many[task]:.4f} | {many[task] / few[task]:.1f} |")


if __name__ == "__main__":
    main()
