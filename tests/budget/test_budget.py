"""Limits: how they are read, which of several holds, and what breaks them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_modelbudget import budget
from pytest_modelbudget.budget import Budget, Violation, judge, merge
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError, Place
from pytest_modelbudget.summary import Flops, Summary
from pytest_modelbudget.summary.metrics import METRICS
from tests.builders import gpt, towers


def limits(written: dict[str, Any]) -> tuple[Budget, ...]:
    """Budgets as a manifest would give them."""
    return tuple(budget.parse(written, lambda below: Place("modelbudget.yaml", 7)))


def broken(written: dict[str, Any], summary: Summary | None = None) -> list[str]:
    """The violations of `format_limit`, as text."""
    return [str(violation) for violation in judge(summary or towers(), limits(written))[0]]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        pytest.param({"params": 6201}, [], id="exactly at the limit"),
        pytest.param({"params": 6200}, ["params: 6,201 > 6,200 (+1, +<0.1%)"], id="over by one"),
        pytest.param({"params": "5k"}, ["params: 6,201 > 5,000 (+1,201, +24.0%)"], id="over"),
        pytest.param({"params": {"min": "10k"}}, ["params: 6,201 < 10,000 (-3,799, -38.0%)"], id="below a min"),
        pytest.param({"params": {"min": 6201, "max": 6201}}, [], id="exactly between"),
        pytest.param({"params": 0}, ["params: 6,201 > 0 (+6,201)"], id="over zero"),
        pytest.param({"weight_bytes": "24 kB"}, ["weight_bytes: 24,804 bytes > 24,000 bytes (+804, +3.4%)"], id="bytes"),
        pytest.param({"flops": "6 kMACs"}, ["flops: 12,200 FLOPs > 12,000 FLOPs (+200, +1.7%)"], id="flops in macs"),
        pytest.param({"layers": 5}, ["layers: 6 > 5 (+1, +20.0%)"], id="number of layers"),
        pytest.param({"layers": {"max": 5}}, ["layers: 6 > 5 (+1, +20.0%)"], id="number of layers, spelt out"),
        pytest.param({"largest_layer_share": "80%"}, ["largest_layer_share: 81.4385% > 80% (+1.438 points)"], id="share"),
        pytest.param({"layers": {"dense*": {"params": "1k"}}}, [
            "dense params: 5,050 > 1,000 (+4,050, +405.0%)", "dense_1 params: 1,050 > 1,000 (+50, +5.0%)",
        ], id="each layer of a glob"),
        pytest.param({"layers": {"dense": {"share": "50%"}}}, ["dense share: 81.4385% > 50% (+31.44 points)"], id="layer share"),
        pytest.param({"layers": {"dens": {"params": 1}}}, [
            "dens params: no layer matches 'dens'; the nearest is 'dense'",
        ], id="a glob that matches nothing cannot pass"),
        pytest.param({"params": "6_300", "flops": "1 FLOP"}, ["flops: 12,200 FLOPs > 1 FLOPs (+12,199, +1219900.0%)"], id="one of two"),
        pytest.param({"params_per_sample": 3}, [
            "params_per_sample: unknown: give the size of the training set as samples",
        ], id="unknown is no pass"),
    ],
)  # fmt: skip
def test_violations(written: dict[str, Any], expected: list[str]) -> None:
    """Every limit that does not hold is named with number, limit and distance."""
    assert broken(written) == expected


def test_a_container_is_limited_with_all_inside_it() -> None:
    """The block holds a norm of 8 and an 8x8 product: 72 params."""
    assert broken({"layers": {"h.0": {"params": 71}}}, gpt()) == ["h.0 params: 72 > 71 (+1, +1.4%)"]


@pytest.mark.parametrize(
    ("flops", "written", "expected"),
    [
        pytest.param(Flops(100, (("aten.foo", 2),)), {"flops": "99 FLOPs"}, "flops: 100 FLOPs > 99 FLOPs (+1, +1.0%); a lower bound", id="over for sure"),
        pytest.param(Flops(100, (("aten.foo", 2),)), {"flops": "1 GFLOPs"}, "flops: unknown (at least 100, no formula for aten.foo x2)", id="perhaps over"),
        pytest.param(Flops(100, (("aten.foo", 2),)), {"flops": {"min": "101 FLOPs"}}, "flops: unknown (at least 100, no formula for aten.foo x2)", id="perhaps below"),
        pytest.param(Flops(None), {"flops": "1 GFLOPs"}, "flops: unknown, so the limit cannot be checked", id="unknown"),
    ],
)  # fmt: skip
def test_what_is_not_known_does_not_pass(flops: Flops, written: dict[str, Any], expected: str) -> None:
    """A lower bound breaks a limit below it, and any other limit on it fails with the reason."""
    assert broken(written, replace(towers(), flops=flops)) == [expected]


def test_a_lower_bound_satisfies_a_min() -> None:
    """At least 100 is at least 100."""
    assert broken({"flops": {"min": "100 FLOPs"}}, replace(towers(), flops=Flops(100, (("aten.foo", 2),)))) == []


@pytest.mark.parametrize(
    ("maximum", "severities"),
    [
        pytest.param(6_900, [], id="below the zone"),
        pytest.param(6_500, ["warn"], id="in the zone"),
        pytest.param(6_201, ["warn"], id="at the limit"),
        pytest.param(6_200, ["fail"], id="over: no second line"),
    ],
)
def test_warn_zone(maximum: int, severities: list[str]) -> None:
    """From 95% of the max on there is a warning, above the max a failure."""
    found, _ = judge(towers(), limits({"params": {"max": maximum, "warn": "95%"}}))
    assert [violation.severity for violation in found] == severities


def test_warn_without_max_has_nothing_to_be_a_share_of() -> None:
    """A default warn is quiet for models without a max of that metric."""
    assert broken({"params": {"warn": "95%"}}) == []


def test_more_specific_limits_replace_inherited_ones_bound_by_bound() -> None:
    """The model's max takes the place of the default's, the default's warn stays, and null lifts."""
    default = limits({"params": {"max": "1M", "warn": "90%"}, "flops": "1 GFLOPs"})
    model = limits({"params": "2M", "flops": None})
    merged = {(one.metric, one.bound): one.limit for one in merge(default, model)}
    assert merged[("params", "max")] == 2_000_000
    assert set(merged) == {("params", "max"), ("params", "warn")}


