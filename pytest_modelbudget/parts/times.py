"""How long each node took when it was last run: `{nodeid: seconds}` in JSON, as pytest-split keeps it too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.loading import InvalidText, UnreadableFile, read_json, read_text
from pytest_modelbudget.system import writing

_LONGEST = 10**9
"""Seconds beyond which a time is taken for a mistake."""


def read(path: Path) -> dict[str, float]:
    """The times in a file.

    Raises:
        ModelBudgetError: it cannot be read, or something else is in it.
    """
    cure = "modelbudget merge --times writes such a file, pytest-split --store-durations too"
    try:
        content = read_json(read_text(path))
    except (OSError, InvalidText, UnreadableFile) as problem:
        raise ModelBudgetError(f"the times in {path} cannot be read ({problem}): {cure}") from None
    if not isinstance(content, dict):
        raise ModelBudgetError(f"{path} has no times: it has to be {{nodeid: seconds}}; {cure}")
    for nodeid, seconds in content.items():
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < _LONGEST:
            raise ModelBudgetError(f"{path}: {nodeid[:200]!r} has no seconds but {str(seconds)[:80]!r}: {cure}")
    return {nodeid: float(seconds) for nodeid, seconds in content.items()}


def write(path: Path, seconds: Mapping[str, float]) -> None:
    """Write the times that were measured; those of other tests that are in the file stay.

    Raises:
        ModelBudgetError: what is there holds no times, or it cannot be written.
    """
    earlier = read(path) if writing.is_file(path) else {}
    text = json.dumps({**earlier, **seconds}, indent=1, sort_keys=True)
    try:
        writing.write(path, f"{text}\n")
    except OSError as error:
        raise ModelBudgetError(f"{path}: cannot be written ({error.strerror})") from None
