"""Summaries as JSON that anybody may have written: read when they are some, else told with the place."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Growth, Summary
from tests.builders import gpt, serving, towers, training
from tests.edits import put


@pytest.mark.parametrize(
    "summary",
    [
        pytest.param(towers(), id="towers"),
        pytest.param(gpt(), id="tied weights and buffers"),
        pytest.param(replace(towers(), plans=(training(), serving())), id="plans"),
        pytest.param(
            replace(towers(), growth=(Growth("B", "flops", 2, ((2, 4), (4, 8)), 1, 1.0, 2, 0.0), Growth("T", "flops", 8, reason="?"))),
            id="growth",
        ),
        pytest.param(replace(towers(), samples=9, sizes=(("B", 1),), notes=("a",), real_run=True), id="what else there is"),
    ],
)  # fmt: skip
def test_what_to_dict_gives_is_read(summary: Summary) -> None:
    """Every field of it."""
    assert Summary.checked(json.loads(json.dumps(summary.to_dict()))) == summary


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(put("model", value=7), "model: ", id="a model"),
        pytest.param(put("framework", value=None), "framework: ", id="a framework"),
        pytest.param(put("layers", value={}), "layers: ", id="layers"),
        pytest.param(put("layers", 2, value=[]), "layers.2: ", id="a layer"),
        pytest.param(put("layers", 2, "path", value=["a"]), "layers.2.path: ", id="a path"),
        pytest.param(put("layers", 2, "path", value="user"), "two layers have the same path", id="a path twice"),
        pytest.param(put("layers", 2, "calls", value=-1), "layers.2.calls: ", id="negative calls"),
        pytest.param(put("layers", 2, "calls", value=True), "layers.2.calls: ", id="true calls"),
        pytest.param(put("layers", 2, "calls", value=1.5), "layers.2.calls: ", id="half a call"),
        pytest.param(put("layers", 2, "outputs", value="[B, 50]"), "layers.2.outputs: ", id="outputs"),
        pytest.param(put("layers", 2, "outputs", value=[["x"]]), "'x' is not a tensor", id="a tensor"),
        pytest.param(put("layers", 2, "connected_to", value=["user"]), "layers.2.connected_to.0: ", id="sources"),
        pytest.param(put("layers", 2, "weights", 0, "shape", value=[-5]), "layers.2.weights.0.shape.0: ", id="a shape"),
        pytest.param(put("layers", 2, "weights", 0, "shape", value=[10**18 - 1] * 60), "more elements than any", id="elements"),
        pytest.param(put("layers", 2, "weights", 0, "shape", value=[2] * 99), "layers.2.weights.0.shape: ", id="dimensions"),
        pytest.param(put("layers", 2, "weights", 0, "role", value="x"), "layers.2.weights.0.role: ", id="a role"),
        pytest.param(put("layers", 2, "weights", 0, "more", value=1), "layers.2.weights.0.more: ", id="an unknown field"),
        pytest.param(put("flops", value=7), "flops: ", id="FLOPs"),
        pytest.param(put("flops", "value", value="7"), "flops.value: ", id="FLOPs as text"),
        pytest.param(put("flops", "value", value=10**30), "flops.value: ", id="FLOPs without end"),
        pytest.param(put("flops", "uncounted", value=[["a", 1]]), "flops.uncounted: ", id="operators"),
        pytest.param(put("sizes", value={"B": -1}), "sizes.B: ", id="a size"),
        pytest.param(put("notes", value="a"), "notes: ", id="notes"),
        pytest.param(put("plans", 0, "peak_bytes", value="7"), "plans.0.peak_bytes: ", id="a peak"),
        pytest.param(put("plans", 0, "parts", 0, "role", value="x"), "plans.0.parts.0.role: ", id="a part"),
        pytest.param(put("plans", 0, "parts", 0, "more", value=1), "a field that is not known", id="an unknown field of a part"),
        pytest.param(put("growth", value=[{"dim": "B"}]), "growth.0.metric: is missing", id="growth"),
    ],
)  # fmt: skip
def test_what_is_none_is_told_with_its_place(change: Callable[[Any], None], words: str) -> None:
    """And never found out later, in the middle of a table."""
    data = replace(towers(), plans=(training(),)).to_dict()
    change(data)
    with pytest.raises(ModelBudgetError) as caught:
        Summary.checked(data)
    assert words in str(caught.value)


@pytest.mark.parametrize("data", [None, 7, "x", [], {}, [1, 2]], ids=repr)
def test_data_of_another_kind_is_no_summary(data: object) -> None:
    """At its root, or for what it lacks."""
    with pytest.raises(ModelBudgetError, match=r"^(it|model): "):
        Summary.checked(data)


def test_many_layers_are_checked() -> None:
    """A megabyte of them."""
    data = towers().to_dict()
    row = {"type": "T", "container": False, "calls": 1, "outputs": [], "connected_to": [], "flops": None, "weights": []}
    data["layers"] = [{"path": str(number), **row} for number in range(8_000)]
    assert len(Summary.checked(data).layers) == 8_000
