"""Results between processes."""

from __future__ import annotations

import json
from dataclasses import replace

from pytest_modelbudget import budget
from pytest_modelbudget.budget import Baseline, Finding
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import Place
from pytest_modelbudget.results import Result, Snapshot, SnapshotState, State, check, codec
from pytest_modelbudget.results.groups import ModelGroup
from pytest_modelbudget.summary import Flops
from tests.builders import gpt, towers


def test_a_result_travels_whole() -> None:
    """With the committed summary and what changed since, split by cause."""
    written = {"params": 1, "largest_layer_share": {"max": "99%", "warn": "1%"}, "params_per_sample": 3}
    limits = tuple(budget.parse(written, lambda below: Place("modelbudget.yaml", 3)))
    entry = ModelEntry("towers", build="a:b", budgets=limits, tags=("edge",), place=Place("modelbudget.yaml", 2))
    before = replace(towers(), layers=towers().layers[:-1])
    result = check(entry, towers(), Snapshot(SnapshotState.DIFFERENT, "x.yaml", "text", before), accept=True)
    result = replace(result, nodeid="modelbudget.yaml::towers", seconds=0.25)
    assert result.changes
    assert result.violations
    arrived = codec.unpack(codec.pack(result))
    assert arrived == result
    assert [change.parts for change in arrived.changes] == [change.parts for change in result.changes]


def test_what_the_base_said_travels_too() -> None:
    """Growth with its base, waivers with their day, findings, and what moved since."""
    waive = {"max": "30 kB", "until": "2099-01-31", "reason": "ABC-1"}
    written = {
        "params": {"growth": "+1%"}, "flops": {"growth": "+0"}, "weight_bytes": {"max": "9 kB", "waive": waive},
        "largest_layer_share": {"growth": "+1 points"}, "inherited": "warn",
    }  # fmt: skip
    limits = tuple(budget.parse(written, lambda below: Place("modelbudget.yaml", 3)))
    before = replace(towers(), layers=towers().layers[:-1], flops=Flops(None))
    base = Baseline("main 4f1c2d9", before, limits=tuple(budget.parse({"params": 1}, lambda below: None)))
    result = check(ModelEntry("towers", build="a:b", budgets=limits), towers(), Snapshot(SnapshotState.OFF), base=base)
    assert {one.kind for one in result.findings} == {"budget loosened", "waiver added", "growth not enforced"}
    assert result.since is not None
    assert result.since.totals["flops"] is None
    assert result.since.changes
    assert codec.unpack(codec.pack(result)) == result


def test_groups_and_findings_travel() -> None:
    """From a worker to the controller."""
    limits = tuple(budget.parse_sum({"params": {"max": "1k", "warn": "90%"}}, lambda below: Place("m.yaml", 3)))
    group = ModelGroup("group edge", "m.yaml", limits, ("m.yaml::a", "m.yaml::b"), Place("m.yaml", 2))
    assert codec.group_from(json.loads(json.dumps(codec.group_dict(group)))) == group
    finding = Finding("base manifest", "", "is new", Place("m.yaml"))
    assert codec.finding_from(json.loads(json.dumps(codec.finding_dict(finding)))) == finding


def test_a_result_without_a_summary() -> None:
    """A build error travels too."""
    result = Result("net", State.BUILD_ERROR, error="E   KeyError: 'x'", files=("a.yaml",))
    assert codec.unpack(codec.pack(result)) == result


def test_deep_models_stay_small() -> None:
    """A table of 8,000 rows is a few kilobytes on the wire."""
    result = Result("gpt", State.OK, gpt(126, 64))
    assert len(codec.pack(result)) < 100_000
