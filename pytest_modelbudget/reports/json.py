"""The machine-readable report: `{"schema": 1, "models": [...]}`, one `wire.result_dict` for each model."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pytest_modelbudget import wire
from pytest_modelbudget.check import Result
from pytest_modelbudget.reports import text


def page(results: Sequence[Result], setting: text.Setting = text.SETTING) -> str:
    """All results, sorted by id."""
    models = [wire.result_dict(result) for result in sorted(results, key=lambda result: result.id)]
    return json.dumps({"schema": wire.SCHEMA, "models": models}, indent=1) + "\n"
