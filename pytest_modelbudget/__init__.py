"""Budgets and snapshots for the size and cost of neural networks, as a pytest plugin.

The map: a `ModelEntry` (entry/) comes from a manifest, the `model` decorator or the `model_budget` fixture (config/,
plugin/). engine/ builds it with a framework's backend (backends/) into a `Summary` (summary/), adds what its runs take
of memory (planner/), and holds it against budgets (budget/) and the committed snapshot (snapshot/, diff/). The `Result`
(results/) goes to reports/ and trackers/. api.py has the same without pytest. `.github/CONTRIBUTING.md` has every room.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_modelbudget.api import log_summary, plan, summarize
    from pytest_modelbudget.budget import Budget, Violation
    from pytest_modelbudget.config.decorator import model
    from pytest_modelbudget.diff import Change
    from pytest_modelbudget.diff import changes as compare
    from pytest_modelbudget.entry import ModelEntry
    from pytest_modelbudget.errors import ModelBudgetError
    from pytest_modelbudget.results import Result
    from pytest_modelbudget.summary import Layer, Plan, Summary, Weight

# pytest imports this package at every start, so each name is fetched only when it is asked for.
_HOMES = {
    "Budget": "budget",
    "Change": "diff",
    "Layer": "summary",
    "ModelBudgetError": "errors",
    "ModelEntry": "entry",
    "Plan": "summary",
    "Result": "results",
    "Summary": "summary",
    "Violation": "budget",
    "Weight": "summary",
    "compare": "diff:changes",
    "log_summary": "api",
    "model": "config.decorator",
    "plan": "api",
    "summarize": "api",
}

__all__ = [
    "Budget",
    "Change",
    "Layer",
    "ModelBudgetError",
    "ModelEntry",
    "Plan",
    "Result",
    "Summary",
    "Violation",
    "Weight",
    "compare",
    "log_summary",
    "model",
    "plan",
    "summarize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(f"{__name__}.{home}"), attribute or name)
