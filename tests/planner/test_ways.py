"""The cheapest way to fit a device, with memory by a formula, and the recipe that is pasted for it."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_modelbudget.loading import read_yaml
from pytest_modelbudget.planner import Inference, Recipe, Training, written
from pytest_modelbudget.planner.advice import alternatives
from pytest_modelbudget.planner.devices import has_bfloat16
from pytest_modelbudget.planner.known_states import KnownStates
from pytest_modelbudget.planner.ways import MOST_RECORDINGS, cheapest_way
from pytest_modelbudget.summary import Fit, Part, Plan


def bytes_of(recipe: Recipe) -> int:
    """A made-up model: 1,000 of weights, states by optimizer, 100 for each sample, 500 of temporaries of AdamW."""
    assert isinstance(recipe, Training)
    states = {"adamw": 2000, "adamw-8bit": 500, "adafactor": 10}[str(recipe.optimizer)]
    activations = 100 * (recipe.batch or 1) // (1 if recipe.checkpointing == "none" else 10)
    temporaries = 0 if recipe.fused or recipe.optimizer != "adamw" else 500
    ranks = 1 if recipe.sharding is None else 8
    return (1000 + states + temporaries) // ranks // (2 if recipe.precision == "bf16" else 1) + activations


@pytest.mark.parametrize(
    ("capacity", "recipe"),
    [
        pytest.param(6200, "{batch: 32, fused: true}", id="free"),
        pytest.param(4000, "{batch: 8, gradient_accumulation: 4, fused: true}", id="passes, the largest that fit"),
        pytest.param(
            3050, "{batch: 4, gradient_accumulation: 8, checkpointing: blocks, fused: true}", id="more compute, too",
        ),
        pytest.param(1600, "{batch: 1, optimizer: adamw-8bit, gradient_accumulation: 32}", id="other numerics in its place"),
        pytest.param(
            400, "{batch: 2, gradient_accumulation: 16, checkpointing: blocks, sharding: {fsdp: 8}, fused: true}", id="devices, the rest cheap"
        ),
    ],
)  # fmt: skip
def test_the_cheapest_way(capacity: int, recipe: str) -> None:
    """Worked out by hand: 6,700 bytes at first; nothing dearer than needed, and nothing that can be left out."""
    asked: list[Recipe] = []

    def fit_of(recipe: Recipe) -> Fit:
        asked.append(recipe)
        return Fit("card", capacity, bytes_of(recipe))

    way = cheapest_way(Training(batch=32), "card", fit_of, batch=32)
    assert read_section(way.recipe) == read_section(f"training: {recipe}")
    assert way.tried == len(asked) <= MOST_RECORDINGS


def test_passes_of_any_equal_part() -> None:
    """A batch that halves to an odd number is cut further, and one that does not halve, too."""

    def recipe_of(batch: int, capacity: int) -> str:
        return cheapest_way(
            Training(batch=batch), "card", lambda recipe: Fit("card", capacity, bytes_of(recipe)), batch=batch
        ).recipe

    assert recipe_of(6, 3200) == "training: {batch: 2, gradient_accumulation: 3, fused: true}"
    assert recipe_of(7, 3100) == "training: {batch: 1, gradient_accumulation: 7, fused: true}"


def test_no_way_to_what_a_device_only_emulates() -> None:
    """Where there is no bfloat16, float16 is told, in training beside weights in float32 alone."""
    asked: list[Recipe] = []

    def fit_of(recipe: Recipe) -> Fit:
        asked.append(recipe)
        return Fit("T4", 1, bytes_of(recipe) if isinstance(recipe, Training) else 2)

    for recipe in (Training(batch=4), Inference()):
        cheapest_way(recipe, "T4", fit_of, batch=4, bfloat16=has_bfloat16("T4"))

    assert {recipe.precision for recipe in asked if isinstance(recipe, Training)} == {"fp32", "fp16-mixed"}
    assert {recipe.precision for recipe in asked if isinstance(recipe, Inference)} == {"fp16"}
    assert [has_bfloat16(name) for name in ("T4", "V100", "A100 80GB", "MI300X", "8 GB")] == [
        False,
        False,
        True,
        True,
        True,
    ]


def read_section(text: str) -> Recipe | None:
    """The recipe of a line of a manifest."""
    [(title, section)] = read_yaml(text).data.items()
    return written.recipe(title, section)


def test_where_nothing_fits() -> None:
    """It is said, with the number of plans; what cannot be planned is no way, and neither is what is tight."""
    nothing = cheapest_way(Training(batch=32), "card", lambda recipe: Fit("card", 1, bytes_of(recipe)), batch=32)
    assert (nothing.recipe, nothing.tried) == ("", 9)
    assert cheapest_way(Inference(), "card", lambda recipe: None).recipe == ""
    assert (
        cheapest_way(Inference(), "card", lambda recipe: Fit("card", 10, 10, 9, ())).recipe
        == "inference: {precision: bf16}"
    )


def test_changes_that_a_later_one_takes_back_are_not_told() -> None:
    """An optimizer in 8 bits has no fused implementation."""
    way = cheapest_way(Training(), "card", lambda recipe: Fit("card", 1700, bytes_of(recipe)))
    assert way.changes == ("optimizer: adamw-8bit",)


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(Training(), id="defaults"),
        pytest.param(Inference(precision="bf16", kv_cache=8), id="inference"),
        pytest.param(
            Training(
                batch=8, dims={"T": 5}, trainable=("head.*", "no"), sharding={"fsdp": 8, "casts": "policy"},
                lora={"rank": 4, "targets": ["q: {x}"]}, optimizer_options={"betas": [0.9, 0.95], "lr": 1e-5},
                optimizer="my.module:make", foreach=False,
            ),
            id="every kind of value",
        ),
    ],
)  # fmt: skip
def test_a_pasted_recipe_is_the_same(recipe: Any) -> None:
    """One line, which a manifest reads back as it was."""
    text = written.recipe_text(recipe)
    assert "\n" not in text
    assert read_section(text) == recipe


def plan_by_formula(recipe: Recipe) -> Plan:
    """The made-up model, recorded: what is alive at its peak."""
    assert isinstance(recipe, Training)
    share = (1 if recipe.sharding is None else 8) * (2 if recipe.precision == "bf16" else 1)
    states = {"adamw": 2000, "adamw-8bit": 500, "adafactor": 10}[str(recipe.optimizer)]
    parts = Part("param", "", 1000 // share), Part("optimizer", "", states // share)
    return Plan("training", "", bytes_of(recipe), parts=parts, reserved_bytes=bytes_of(recipe))


@pytest.mark.parametrize("capacity", [400, 1600, 3050, 4000, 6200])
def test_what_its_states_alone_fill_is_not_recorded(capacity: int) -> None:
    """The way is the same as without what is known, and no run is recorded whose known states are too large."""
    base, known, recorded = Training(batch=32), KnownStates(), []
    for recipe in (base, *(changed for _, changed, _ in alternatives(base, 32))):
        known.note(recipe, plan_by_formula(recipe))

    def fit_of(recipe: Recipe) -> Fit:
        recorded.append(recipe)
        return Fit("card", capacity, bytes_of(recipe))

    way = cheapest_way(base, "card", fit_of, batch=32, known=known, capacity=capacity)
    assert all(known.least_bytes(recipe) <= bytes_of(recipe) for recipe in recorded)
    assert all(known.least_bytes(recipe) <= capacity for recipe in recorded)
    unhurried = cheapest_way(base, "card", lambda recipe: Fit("card", capacity, bytes_of(recipe)), batch=32)
    assert (way.recipe, way.changes) == (unhurried.recipe, unhurried.changes)
    assert way.tried == len(recorded) <= unhurried.tried


def test_a_change_that_raises_the_need_hides_none_that_does() -> None:
    """Autocast takes more here, and a gentler change than half precision fits without it alone."""

    def fit_of(recipe: Recipe) -> Fit:
        return Fit("card", 1700, bytes_of(recipe) + (2000 if recipe.precision == "bf16-mixed" else 0))

    assert cheapest_way(Training(), "card", fit_of).changes == ("optimizer: adamw-8bit",)


def test_changes_that_exclude_each_other() -> None:
    """Where an optimizer cannot be sharded and nothing but both would do, the dearest that goes together is found."""

    def fit_of(recipe: Recipe) -> Fit | None:
        assert isinstance(recipe, Training)
        return None if recipe.optimizer == "adafactor" and recipe.sharding else Fit("card", 110, bytes_of(recipe))

    assert "adamw-8bit" in cheapest_way(Training(batch=32), "card", fit_of, batch=32).recipe
