"""Limits on runs: how `fits` and `growth_in` are read, merged and judged, and when they were loosened."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from pytest_modelbudget import budget
from pytest_modelbudget.budget import Baseline, Budget, judge, loosened_limits, merge
from pytest_modelbudget.config import read
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError, Place
from pytest_modelbudget.results import Snapshot, SnapshotState, check, codec
from pytest_modelbudget.summary import (
    BoundPart,
    Fit,
    Growth,
    Lever,
    Margin,
    Plan,
    ServingCache,
    Summary,
    TimeBound,
)
from tests.builders import towers

GIB = 2**30


def limits(written: dict[str, Any]) -> tuple[Budget, ...]:
    """Budgets as a manifest would give them."""
    return tuple(budget.parse(written, lambda below: Place("modelbudget.yaml", 7)))


def planned(*plans: Plan, growth: tuple[Growth, ...] = ()) -> Summary:
    """The towers with plans."""
    return replace(towers(), plans=plans, growth=growth)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        pytest.param({"fits": "24 GB"}, [("fits", "fits", 24 * 10**9, "24 GB")], id="a size"),
        pytest.param({"fits": ["24 GB", "8 GiB", "24  GB"]}, [("fits", "fits", 8 * GIB, "24 GB, 8 GiB")], id="a list, each once"),
        pytest.param({"growth_in": {"T": {"activation_bytes": "linear"}}}, [("activation_bytes", "law", 1, "linear")], id="law"),
        pytest.param({"growth_in": {"T": {"flops": {"max_exponent": 1.2}}}}, [("flops", "exponent", Fraction(6, 5), "exponent 1.2")], id="exponent"),
        pytest.param({"growth_in": {"T": {"flops": {"max_exponent": "1.25"}}}}, [("flops", "exponent", Fraction(5, 4), "exponent 1.25")], id="exponent as text"),
    ],
)  # fmt: skip
def test_written(written: dict[str, Any], expected: list[tuple[str, str, Any, str]]) -> None:
    """What is written is read, and shown again as people read it."""
    assert [(one.metric, one.bound, one.limit, one.text) for one in limits(written)] == expected


@pytest.mark.parametrize(
    ("written", "words"),
    [
        pytest.param({"fits": 24}, 'budgets.fits: 24: write "24 GB", the name of a device, or a list', id="a number"),
        pytest.param({"fits": []}, "budgets.fits: []: write", id="no device"),
        pytest.param({"fits": ["24 GB", None]}, "budgets.fits: ['24 GB', None]: write", id="a hole in the list"),
        pytest.param({"fits": "24"}, "budgets.fits: ", id="no unit"),
        pytest.param({"fits": {"min": "24 GB"}}, "budgets.fits: {'min': '24 GB'}: write", id="no such form"),
        pytest.param({"fits": {"shown": 24564}}, "fits: shown: 24564 needs a unit: write", id="shown without a unit"),
        pytest.param({"fits": {"shown": "T4"}}, "fits: shown: 'T4' is not a quantity: write", id="shown of a name"),
        pytest.param({"fits": "0 GB"}, "'0 GB' is a device without memory", id="no memory"),
        pytest.param(
            {"fits": {"device": "T4", "calibrate": {"reserved": "14 GiB", "shown": "17 GiB"}}},
            "T4: nvidia-smi shows 17.00 GiB in use, more than the device has", id="a measurement of another device",
        ),
        pytest.param({"arithmetic_intensity": "3 GB"}, "has the unit 'GB', and this number has none", id="a number alone"),
        pytest.param({"fits": {"device": "24 GB", "tight": "maybe"}}, "tight: 'maybe': write warn", id="tight"),
        pytest.param({"fits": {"tight": "fail"}}, "budgets.fits: write device, or shown", id="without a device"),
        pytest.param({"fits": {"device": ["24 GB", "T4"], "calibrate": {"reserved": "1 GiB", "shown": "2 GiB"}}}, "for one device", id="calibrated twice"),
        pytest.param({"fits": {"device": "T4", "calibrate": {"reserved": "2 GiB"}}}, "calibrate: write {reserved", id="half a measurement"),
        pytest.param({"fits": {"device": "T4", "calibrate": {"reserved": "2 GiB", "shown": "1 GiB"}}}, "less than the 2.000 GiB", id="another process's"),
        pytest.param({"fit": "24 GB"}, "did you mean 'fits'", id="a typing slip"),
        pytest.param({"growth_in": "linear"}, "budgets.growth_in: 'linear': write growth_in: {T:", id="no dimension"),
        pytest.param({"growth_in": {}}, "budgets.growth_in: {}: write", id="empty"),
        pytest.param({"growth_in": {"T": "linear"}}, "budgets.growth_in.T: 'linear': write", id="no metric"),
        pytest.param({"growth_in": {"1": {"flops": "linear"}}}, "'1' is no name of a dimension", id="bad dimension"),
        pytest.param({"growth_in": {1: {"flops": "linear"}}}, "1 is no name of a dimension", id="a number as dimension"),
        pytest.param({"growth_in": {"T": {"params": "linear"}}}, "growth of 'params' cannot be limited; known are", id="metric"),
        pytest.param({"growth_in": {"T": {"flop": "linear"}}}, "did you mean 'flops'", id="a near metric"),
        pytest.param({"growth_in": {"T": {"flops": "cubic"}}}, "write constant, linear, quadratic or", id="no law"),
        pytest.param({"growth_in": {"T": {"flops": {"max_exponent": "two"}}}}, "growth_in.T.flops.max_exponent: ", id="no number"),
        pytest.param({"growth_in": {"T": {"flops": {"exponent": 2}}}}, "write constant, linear, quadratic or", id="no such key"),
        pytest.param({"training_peak_bytes": 5}, "budgets.training_peak_bytes: 5 needs a unit", id="peak without a unit"),
    ],
)  # fmt: skip
def test_mistakes(written: dict[str, Any], words: str) -> None:
    """A mistake names the key and what would be right."""
    with pytest.raises(ModelBudgetError) as caught:
        limits(written)
    assert words in str(caught.value)


def test_mistakes_have_their_lines() -> None:
    """Those of each dimension too, all at once."""
    text = """
