"""Why a layer has the params it has, why a change moved them, and what a summary says as it is."""

from pytest_modelbudget.explain.changed import why_changed
from pytest_modelbudget.explain.formulas import why
from pytest_modelbudget.explain.reading import reading

__all__ = ["reading", "why", "why_changed"]
