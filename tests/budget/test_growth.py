"""Growth against a base, inherited limits and waivers: exact comparisons, and what is said of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from pytest_modelbudget import budget
from pytest_modelbudget.budget import Baseline, Budget, judge
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import FLOP_RULES, Flops, Layer, Summary, TensorSpec, Weight

DAY = date(2030, 6, 15)


def limits(written: Mapping[str, Any]) -> tuple[Budget, ...]:
    """Budgets as a manifest would give them."""
    return tuple(budget.parse(written, lambda below: None))


def net(*widths: int, flops: Flops | None = None) -> Summary:
    """A layer `l0`, `l1`, ... for each width, of that many params (4 bytes and 2 FLOPs each)."""
    layers = tuple(
        Layer(f"l{index}", "Dense", ((TensorSpec((width,)),),), weights=(Weight("kernel", (width,)),))
        for index, width in enumerate(widths)
    )
    return Summary("net", "fake", layers, flops=flops or Flops(2 * sum(widths)))


def said(now: Summary, written: Mapping[str, Any], before: Summary | None, reason: str = "") -> list[str]:
    """All violations (warnings marked) and findings, as text."""
    base = Baseline("main 4f1c2d9", before, reason)
    found, findings = judge(now, limits(written), base, DAY)
    return [f"{'warn: ' if one.severity == 'warn' else ''}{one}" for one in found] + [str(one) for one in findings]


@pytest.mark.parametrize(
    ("growth", "before", "now", "expected"),
    [
        pytest.param("+2%", 100, 102, None, id="just as much as allowed"),
        pytest.param("+2%", 100, 103, "103 is +3 (+3.0%) on 100 (main 4f1c2d9); +2% is allowed: 1 too many", id="one more"),
        pytest.param("+2%", 149, 151, None, id="2.98 allowed, 2 taken"),
        pytest.param("+2%", 149, 152, "152 is +3 (+2.0%) on 149 (main 4f1c2d9); +2% is allowed: 1 too many", id="2.98 allowed, 3 taken"),
        pytest.param("+0%", 10**12, 10**12 + 1, "1,000,000,000,001 is +1 (+<0.1%) on 1,000,000,000,000 (main 4f1c2d9); +0% is allowed: 1 too many", id="no float is used"),
        pytest.param("+0", 100, 100, None, id="the same"),
        pytest.param("+0", 100, 101, "101 is +1 (+1.0%) on 100 (main 4f1c2d9); +0 is allowed: 1 too many", id="nothing allowed"),
        pytest.param(0, 100, 99, None, id="smaller"),
        pytest.param("+1k", 100, 1100, None, id="absolute"),
        pytest.param("+1k", 100, 1101, "1,101 is +1,001 (+1001.0%) on 100 (main 4f1c2d9); +1,000 is allowed: 1 too many", id="absolute, one more"),
        pytest.param("+7 elements", 100, 108, "108 is +8 (+8.0%) on 100 (main 4f1c2d9); +7 is allowed: 1 too many", id="in words"),
        pytest.param("+50%", 0, 5, "5 is +5 on 0 (main 4f1c2d9); +50% is allowed: 5 too many", id="from nothing: no share"),
        pytest.param("+5 elements", 0, 5, None, id="from nothing"),
    ],
)  # fmt: skip
def test_growth(growth: object, before: int, now: int, expected: str | None) -> None:
    """More than the base's number and what may be added to it fails, with the distance."""
    assert said(net(now), {"params": {"growth": growth}}, net(before)) == (
        [f"params growth: {expected}"] if expected else []
    )


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        pytest.param({"weight_bytes": {"growth": "+40 B"}}, [], id="bytes, just"),
        pytest.param({"weight_bytes": {"growth": "+39 B"}}, ["weight_bytes growth: 1,240 bytes is +40 (+3.3%) on 1,200 bytes (main 4f1c2d9); +39 bytes is allowed: 1 too many"], id="bytes"),
        pytest.param({"flops": {"growth": "+9 MACs"}}, ["flops growth: 620 FLOPs is +20 (+3.3%) on 600 FLOPs (main 4f1c2d9); +18 FLOPs is allowed: 2 too many"], id="FLOPs in MACs"),
        pytest.param({"layers": {"growth": "+0"}}, ["layers growth: 3 is +1 (+50.0%) on 2 (main 4f1c2d9); +0 is allowed: 1 too many"], id="layers"),
        pytest.param({"layers": {"growth": "+1 layers"}}, [], id="layers, just"),
        pytest.param({"largest_layer_share": {"growth": "+0.5 points"}}, [], id="a share that fell"),
        pytest.param({"layers": {"l0": {"params": {"growth": "+4%"}}}}, ["l0 params growth: 105 is +5 (+5.0%) on 100 (main 4f1c2d9); +4% is allowed: 1 too many"], id="one layer"),
        pytest.param({"layers": {"l1": {"share": {"growth": "+0 points"}}}}, [], id="share of a layer"),
        pytest.param({"layers": {"l*": {"params": {"growth": "+4%"}}}}, [
            "l0 params growth: 105 is +5 (+5.0%) on 100 (main 4f1c2d9); +4% is allowed: 1 too many",
            "growth not enforced: net: l2 is not in the base (main 4f1c2d9)",
        ], id="a new layer has nothing to grow from"),
        pytest.param({"layers": {"x": {"params": {"growth": "+4%"}}}}, ["x params growth: no layer matches 'x'"], id="no such layer"),
    ],
)  # fmt: skip
def test_growth_of_every_kind_of_number(written: dict[str, Any], expected: list[str]) -> None:
    """From two layers (100 and 200 params) to three (105, 200 and 5)."""
    assert said(net(105, 200, 5), written, net(100, 200)) == expected


