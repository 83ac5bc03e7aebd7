"""Limits on a model's numbers: how they are written, and what breaks them.

values.py has the numbers that limits are held against, limits.py a limit as data, grammar.py how it is written,
judge.py the decision, planned.py limits on planned runs, findings.py what is said without failing, ratchet.py limits
that follow downwards. The metrics are those of `summary.metrics`.
"""

from pytest_modelbudget.budget.findings import Baseline, Finding, loosened_limits
from pytest_modelbudget.budget.grammar import parse, parse_sum
from pytest_modelbudget.budget.judge import Violation, judge, today
from pytest_modelbudget.budget.limits import BOUNDS, FITS, Budget, Lifted, Rule, contradictions, merge
from pytest_modelbudget.budget.ratchet import format_limit, limited_numbers, tightened_max
from pytest_modelbudget.budget.values import layer_value

__all__ = [
    "BOUNDS",
    "FITS",
    "Baseline",
    "Budget",
    "Finding",
    "Lifted",
    "Rule",
    "Violation",
    "contradictions",
    "format_limit",
    "judge",
    "layer_value",
    "limited_numbers",
    "loosened_limits",
    "merge",
    "parse",
    "parse_sum",
    "tightened_max",
    "today",
]
