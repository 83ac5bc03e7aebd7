"""Reports: pure functions from results to text. What came from a model is data, and escaped for where it goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module

from pytest_modelbudget.reports import text
from pytest_modelbudget.results import Result
from pytest_modelbudget.system.intact import any_digits

REPORTS = {
    "json": "pytest_modelbudget.reports.json",
    "md": "pytest_modelbudget.reports.markdown",
    "html": "pytest_modelbudget.reports.html",
    "openmetrics": "pytest_modelbudget.reports.openmetrics",
    "codequality": "pytest_modelbudget.reports.codequality",
    "comment": "pytest_modelbudget.reports.comment",
    "badge": "pytest_modelbudget.reports.badge",
    "card": "pytest_modelbudget.reports.card",
    "cyclonedx": "pytest_modelbudget.reports.cyclonedx",
}
"""The kinds of `--model-budget-report`; each module has `page(results, setting) -> str` or, where the text grows with
each model, `pieces(results, setting) -> Iterator[str]`."""

REPORT_MARKS = {
    "json": '{"schema": ',
    "md": "### Model budget: ",
    "html": "<title>Model budget: ",
    "openmetrics": "# TYPE model_",
    "codequality": '"check_name": "modelbudget/',
    "comment": "<!-- modelbudget:",
    "badge": '{"schemaVersion": 1, "label": "model budget"',
    "card": "<!-- model cards by pytest-modelbudget -->",
    "cyclonedx": '"name": "pytest-modelbudget"',
}
"""By which an earlier report of a kind is known from its first lines."""


def render(kind: str, results: Sequence[Result], setting: text.ReportSetting = text.DEFAULT_SETTING) -> str:
    """The report of one kind as text."""
    return "".join(pieces(kind, results, setting))


def pieces(kind: str, results: Sequence[Result], setting: text.ReportSetting = text.DEFAULT_SETTING) -> Iterator[str]:
    """The same piece by piece, so that it is never in memory as a whole."""
    module = import_module(REPORTS[kind])
    with any_digits():
        if hasattr(module, "pieces"):
            yield from module.pieces(results, setting)
        else:
            yield module.page(results, setting)


def unfinished(kind: str, setting: text.ReportSetting = text.DEFAULT_SETTING) -> str:
    """What stands in the place of a report until the run has ended; empty for kinds of which nothing should."""
    page = getattr(import_module(REPORTS[kind]), "unfinished", None)
    return "" if page is None else str(page(setting))
