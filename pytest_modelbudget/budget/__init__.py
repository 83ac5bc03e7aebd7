"""Limits on a model's numbers: the metrics there are, how limits are written, and what breaks them.

metrics.py has the vocabulary, limits.py a limit as data, grammar.py how it is written, judge.py the decision,
planned.py limits on planned runs,
findings.py what is said without failing, ratchet.py limits that follow downwards.
"""

from pytest_modelbudget.budget.findings import Baseline, Finding, loosened
from pytest_modelbudget.budget.grammar import parse, parse_sum
from pytest_modelbudget.budget.judge import Violation, judge, today
from pytest_modelbudget.budget.limits import BOUNDS, FITS, Budget, Lifted, Rule, contradictions, merge
from pytest_modelbudget.budget.metrics import (
    ADDITIVE,
    GROWS,
    LAYER_METRICS,
    METRICS,
    PEAKS,
    Metric,
    Number,
    layer_value,
)
from pytest_modelbudget.budget.planned import GROWING, saving
from pytest_modelbudget.budget.ratchet import numbers, tightened, written

__all__ = [
    "ADDITIVE",
    "BOUNDS",
    "FITS",
    "GROWING",
    "GROWS",
    "LAYER_METRICS",
    "METRICS",
    "PEAKS",
    "Baseline",
    "Budget",
    "Finding",
    "Lifted",
    "Metric",
    "Number",
    "Rule",
    "Violation",
    "contradictions",
    "judge",
    "layer_value",
    "loosened",
    "merge",
    "numbers",
    "parse",
    "parse_sum",
    "saving",
    "tightened",
    "today",
    "written",
]
