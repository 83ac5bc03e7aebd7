"""Levers and the search for the largest size, with memory by a formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pytest_modelbudget.planner import Inference, Recipe, Training
from pytest_modelbudget.planner.advice import alternatives, largest_fitting_size, levers, with_size
from pytest_modelbudget.summary import Part, Plan

LAWS: dict[str, tuple[Callable[[int], int], int]] = {
    "a line": (lambda size: 7 * size, 6),
    "a square": (lambda size: 3 * size * size + 50 * size, 14),
    "a line in steps, as segments make it": (lambda size: 20 * (7 * size // 20), 9),
    "a line that flattens out below the limit": (lambda size: 1000 * min(size, 40) + size, 16),
    "a cliff": (lambda size: 5 if size < 600 else 10**9, 40),
}
"""Bytes by size, and the number of looks that may be taken."""


@pytest.mark.parametrize("start", [1, 3, 32, 1000])
@pytest.mark.parametrize("limit", [0, 1, 2, 31, 32, 33, 777, 1000])
@pytest.mark.parametrize("law", LAWS)
def test_the_largest_size_is_found_from_anywhere(law: str, limit: int, start: int) -> None:
    """Exactly the largest size within the memory, in few looks where it grows in proportion."""
    need, looks = LAWS[law]
    memory = min(need(limit), 10**6)
    expected = max(size for size in range(2000) if need(size) <= memory)
    asked: list[int] = []

    def room(size: int) -> int:
        asked.append(size)
        return memory - need(size)

    assert largest_fitting_size(room, start) == expected
    assert len(asked) == len(set(asked)) <= looks


def test_the_largest_size_is_not_known_where_a_need_is_not() -> None:
    """No guess: neither at the start nor on the way, nor where everything fits."""
    assert largest_fitting_size(lambda size: None, 4) is None
    assert largest_fitting_size(lambda size: 100 - size if size < 8 else None, 4) is None
    assert largest_fitting_size(lambda size: 1, 4) is None
    assert largest_fitting_size(lambda size: 2**40 - size, 4) is None


def bytes_of(recipe: Recipe) -> int:
    """A made-up model: 100 for each sample, 1,000 of weights, states by optimizer."""
    assert isinstance(recipe, Training)
    states = {"adamw": 2000, "adamw-8bit": 500, "adafactor": 10}[str(recipe.optimizer)]
    activations = 100 * (recipe.batch or 1) // (1 if recipe.checkpointing == "none" else 10)
    half = 2 if recipe.precision == "bf16" else 1
    return (1000 + states + activations) // half


def measure(recipe: Recipe) -> Plan:
    return Plan("training", "", None if recipe.precision == "bf16-mixed" else bytes_of(recipe))


def test_levers_are_ranked_by_what_they_save() -> None:
    """Hand-worked: 6,200 bytes at first; what cannot be run or saves nothing is left out."""
    recipe = Training(batch=32)
    found = levers(recipe, Plan("training", "", bytes_of(recipe)), measure, batch=32)
    assert [(lever.name, lever.peak_bytes) for lever in found] == [
        ("precision: bf16", 3100),
        ("checkpointing: blocks", 3320),
        ("optimizer: adafactor", 4210),
        ("gradient_accumulation: 2, batch: 16", 4600),
        ("optimizer: adamw-8bit", 4700),
    ]


def test_what_is_done_already_is_no_lever() -> None:
    """Each order changes something."""
    done = Training(precision="bf16", checkpointing="blocks", optimizer="sgd", sharding={"fsdp": 2}, outputs="dropped")
    assert list(alternatives(done, batch=1)) == []
    assert [name for name, _, _ in alternatives(Inference())] == ["precision: bf16"]
    assert all(changed != Training(batch=8) for _, changed, _ in alternatives(Training(batch=8), batch=8))


def test_a_plan_without_a_peak_has_no_levers() -> None:
    """There is nothing to compare with."""
    assert levers(Training(), Plan("training", "", None), measure) == ()


def test_a_dimension_at_another_size() -> None:
    """The batch has a key of its own."""
    assert with_size(Training(), "B", 4) == replace(Training(), batch=4)
    assert with_size(Training(dims={"T": 2}), "T", 4).dims == {"T": 4}


@pytest.mark.parametrize(
    ("phase", "outputs", "looked_at"),
    [
        pytest.param("backward", 40, set(), id="the peak is elsewhere, and outputs are less than a hundredth of it"),
        pytest.param("optimizer", 0, {"fused: true"}, id="the peak is in the optimizer"),
        pytest.param("backward", 62, {"outputs: dropped"}, id="outputs are a hundredth of the peak"),
    ],
)
def test_what_surely_saves_too_little_is_not_recorded(phase: Any, outputs: int, looked_at: set[str]) -> None:
    """A peak that is not in the optimizer stays without its temporaries, and no more than the outputs goes with them."""
    plan = Plan("training", "", 6200, phase=phase, parts=(Part("output", "", outputs),), reserved_bytes=7000)
    names = {name for name, _, _ in alternatives(Training(batch=32), 32, plan)}
    assert names & {"fused: true", "outputs: dropped"} == looked_at