def test_what_is_lifted_and_was_never_there_limits_nothing() -> None:
    """A model of code may say null where no manifest says anything."""
    entry = ModelEntry("net", build="a:b", budgets={"params": None, "flops": {"max": None}, "fits": None})
    assert judge(towers(), entry.parsed_budgets) == ((), ())


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"parms": 1}, "did you mean 'params'"),
        ({"params": {"maximum": 1}}, "did you mean 'max'"),
        ({"params": {"floor": 3}}, "this version enforces max, min, warn, growth"),
        ({"params": {"min": 5, "max": 3}}, "min 5 is above max 3"),
        ({"params": {"warn": 0.95}}, "budgets.params"),
        ({"params": {"max": 5, "warn": "120%"}}, "between 0% and 100%"),
        ({"layers": {"dense": "210k"}}, "needs metrics"),
        ({"layers": {"dense": {"depth": 2}}}, "there is no metric 'depth'"),
        ({"weight_bytes": 5}, "budgets.weight_bytes: 5 needs a unit"),
    ],
)
def test_bad_limits(written: dict[str, Any], words: str) -> None:
    """A mistake names the key and what would be right."""
    with pytest.raises(ModelBudgetError) as caught:
        limits(written)
    assert words in str(caught.value)


def test_every_metric_of_the_contract_is_there() -> None:
    """The names are the vocabulary of budgets, reports and JSON."""
    assert list(METRICS) == [
        "params", "trainable_params", "non_trainable_params", "non_embedding_params", "buffers", "weight_bytes", "flops",
        "activation_bytes", "inference_peak_bytes", "training_peak_bytes", "bytes_moved", "arithmetic_intensity",
        "min_step_seconds", "serving_peak_bytes", "kv_cache_bytes", "kv_bytes_per_token",
        "layers", "largest_layer_share", "params_per_sample",
        "file_bytes", "arena_bytes", "operators", "delegated",
    ]  # fmt: skip


def test_a_violation_knows_its_line() -> None:
    """The place travels with the budget."""
    (violation,), _ = judge(towers(), limits({"params": 1}))
    assert isinstance(violation, Violation)
    assert str(violation.budget.place) == "modelbudget.yaml:7"
