"""Pipelines as recipes write them, and which blocks their stages have."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Training
from pytest_modelbudget.planner.pipeline import cuts_of, pipeline_of
from pytest_modelbudget.planner.recipe import describe
from pytest_modelbudget.planner.written import recipe, recipe_text


def names(count: int) -> list[str]:
    return [f"layers.{index}" for index in range(count)]


@pytest.mark.parametrize(
    ("ranks", "layers", "expected"),
    [
        pytest.param(2, 3, [2, 1], id="an end counts as a layer"),
        pytest.param(4, 32, [8, 9, 8, 7], id="earlier stages have what does not divide"),
        pytest.param(8, 32, [4, 5, 4, 4, 4, 4, 4, 3], id="two of eight have more"),
        pytest.param(16, 126, [7, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 7], id="126 layers, as Llama 405B has"),
    ],
)
def test_blocks_are_dealt_out_as_torchtitan_does(ranks: int, layers: int, expected: list[int]) -> None:
    """Worked out by hand from the rule of its `generate_llm_fqn_per_model_part`."""
    cuts = cuts_of(pipeline_of({"ranks": ranks}), names(layers))
    assert [last - first for first, last in pairwise([0, *cuts, layers])] == expected


def test_stages_of_ranks() -> None:
    """One each, in rounds, or in the shape of a V."""

    def stages(schedule: str) -> list[tuple[int, ...]]:
        pipeline = pipeline_of({"ranks": 3, "schedule": schedule})
        return [pipeline.stages_of(rank) for rank in range(3)]

    assert stages("1f1b") == [(0,), (1,), (2,)]
    assert stages("interleaved1f1b") == [(0, 3), (1, 4), (2, 5)]
    assert stages("zbvzerobubble") == [(0, 5), (1, 4), (2, 3)]


def test_named_blocks() -> None:
    """Stages begin where the recipe says."""
    assert cuts_of(pipeline_of({"ranks": 3, "split": ["layers.1", "layers.5"]}), names(6)) == (1, 5)


@pytest.mark.parametrize(
    ("written", "layers", "mistake"),
    [
        ({"ranks": 2, "split": ["layers.9"]}, 6, "layers.9 is none of the blocks, which are layers.0 to layers.5"),
        ({"ranks": 3, "split": ["layers.4", "layers.2"]}, 6, "in the order they run in"),
        ({"ranks": 2, "split": ["layers.0"]}, 6, "none of them the first"),
        ({"ranks": 4}, 4, "4 repeated blocks are too few for 4 stages"),
    ],
)
def test_blocks_that_do_not_fit(written: dict[str, Any], layers: int, mistake: str) -> None:
    """Names that are none, and too few blocks."""
    with pytest.raises(ModelBudgetError, match=re.escape(mistake)):
        cuts_of(pipeline_of(written), names(layers))


@pytest.mark.parametrize(
    ("written", "mistake"),
    [
        (4, "write {ranks: 4"),
        ({"microbatches": 4}, "write {ranks: 4"),
        ({"ranks": 2, "stages": 4}, "with keys of ranks, schedule"),
        ({"ranks": 1}, "one rank alone is no pipeline"),
        ({"ranks": 2, "microbatches": 0}, "microbatches: write a whole number"),
        ({"ranks": 2, "schedule": "chimera"}, "schedule: write one of gpipe, 1f1b"),
        ({"ranks": 2, "stages_per_rank": 2}, "1f1b has one stage on each rank"),
        ({"ranks": 2, "schedule": "interleaved1f1b", "stages_per_rank": 1}, "has several stages on each rank"),
        ({"ranks": 4, "split": ["layers.1"]}, "4 stages begin at 3 blocks"),
        ({"ranks": 2, "split": "layers.1"}, "split: write a list of names"),
        ({"ranks": 4, "microbatches": 2}, "at least as many microbatches as ranks, 4"),
    ],
)
def test_mistakes(written: Any, mistake: str) -> None:
    """Each names the key and the cure."""
    with pytest.raises(ModelBudgetError, match=rf"training\.pipeline: .*{re.escape(mistake)}"):
        recipe("training", {"pipeline": written})


def test_words_and_text() -> None:
    """A recipe says its pipeline, and is read back from its text."""
    written = {"ranks": 2, "schedule": "Interleaved1F1B", "microbatches": 8, "split": ["h.1", "h.2", "h.3"]}
    training = recipe("training", {"pipeline": written})
    assert isinstance(training, Training)
    words = "pipeline of 2 ranks with 2 stages each, interleaved1f1b, 8 microbatches, split at h.1 and h.2 and h.3"
    assert words in describe(training)
    assert "ranks: 2" in recipe_text(training)
    assert recipe("training", {"pipeline": "none"}) == Training()