def test_growth_of_a_share_is_in_points() -> None:
    """From a half to three quarters."""
    assert said(net(75, 25), {"largest_layer_share": {"growth": "+10 points"}}, net(50, 50)) == [
        "largest_layer_share growth: 75% is +25 points on 50% (main 4f1c2d9); +10 points is allowed: 15 too many"
    ]


BOUND = Flops(200, (("aten.magic", 1),))


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        pytest.param(Flops(200), Flops(None), ["flops growth: unknown, so the limit cannot be checked"], id="unknown now"),
        pytest.param(Flops(200), BOUND, ["flops growth: unknown (at least 200, no formula for aten.magic x1)"], id="perhaps more now"),
        pytest.param(Flops(100), BOUND, ["flops growth: 200 FLOPs is +100 (+100.0%) on 100 FLOPs (main 4f1c2d9); +10% is allowed: 90 too many; a lower bound"], id="more for sure"),
        pytest.param(Flops(None), Flops(200), ["growth not enforced: net: flops is not known there (main 4f1c2d9)"], id="unknown there"),
        pytest.param(Flops(None), Flops(None), ["flops growth: unknown, so the limit cannot be checked"], id="nowhere"),
        pytest.param(BOUND, Flops(220), [], id="no more than the least there"),
        pytest.param(BOUND, Flops(230), ["growth not enforced: net: flops are known only as at least 200 there (main 4f1c2d9)"], id="perhaps less there"),
        pytest.param(Flops(100, rules=0), Flops(200), [f"growth not enforced: net: FLOPs were counted by rules 0, here by rules {FLOP_RULES} (main 4f1c2d9)"], id="other rules"),
    ],
)  # fmt: skip
def test_growth_of_what_is_not_known(before: Flops, now: Flops, expected: list[str]) -> None:
    """Here it fails with the reason, there it is not enforced and said; neither is ever taken for 0."""
    assert said(net(100, flops=now), {"flops": {"growth": "+10%"}}, net(100, flops=before)) == expected


def test_no_base_is_a_state_of_its_own() -> None:
    """Not +100 %, and not a failure; other limits hold."""
    written = {"params": {"growth": "+0", "max": 99}, "flops": {"growth": "+1%"}}
    assert said(net(100), written, None, "not in the base") == [
        "params: 100 > 99 (+1, +1.0%)", "growth not enforced: net: not in the base",
    ]  # fmt: skip
    assert [str(one) for one in judge(net(100), limits(written), None, DAY)[1]] == []


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        pytest.param(120, 120, "warn: params: 120 > 100 (+20, +20.0%); inherited: main 4f1c2d9 has 120", id="no worse"),
        pytest.param(120, 110, "warn: params: 110 > 100 (+10, +10.0%); inherited: main 4f1c2d9 has 120", id="better"),
        pytest.param(
            120, 121, "params: 121 > 100 (+21, +21.0%); worse than inherited: main 4f1c2d9 has 120", id="worse by one"
        ),
        pytest.param(100, 101, "params: 101 > 100 (+1, +1.0%)", id="the base is within the limit"),
        pytest.param(None, 101, "params: 101 > 100 (+1, +1.0%)", id="no base"),
        pytest.param(120, 100, None, id="within the limit"),
    ],
)
@pytest.mark.parametrize("rule", [{"params": {"max": 100, "inherited": "warn"}}, {"params": 100, "inherited": "warn"}])
def test_inherited(rule: dict[str, Any], before: int | None, now: int, expected: str | None) -> None:
    """A limit that the base breaks too, and no less, only warns; it can be said for one metric or for all."""
    old = None if before is None else net(before)
    assert said(net(now), rule, old) == ([expected] if expected else [])


