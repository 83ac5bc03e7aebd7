"""`--jobs N`: several isolated workers, and the results of one."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.cli.conftest import Command


def report(path: Path) -> str:
    """A JSON report without how long each model took."""
    data = json.loads(path.read_text(encoding="utf-8"))
    for model in data["models"]:
        model["seconds"] = 0
    return json.dumps(data)


def told(out: str) -> list[str]:
    """What was said, whatever came first, without how long it took."""
    return sorted(re.sub(r"[\d.]+ s\b", "", line) for line in out.splitlines())


def test_results_are_those_of_one_worker(isolated: Command) -> None:
    """Of crashes, limits, mistakes, sources and models that stay here: the same report, and with each what it printed."""
    serial = isolated("check", "--report", "json:serial.json", "--report", "md:serial.md")
    parallel = isolated("check", "--report", "json:jobs.json", "--report", "md:jobs.md", "--jobs", "3")
    assert (serial.code, parallel.code) == (1, 1)
    path = isolated.project.path
    assert report(path / "jobs.json") == report(path / "serial.json")
    assert told(parallel.out) == told(serial.out)
