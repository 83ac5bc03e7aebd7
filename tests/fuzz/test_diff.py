"""What changed between any two models."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from pytest_modelbudget import compare
from pytest_modelbudget.summary import Layer, Summary
from pytest_modelbudget.summary.metrics import STORED
from tests.fuzz import strategies
from tests.fuzz.strategies import fuzzed


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Summary, Summary]:
    """Two models that have some rows in common, in any order, or none."""
    before, after = draw(strategies.summaries), draw(strategies.summaries)
    mixed: dict[str, Layer] = {row.path: row for row in (*draw(st.permutations(before.layers)), *after.layers)}
    rows = draw(st.lists(st.sampled_from(list(mixed.values())), unique_by=lambda row: row.path)) if mixed else []
    return before, replace(after, layers=tuple(rows)) if draw(st.booleans()) else after


@fuzzed(pairs())
def test_the_changes_account_for_every_number(pair: tuple[Summary, Summary]) -> None:
    """In both directions the rows sum to the difference, each total is told, and a model has not changed from itself."""
    for before, after in (pair, pair[::-1]):
        changes = compare(before, after)
        assert sum(one.delta or 0 for one in changes if not one.of_the_model) == after.params - before.params
        told = {one.path: one.delta for one in changes if one.kind == "total" and one.path in STORED}
        moved = {name: getattr(after, name) - getattr(before, name) for name in STORED}
        assert told == {name: delta for name, delta in moved.items() if delta}
        assert all(str(one).isprintable() and repr(one) for one in changes)
        assert compare(before, before) == ()