def test_inherited_min_and_layers() -> None:
    """The same downwards, and for each layer alone."""
    rule = {"inherited": "warn", "params": {"min": 500}, "layers": {"l*": {"params": 10}}}
    assert said(net(20, 31), rule, net(20, 30)) == [
        "l1 params: 31 > 10 (+21, +210.0%); worse than inherited: main 4f1c2d9 has 30",
        "warn: params: 51 < 500 (-449, -89.8%); inherited: main 4f1c2d9 has 50",
        "warn: l0 params: 20 > 10 (+10, +100.0%); inherited: main 4f1c2d9 has 20",
    ]


def test_inherited_fail_takes_it_back() -> None:
    """A model can be stricter than its defaults."""
    rule = budget.merge(limits({"inherited": "warn", "params": 10}), limits({"inherited": "fail"}))
    assert [one.severity for one in judge(net(20), rule, Baseline("main", net(20)), DAY)[0]] == ["fail"]


def waived(until: str, maximum: int = 200) -> dict[str, Any]:
    """A max of 100 that is waived."""
    return {"params": {"max": 100, "waive": {"max": maximum, "until": until, "reason": "ABC-1"}}}


@pytest.mark.parametrize(
    ("until", "now", "expected"),
    [
        pytest.param("2030-06-15", 150, "warn: params: 150 > 100 (+50, +50.0%); waived up to 200 until 2030-06-15: ABC-1", id="on its last day"),
        pytest.param("2030-06-14", 150, "params: 150 > 100 (+50, +50.0%); its waiver ended on 2030-06-14: ABC-1", id="the day after"),
        pytest.param("2030-12-31", 200, "warn: params: 200 > 100 (+100, +100.0%); waived up to 200 until 2030-12-31: ABC-1", id="just what is waived"),
        pytest.param("2030-12-31", 201, "params: 201 > 200 (+1, +0.5%); more than is waived until 2030-12-31", id="more than is waived"),
        pytest.param("2030-12-31", 100, "waiver: net: params up to 200 until 2030-12-31: ABC-1 (not needed now)", id="not needed"),
        pytest.param("2030-06-14", 100, "waiver: net: params up to 200 until 2030-06-14: ABC-1 (it has ended, and can be removed)", id="ended, not needed"),
    ],
)  # fmt: skip
def test_waivers(until: str, now: int, expected: str) -> None:
    """A waiver takes the place of the max through its last day, is told at every run, and ends by itself."""
    assert said(net(now), waived(until), net(now)) == [expected]


def test_a_waiver_also_covers_growth() -> None:
    """Up to its own max, and no further."""
    rule = {"params": {"growth": "+0", "waive": {"max": 200, "until": "2030-12-31", "reason": "new head"}}}
    grew = "is +{} (+{}.0%) on 100 (main 4f1c2d9); +0 is allowed: {} too many"
    assert said(net(150), rule, net(100)) == [
        f"warn: params growth: 150 {grew.format(50, 50, 50)}; waived up to 200 until 2030-12-31: new head"
    ]
    [over, told] = said(net(201), rule, net(100))
    assert over == f"params growth: 201 {grew.format(101, 101, 101)}"
    assert told.startswith("waiver: net: params up to 200")


