"""A badge: the verdict as the JSON that shields.io draws from an address (its endpoint schema, version 1)."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pytest_modelbudget.reports import text
from pytest_modelbudget.results import Result


def page(results: Sequence[Result], setting: text.ReportSetting = text.DEFAULT_SETTING) -> str:
    """Red when a model failed or was not checked, yellow with warnings, green otherwise; grey without any model."""
    failed = any(result.state.failed for result in results) or any(text.unchecked_findings(setting))
    warned = any(result.warnings for result in results)
    color = "red" if failed else "lightgrey" if not results else "yellow" if warned else "brightgreen"
    message = text.verdict(results) if results else "no models"
    badge = {"schemaVersion": 1, "label": "model budget", "message": message, "color": color, "isError": failed}
    return json.dumps(badge) + "\n"
