"""Why a change moved the params of a layer, and what a summary says as it is."""

from pytest_modelbudget.explain.changed import why_changed
from pytest_modelbudget.explain.reading import reading

__all__ = ["reading", "why_changed"]
