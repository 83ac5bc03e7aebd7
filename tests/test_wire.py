"""Results between processes."""

from __future__ import annotations

from dataclasses import replace

from pytest_modelbudget import budget, wire
from pytest_modelbudget.check import ModelEntry, Result, Snapshot, State, Stored, check
from pytest_modelbudget.errors import Place
from tests.builders import gpt, towers


def test_a_result_travels_whole() -> None:
    """Only the committed summary stays behind; what changed travels as changes."""
    written = {"params": 1, "largest_layer_share": {"max": "99%", "warn": "1%"}, "params_per_sample": 3}
    limits = tuple(budget.parse(written, lambda below: Place("modelbudget.yaml", 3)))
    entry = ModelEntry("towers", build="a:b", budgets=limits, tags=("edge",), place=Place("modelbudget.yaml", 2))
    before = replace(towers(), layers=towers().layers[:-1])
    result = check(entry, towers(), Snapshot(Stored.DIFFERENT, "x.yaml", "text", before), accept=True)
    result = replace(result, nodeid="modelbudget.yaml::towers", seconds=0.25)
    assert result.changes
    assert result.violations
    arrived = wire.unpack(wire.pack(result))
    assert arrived == replace(result, snapshot=replace(result.snapshot, before=None))


def test_a_result_without_a_summary() -> None:
    """A build error travels too."""
    result = Result("net", State.BUILD_ERROR, error="E   KeyError: 'x'", files=("a.yaml",))
    assert wire.unpack(wire.pack(result)) == result


def test_deep_models_stay_small() -> None:
    """A table of 8,000 rows is a few kilobytes on the wire."""
    result = Result("gpt", State.OK, gpt(126, 64))
    assert len(wire.pack(result)) < 100_000
