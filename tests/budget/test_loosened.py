"""Limits that hold back less than those of the base."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_modelbudget import budget
from pytest_modelbudget.budget import loosened_limits
from pytest_modelbudget.errors import Place

HERE = Place("modelbudget.yaml", 9)


def found(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is said; limits stand in line 5, the model in line 9."""
    old, new = (tuple(budget.parse(one, lambda _: Place("modelbudget.yaml", 5))) for one in (before, now))
    return [str(one) for one in loosened_limits("net", budget.merge(new), budget.merge(old), HERE)]


def waiver(**changed: object) -> dict[str, Any]:
    """A waiver of params."""
    return {"params": {"waive": {"max": "31M", "until": "2030-01-31", "reason": "ABC-1", **changed}}}


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        pytest.param({"params": "1k"}, {"params": "1k"}, [], id="equal"),
        pytest.param({"params": "1k"}, {"params": 999}, [], id="tighter"),
        pytest.param({"params": "1k"}, {"params": 1001}, ["params max 1,000 -> 1,001 (+1, +0.1%)  [modelbudget.yaml:5]"], id="max raised"),
        pytest.param({"params": "1k"}, {}, ["params max 1,000 -> no limit  [modelbudget.yaml:9]"], id="max removed"),
        pytest.param({}, {"params": "1k"}, [], id="max added"),
        pytest.param({"params": {"min": 10}}, {"params": {"min": 9}}, ["params min 10 -> 9 (-1, -10.0%)  [modelbudget.yaml:5]"], id="min lowered"),
        pytest.param({"params": {"min": 10}}, {"params": {"min": 11}}, [], id="min raised"),
        pytest.param({"params": {"growth": "+2%"}}, {"params": {"growth": "+3%"}}, ["params growth +2% -> +3%  [modelbudget.yaml:5]"], id="growth raised"),
        pytest.param({"params": {"growth": "+3%"}}, {"params": {"growth": "+2%"}}, [], id="growth lowered"),
        pytest.param({"params": {"growth": "+2%"}}, {"params": {"growth": "+500k"}}, ["params growth +2% -> +500,000  [modelbudget.yaml:5]"], id="growth of another kind"),
        pytest.param({"params": {"growth": "+2%"}}, {"params": {"growth": "+0"}}, [], id="no growth at all is tighter"),
        pytest.param({"params": {"growth": "+2%"}}, {"params": {"growth": None}}, ["params growth +2% -> no limit  [modelbudget.yaml:9]"], id="growth lifted"),
        pytest.param({"params": {"max": "1k", "warn": "90%"}}, {"params": {"max": "1k", "warn": "95%"}}, [], id="a warning is no guard"),
        pytest.param({"layers": {"a*": {"params": 5}}}, {"layers": {"a*": {"params": 6}}}, ["a* params max 5 -> 6 (+1, +20.0%)  [modelbudget.yaml:5]"], id="layers"),
        pytest.param({"layers": {"a*": {"params": 5}}}, {"layers": {"b*": {"params": 5}}}, ["a* params max 5 -> no limit  [modelbudget.yaml:9]"], id="another glob"),
        pytest.param({"largest_layer_share": "80%"}, {"largest_layer_share": "80.5%"}, ["largest_layer_share max 80% -> 80.5% (+0.5 points)  [modelbudget.yaml:5]"], id="share"),
        pytest.param({}, {"inherited": "warn"}, ["all limits inherited fail -> warn  [modelbudget.yaml:5]"], id="inherited for all"),
        pytest.param({"params": 5}, {"params": {"max": 5, "inherited": "warn"}}, ["params inherited fail -> warn  [modelbudget.yaml:5]"], id="inherited for one"),
    ],
)  # fmt: skip
def test_loosened(before: dict[str, Any], now: dict[str, Any], expected: list[str]) -> None:
    """Each with both values, and the line where it stands now."""
    assert found(before, now) == [f"budget loosened: net: {line}" for line in expected]


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        pytest.param({}, waiver(), "waiver added: net: params up to 31,000,000 until 2030-01-31: ABC-1  [modelbudget.yaml:5]", id="added"),
        pytest.param(waiver(), waiver(), None, id="equal"),
        pytest.param(waiver(), waiver(reason="ABC-2"), None, id="another reason"),
        pytest.param(waiver(), waiver(max="30M"), None, id="smaller"),
        pytest.param(waiver(), {}, None, id="removed"),
        pytest.param(waiver(), waiver(until="2030-02-28"), "waiver extended: net: params up to 31,000,000 until 2030-02-28: ABC-1 (before: up to 31,000,000 until 2030-01-31)  [modelbudget.yaml:5]", id="longer"),
        pytest.param(waiver(), waiver(max="32M"), "waiver extended: net: params up to 32,000,000 until 2030-01-31: ABC-1 (before: up to 31,000,000 until 2030-01-31)  [modelbudget.yaml:5]", id="wider"),
    ],
)  # fmt: skip
def test_waivers(before: dict[str, Any], now: dict[str, Any], expected: str | None) -> None:
    """A new one, and one that is longer or wider."""
    assert found(before, now) == ([expected] if expected else [])
