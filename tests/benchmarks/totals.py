"""What a model costs in a file of totals: `python tests/benchmarks/totals.py [MODELS]`, CPU microseconds for each.

Reads a file of 100,000 lines and looks up each, at most some 10 us a line; the other figures are for comparison.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[2]))

from pytest_modelbudget import snapshot
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.results import SnapshotState
from tests.builders import towers


def timed(what: str, models: int, act: Callable[[], object]) -> None:
    """Print the time of one act for each model."""
    start = time.process_time()
    act()
    print(f"{(time.process_time() - start) / models * 1e6:8.1f} us  {what}")


def main(models: int) -> None:
    """All figures."""
    summary = towers()
    first = ModelEntry("net", "zoo:net", declared="modelbudget.yaml", snapshot="totals", source="zoo:nets")
    entries = [replace(first, id=f"vision/net_{number:06d}") for number in range(models)]
    new = [replace(entry, id=f"{entry.id}x") for entry in entries[:1000]]
    path = snapshot.path_for(first)
    lines = {entry.id: snapshot.text_for(entry, summary) for entry in entries}

    def compare(root: Path) -> None:
        for entry in entries:
            assert snapshot.compare(root, entry, summary, lines[entry.id]).stored is SnapshotState.EQUAL

    with TemporaryDirectory() as folder:
        root = Path(folder)
        timed("a line is rendered", models, lambda: [snapshot.text_for(entry, summary) for entry in entries])
        timed("written, all", models, lambda: snapshot.write_lines(root, ".", path, lines))
        print(f"{(root / path).stat().st_size / models:8.1f} bytes a line")
        timed("read, and all compared", models, lambda: compare(root))
        timed("compared once more", models, lambda: compare(root))
        timed("one line changed, for each line there is", models, lambda: snapshot.write_lines(root, ".", path, {"net": "- {model: net, x"}))  # fmt: skip
        timed("a new model compared", 1000, lambda: [snapshot.compare(root, entry, summary, "-") for entry in new])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
