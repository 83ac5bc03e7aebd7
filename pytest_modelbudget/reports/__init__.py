"""Reports: pure functions from results to text. What came from a model is data, and escaped for where it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import cast

from pytest_modelbudget.check import Result
from pytest_modelbudget.reports import text

REPORTS = {
    "json": "pytest_modelbudget.reports.json",
    "md": "pytest_modelbudget.reports.markdown",
    "html": "pytest_modelbudget.reports.html",
    "openmetrics": "pytest_modelbudget.reports.openmetrics",
    "codequality": "pytest_modelbudget.reports.codequality",
    "comment": "pytest_modelbudget.reports.comment",
}
"""The kinds of `--model-budget-report`; each module has `page(results, setting) -> str`."""


def render(kind: str, results: Sequence[Result], setting: text.Setting = text.SETTING) -> str:
    """The report of one kind as text."""
    page = cast(Callable[[Sequence[Result], text.Setting], str], import_module(REPORTS[kind]).page)
    return page(results, setting)
