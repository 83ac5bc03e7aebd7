"""The machine-readable report: one `wire.result_dict` for each model, and what the run says of no single one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from pytest_modelbudget.reports import text
from pytest_modelbudget.results import Result, codec
from pytest_modelbudget.summary.metrics import METRICS


def page(results: Sequence[Result], setting: text.ReportSetting = text.DEFAULT_SETTING) -> str:
    """The report as text."""
    return "".join(pieces(results, setting))


def pieces(results: Sequence[Result], setting: text.ReportSetting = text.DEFAULT_SETTING) -> Iterator[str]:
    """All results, sorted by id, each on a line of its own."""
    overall = setting.overall
    head = {
        "schema": codec.SCHEMA,
        "base": overall.base,
        "findings": [codec.finding_dict(item) for item in overall.findings],
        "sums": [codec.sum_dict(item) for item in overall.sums],
    }
    yield f'{json.dumps(head)[:-1]}, "models": [\n'
    separator = ""
    for result in sorted(results, key=lambda result: result.id):
        yield f"{separator}{json.dumps(_model(result))}"
        separator = ",\n"
    yield "\n]}\n"


def _model(result: Result) -> dict[str, object]:
    summary = result.summary
    return {
        **codec.result_dict(result),
        "reading": text.remarks(summary) if summary else [],
        "metrics": {name: codec.number_text(metric.get(summary)) for name, metric in METRICS.items()}
        if summary
        else {},
    }
