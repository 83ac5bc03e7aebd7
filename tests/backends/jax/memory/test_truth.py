"""Bounds and sums of XLA against real steps and passes, whose memory `tests/benchmarks/jax_step_truth.py` measured."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pytest_modelbudget import plan
from tests.benchmarks.jax_step_truth import MIB, MODELS, declared

TABLE = Path(__file__).parents[3] / "data/memory/jax_steps.csv"
with TABLE.open(encoding="utf-8") as file:
    TRUTHS = list(csv.DictReader(line for line in file if not line.startswith("#")))

FAST = ("eqx-mlp", "linen-lstm")
ROWS = [
    pytest.param(
        row["model"],
        row["case"],
        float(row["truth"]) * MIB,
        id=f"{row['model']}-{row['case']}",
        marks=() if row["model"] in FAST else pytest.mark.slow,
    )
    for row in TRUTHS
]


@pytest.mark.parametrize(("model", "case", "truth"), ROWS)
def test_the_truth_is_between_the_bounds(model: str, case: str, truth: float) -> None:
    """What is held all the time is less than a real run takes, all arrays without reuse are more."""
    build, _, batch = MODELS[model]
    run = {"batch": batch, **({"optimizer": "adam", "loss": "cross_entropy"} if case == "training" else {})}
    result = plan(build, declared(model, training=case == "training"), **{case: run})
    assert result.low_bytes is not None
    assert result.high_bytes is not None
    assert result.low_bytes <= truth <= 1.01 * result.high_bytes


@pytest.mark.slow
@pytest.mark.parametrize("model", ["nnx-mlp", "nnx-scan", "eqx-lstm"])
def test_the_sum_of_xla_is_near_the_truth_or_is_a_bound(model: str) -> None:
    """A pass without gradients within 2 %; a step at most 7 % too low where it is said to be the peak."""
    build, _, batch = MODELS[model]
    truths = {row["case"]: float(row["truth"]) * MIB for row in TRUTHS if row["model"] == model}
    called = plan(build, declared(model, training=False), inference={"batch": batch, "compile": "xla"})
    recipe = {"batch": batch, "compile": "xla", "optimizer": "adam", "loss": "cross_entropy"}
    step = plan(build, declared(model, training=True), training=recipe)
    for result, case, below in ((called, "inference", 0.02), (step, "training", 0.07)):
        assert result.low_bytes is not None
        assert result.high_bytes is not None
        assert result.low_bytes <= 1.02 * truths[case]
        assert truths[case] <= 1.02 * result.high_bytes
        if result.peak_bytes is not None:
            assert result.peak_bytes >= (1 - below) * truths[case]
