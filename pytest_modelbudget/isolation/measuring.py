"""Coverage of what runs in a worker, added to that of the process that asked for it, where it is measured at all."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_VARIABLE = "MODELBUDGET_COVERAGE"
_OPTIONS = {
    "branch": "run:branch", "source": "run:source", "source_pkgs": "run:source_pkgs", "include": "run:include",
    "omit": "run:omit", "timid": "run:timid",
}  # fmt: skip
"""Arguments of `Coverage`, and the option of one that each is read from."""


def environment(data: Path) -> dict[str, str]:
    """What tells a worker to measure as this process does, with its `data` there; nothing when this one does not."""
    measure = _current_coverage()
    if measure is None:
        return {}
    options = {name: measure.get_option(option) for name, option in _OPTIONS.items()}
    return {_VARIABLE: json.dumps({"data_file": str(data), "config_file": _config_file(measure), **options})}


def add_to_current(data: Path) -> None:
    """Add what a worker measured to what this process does."""
    measure = _current_coverage()
    if measure is None or not data.exists():
        return
    from coverage import CoverageData

    worker_data = CoverageData(basename=str(data))
    with suppress(Exception):  # of a worker that was killed while it wrote
        worker_data.read()
        measure.get_data().update(worker_data)


@contextmanager
def measuring_coverage() -> Iterator[None]:
    """In a worker: measure what runs inside, if it was told to."""
    settings = os.environ.pop(_VARIABLE, "")
    if not settings:
        yield
        return
    from coverage import Coverage

    measure = Coverage(**json.loads(settings), messages=False)
    measure.start()
    try:
        yield
    finally:
        measure.stop()
        measure.save()


def _current_coverage() -> Any:
    coverage = sys.modules.get("coverage")
    return None if coverage is None else coverage.Coverage.current()


def _config_file(measure: Any) -> str | bool:
    return getattr(measure.config, "config_file", None) or False
