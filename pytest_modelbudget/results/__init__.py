"""How models came out: the data of a result, the decision, sums over groups of models, and results as JSON."""

from __future__ import annotations

from pytest_modelbudget.results.check import check
from pytest_modelbudget.results.result import ITEM_NAMES, BaseComparison, Result, Snapshot, SnapshotState, State

__all__ = ["ITEM_NAMES", "BaseComparison", "Result", "Snapshot", "SnapshotState", "State", "check"]