def test_a_waiver_does_not_cover_what_is_not_known() -> None:
    """Between the max and the waiver's, a lower bound may be anything."""
    rule = {"flops": {"max": "100 FLOPs", "waive": {"max": "300 FLOPs", "until": "2030-12-31", "reason": "x"}}}
    assert said(net(1, flops=BOUND), rule, None) == ["flops: unknown (at least 200, no formula for aten.magic x1)"]


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"params": {"growth": 2}}, "budgets.params.growth: 2 needs a sign and a unit: write +2% (of the base's number), +500k or +12 elements"),
        ({"params": {"growth": 0.02}}, "growth: 0.02 needs a sign and a unit"),
        ({"params": {"growth": True}}, "growth: True needs a sign and a unit"),
        ({"params": {"growth": "2%"}}, "growth: '2%' is what may be added to the base's number: write +2%"),
        ({"params": {"growth": "102%"}}, "is what may be added to the base's number"),
        ({"params": {"growth": "-2%"}}, "is what may be added to the base's number"),
        ({"params": {"growth": "+2"}}, "growth: '+2' needs a unit: write +2%"),
        ({"params": {"growth": "+2_000"}}, "growth: '+2_000' needs a unit"),
        ({"params": {"growth": "+2 layers"}}, "does not count elements"),
        ({"params": {"growth": "+0.0001k"}}, "not a whole number of elements"),
        ({"layers": {"growth": "+2"}}, "write +2% (of the base's number), +500k or +12 layers"),
        ({"weight_bytes": {"growth": "+2"}}, "growth: '+2' needs a unit: write +2% (of the base's number), +1 MiB or +500 kB"),
        ({"weight_bytes": {"growth": "+2 GFLOPs"}}, "does not count bytes"),
        ({"largest_layer_share": {"growth": "+2%"}}, "of a share is in points: write +2 points"),
        ({"activation_bytes": {"growth": "+2%"}}, "a base has no activation_bytes to grow from; growth is for params,"),
        ({"params_per_sample": {"growth": "+2%"}}, "a base has no params_per_sample to grow from"),
        ({"layers": {"l0": {"flops": {"growth": "+2%"}}}}, "budgets.layers.l0.flops.growth: a base has no flops to grow from"),
        ({"params": {"waive": "31M"}}, "budgets.params.waive: '31M' is no waiver: write {max: 31M, until: 2030-12-31, reason:"),
        ({"params": {"waive": {"until": "2030-01-01", "reason": "x"}}}, "budgets.params.waive needs max: write"),
        ({"params": {"waive": {"max": "1k"}}}, "budgets.params.waive needs until and reason"),
        ({"params": {"waive": {"max": "1k", "until": "2030-01-01", "reason": " "}}}, "budgets.params.waive.reason: write in words why"),
        ({"params": {"waive": {"max": "1k", "until": "2030-01-01", "reason": 3}}}, "budgets.params.waive.reason: write in words why, not 3"),
        ({"params": {"waive": {"max": "1k", "until": "2030-02-30", "reason": "x"}}}, "budgets.params.waive.until: '2030-02-30' is not a day: write e.g. 2030-12-31"),
        ({"params": {"waive": {"max": "1k", "until": "next week", "reason": "x"}}}, "is not a day"),
        ({"params": {"waive": {"max": "1k", "until": "20300101", "reason": "x"}}}, "is not a day"),
        ({"params": {"waive": {"max": "1k", "until": "2030-01-01", "reason": "x", "who": "y"}}}, "unknown key 'who'; a waiver has max, until and reason"),
        ({"weight_bytes": {"waive": {"max": 5, "until": "2030-01-01", "reason": "x"}}}, "budgets.weight_bytes.waive.max: 5 needs a unit"),
        ({"params": {"max": "2k", "waive": {"max": "1k", "until": "2030-01-01", "reason": "x"}}}, "the waiver's max 1,000 is below max 2,000: it allows less"),
        ({"params": {"ratchet": "2%"}}, "budgets.params.ratchet: '2%' is no ratchet: write true, false or {slack: 2%}"),
        ({"params": {"ratchet": {"slack": 2}}}, "budgets.params.ratchet.slack: 2 needs a unit: write e.g. 95%"),
        ({"params": {"inherited": "yes"}}, "budgets.params.inherited: 'yes': write warn"),
        ({"inherited": True}, "budgets.inherited: True: write warn"),
    ],
)  # fmt: skip
def test_mistakes(written: dict[str, Any], words: str) -> None:
    """A mistake names the key and what would be right."""
    with pytest.raises(ModelBudgetError) as caught:
        limits(written)
    assert words in str(caught.value)


def test_a_date_of_toml_is_a_day() -> None:
    """TOML has dates of its own."""
    waive = {"max": "1k", "until": date(2030, 1, 1), "reason": "x"}
    assert limits({"params": {"waive": waive}})[0].until == date(2030, 1, 1)


def test_what_was_read_is_the_same_for_each_level() -> None:
    """Rules merge as limits do: limit by limit, null lifts."""
    wide = limits(
        {"params": {"growth": "+2%", "ratchet": True, "waive": {"max": 9, "until": "2030-01-01", "reason": "x"}}}
    )
    own = limits({"params": {"growth": "+5%", "ratchet": False, "waive": None}})
    assert [(one.bound, one.text) for one in budget.merge(wide, own)] == [("growth", "+5%")]


def test_a_layer_keeps_its_growth_when_others_change() -> None:
    """Only the named layer is held."""
    before = replace(net(10, 10), model="net")
    assert said(net(10, 99), {"layers": {"l0": {"params": {"growth": "+0"}}}}, before) == []
