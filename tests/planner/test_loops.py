"""Loops by name: what they decide, what a recipe says itself, and what is assumed of the rest."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from pytest_modelbudget.planner import Training
from pytest_modelbudget.planner.loops import LOOPS, assumptions, resolved
from pytest_modelbudget.planner.recipe import LoopName, describe


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        pytest.param({}, ("kept", "before", None), id="nothing"),
        pytest.param({"loop": "torch"}, ("kept", "before", None), id="the loop of torch's documentation"),
        pytest.param({"loop": "hf-trainer"}, ("dropped", "after", True), id="a loop"),
        pytest.param({"loop": "lightning"}, ("dropped", "before-backward", None), id="the user's own optimizer"),
        pytest.param({"loop": "hf-trainer", "outputs": "kept"}, ("kept", "after", True), id="a key wins"),
        pytest.param({"loop": "nanogpt", "fused": False}, ("kept", "after", False), id="an implementation wins"),
        pytest.param({"loop": "nanogpt", "foreach": True}, ("kept", "after", None), id="several tensors at a time"),
        pytest.param({"loop": "nanogpt", "optimizer": "sgd"}, ("kept", "after", None), id="AdamW alone is fused"),
        pytest.param({"loop": "nanogpt", "kernels": "cpu"}, ("kept", "after", None), id="fused on GPUs alone"),
    ],
)
def test_what_a_loop_decides(keys: dict[str, Any], expected: tuple[object, ...]) -> None:
    """The loop fills in what the recipe leaves open."""
    recipe = resolved(Training(**keys))
    assert (recipe.outputs, recipe.zero_grad, recipe.fused) == expected


def test_what_is_assumed() -> None:
    """A named loop leaves nothing to assume, and what is assumed all the same changes no word of a recipe."""
    assert assumptions(Training()) == ("outputs", "zero_grad")
    assert assumptions(Training(outputs="kept")) == ("zero_grad",)
    assert assumptions(Training(loop="torch")) == ()
    assert describe(Training(outputs="kept", zero_grad="before")) == describe(Training())
    assert describe(Training(loop="nanogpt", zero_grad="before")) == "adamw, fp32, zero_grad before, loop nanogpt"


def test_each_loop_has_its_source() -> None:
    """Every name is known, and says where its habits are to be read."""
    assert set(LOOPS) == set(get_args(LoopName))
    assert all(loop.source.startswith("https://") for loop in LOOPS.values())