version: 1
models:
  net:
    build: nets:net
    budgets:
      fits: 24
      growth_in:
        T: {params: linear}
        B:
          flops: cubic
"""
    found = [(one.place.line, one.message.split(":")[0]) for one in read(text, file="modelbudget.yaml").mistakes]
    assert found == [(7, "budgets.fits"), (9, "budgets.growth_in.T"), (11, "budgets.growth_in.B.flops")]


def test_merge() -> None:
    """A model's devices take the place of the default's as a whole; laws are replaced one by one; null lifts."""
    default = limits(
        {"fits": ["8 GB", "24 GB"], "growth_in": {"T": {"flops": "quadratic", "activation_bytes": "linear"}}}
    )
    model = limits({"fits": "80 GB", "growth_in": {"T": {"flops": {"max_exponent": 2}}, "B": {"flops": "linear"}}})
    assert {one.title: one.text for one in merge(default, model)} == {
        "fits": "80 GB", "flops in T": "exponent 2", "activation_bytes in T": "linear", "flops in B": "linear",
    }  # fmt: skip
    assert merge(default, limits({"fits": None, "growth_in": {"T": None}})) == ()


TRAINING = Plan(
    "training",
    "batch 32, adamw, fp32",
    26 * GIB,
    28 * GIB,
    levers=(
        Lever("gradient_accumulation: 2", 25 * GIB),
        Lever("checkpointing: blocks", 8 * GIB),
        Lever("precision: bf16-mixed", 27 * GIB),
        Lever("optimizer: adamw-8bit", 24 * GIB),
        Lever("batch: 16", 20 * GIB),
    ),
)


@pytest.mark.parametrize(
    ("fits", "expected"),
    [
        pytest.param((Fit("24 GB", 24 * GIB, 29 * GIB),), [
            "fits: training needs 29.00 GiB of 24.00 GiB on 24 GB: short by 5.000 GiB; levers: checkpointing: blocks "
            "would save 18.00 GiB, batch: 16 would save 6.000 GiB, optimizer: adamw-8bit would save 2.000 GiB",
        ], id="too small, with the best levers"),
        pytest.param((Fit("24 GB", 24 * GIB, 24 * GIB),), [], id="to the byte"),
        pytest.param((Fit("24 GB", 24 * GIB, 25 * GIB, 22 * GIB, (Margin("fragmentation", 3 * GIB),)),), [
            "fits: training is tight on 24 GB: needs 22.00 GiB to 25.00 GiB of 24.00 GiB: fragmentation 3.000 GiB",
        ], id="tight"),
        pytest.param((Fit("24 GB", 24 * GIB, None),), [
            "fits: training on 24 GB: unknown, so the limit cannot be checked",
        ], id="unknown is no pass"),
        pytest.param((), ["fits: training on 24 GB: unknown, so the limit cannot be checked"], id="not answered is no pass"),
    ],
)  # fmt: skip
def test_fits(fits: tuple[Fit, ...], expected: list[str]) -> None:
    """Need, capacity and what is lacking, and what would help most."""
    summary = planned(replace(TRAINING, fits=fits))
    assert [str(one) for one in judge(summary, limits({"fits": "24 GB"}))[0]] == expected


def test_tight_warns_unless_it_fails() -> None:
    """A run that may or may not fit passes with a warning; `tight: fail` takes no chance, and to drop it is told."""
    summary = planned(replace(TRAINING, fits=(Fit("24 GB", 24 * GIB, 25 * GIB, 22 * GIB, (Margin("x", 3 * GIB),)),)))
    strict = limits({"fits": {"device": "24 GB", "tight": "fail"}})
    assert [one.severity for one in judge(summary, limits({"fits": "24 GB"}))[0]] == ["warn"]
    assert [one.severity for one in judge(summary, strict)[0]] == ["fail"]
    [loosened] = loosened_limits("net", limits({"fits": "24 GB"}), strict)
    assert loosened.text == "fits 24 GB and not tightly -> 24 GB"


def test_devices_as_they_are_measured() -> None:
    """A card with a run that was measured on it, and one of the size that nvidia-smi shows."""
    [measured] = limits({"fits": {"device": "RTX 4090", "calibrate": {"reserved": "5.1 GiB", "shown": "6.5 GiB"}}})
    [shown] = limits({"fits": {"shown": "24564 MiB"}})
    assert (measured.devices, shown.devices) == (("RTX 4090 (context 1.400 GiB)",), ("24564 MiB shown",))


def test_fits_without_a_plan() -> None:
    """The cure is told."""
    [violation], _ = judge(towers(), limits({"fits": "24 GB"}))
    assert str(violation) == (
        "fits: unknown: no training is planned: write training: {batch: 32, optimizer: adamw} for this model"
    )


@pytest.mark.parametrize(
    ("growth", "limit", "expected"),
    [
        pytest.param(Growth("T", "flops", 8, ((8, 1), (16, 2), (32, 4)), 1, 1.0, 0, 0.0), "linear", [], id="within"),
        pytest.param(Growth("T", "flops", 8, ((8, 1), (16, 4), (32, 16)), 2, 2.0, None, 0.0005), "linear", [
            "flops in T: quadratic, and linear is allowed: 1 FLOPs at 8, 4 FLOPs at 16, 16 FLOPs at 32; at T=8 <0.1% of what "
            "grows does so with T^2",
        ], id="above"),
        pytest.param(Growth("T", "flops", 8, reason="no such position"), "linear", ["flops in T: unknown (no such position)"], id="not known"),
        pytest.param(Growth("S", "flops", 8, (), 1, 1.0), "linear", ["flops in T: unknown, so the limit cannot be checked"], id="another dimension"),
    ],
)  # fmt: skip
def test_growth_in(growth: Growth, limit: str, expected: list[str]) -> None:
    """The law that was found, and the numbers that show it."""
    written = {"growth_in": {"T": {"flops": limit}}}
    assert [str(one) for one in judge(planned(growth=(growth,)), limits(written))[0]] == expected


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        pytest.param({"fits": "24 GB"}, {"fits": "80 GB"}, ["fits 24 GB -> 80 GB"], id="a larger device"),
        pytest.param({"fits": "80 GB"}, {"fits": "24 GB"}, [], id="a smaller one"),
        pytest.param({"fits": ["24 GB", "80 GB"]}, {"fits": "24 GB"}, ["fits 24 GB, 80 GB -> 24 GB"], id="a device less"),
        pytest.param({"fits": "24 GB"}, {}, ["fits 24 GB -> no limit"], id="no limit"),
        pytest.param(
            {"growth_in": {"T": {"flops": "linear"}}}, {"growth_in": {"T": {"flops": "quadratic"}}},
            ["flops in T linear -> quadratic"], id="a wider law",
        ),
        pytest.param({"growth_in": {"T": {"flops": "quadratic"}}}, {"growth_in": {"T": {"flops": "linear"}}}, [], id="a narrower law"),
        pytest.param(
            {"growth_in": {"T": {"flops": "linear"}}}, {"growth_in": {"T": {"flops": {"max_exponent": 1}}}},
            ["flops in T linear -> exponent 1"], id="another kind",
        ),
    ],
)  # fmt: skip
def test_loosened(before: dict[str, Any], now: dict[str, Any], expected: list[str]) -> None:
    """A guard that was widened is told."""
    assert [one.text for one in loosened_limits("net", limits(now), limits(before))] == expected


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        pytest.param(Plan("training", "batch 32, adamw, fp32", 25 * GIB), [
            "training_peak_bytes growth: 27,917,287,424 bytes is +1,073,741,824 (+4.0%) on 26,843,545,600 bytes (main); "
            "+2% is allowed: 536,870,912 too many",
        ], id="grown"),
        pytest.param(Plan("training", "batch 32, adamw, fp32", 26 * GIB), [], id="the same"),
    ],
)  # fmt: skip
def test_growth_of_a_peak(before: Plan, expected: list[str]) -> None:
    """A peak that the base recorded can be grown from."""
    base = Baseline("main", planned(before))
    found, _ = judge(planned(TRAINING), limits({"training_peak_bytes": {"growth": "+2%"}}), base)
    assert [str(one) for one in found] == expected


def test_growth_of_a_cache() -> None:
    """A cache that the base recorded can be grown from, where it was of the same engine."""
    before, now = (Plan("serving", "bf16, 8 requests", GIB, cache=ServingCache(size, 80)) for size in (8_000, 9_000))
    written = limits({"kv_cache_bytes": {"growth": "+2%"}, "kv_bytes_per_token": {"growth": "+0"}})
    [violation], _ = judge(planned(now), written, Baseline("main", planned(before)))
    assert str(violation).startswith("kv_cache_bytes growth: 9,000 bytes is +1,000 (+12.5%) on 8,000 bytes (main)")
    _, [*findings] = judge(planned(now), written, Baseline("main", planned(replace(before, recipe="bf16, 4 requests"))))
    assert findings[0].text == "serving there was bf16, 4 requests, here bf16, 8 requests (main)"


@pytest.mark.parametrize(
    ("plans", "words"),
    [
        pytest.param((Plan("training", "batch 8, sgd, fp32", GIB),), "training there was batch 8, sgd, fp32, here batch 32, adamw, fp32 (main)", id="another recipe"),
        pytest.param((), "training_peak_bytes is not known there (main)", id="none recorded"),
    ],
)  # fmt: skip
def test_growth_of_a_peak_needs_the_same_run(plans: tuple[Plan, ...], words: str) -> None:
    """Peaks of different runs are not compared, and that is said."""
    found, said = judge(
        planned(TRAINING), limits({"training_peak_bytes": {"growth": "+2%"}}), Baseline("main", planned(*plans))
    )
    assert found == ()
    assert [one.text for one in said] == [words]


def test_all_of_it_travels() -> None:
    """Plans, growth, devices and laws come back from JSON as they were."""
    growth = Growth("T", "flops", 8, ((8, 1), (16, 4), (32, 16)), 2, 2.0, None, 0.5)
    bounds = (TimeBound("A100 80GB", 5, (BoundPart("head", "memory", 4),)), TimeBound("T4", None, reason="why"))
    plan = replace(TRAINING, fits=(Fit("24 GB", 24 * GIB, 29 * GIB),), flops=9, bytes_moved=8, time_bounds=bounds)
    summary = planned(plan, growth=(growth,))
    written = {
        "fits": ["24 GB", "80 GB"],
        "growth_in": {"T": {"flops": "linear"}, "B": {"flops": {"max_exponent": 1.2}}},
    }
    result = check(ModelEntry("two-towers", "n:n", budgets=written), summary, Snapshot(SnapshotState.OFF))
    again = codec.unpack(codec.pack(result))
    assert again == result
    assert [str(one) for one in again.violations] == [str(one) for one in result.violations]
