"""Which parts are one whole run; each reason against it names the part and what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_modelbudget.base import BaseCommit, Checkout
from pytest_modelbudget.budget import Budget
from pytest_modelbudget.parts import ObsoleteFiles, Part, PartHead, Registered, RunRegistry
from pytest_modelbudget.parts.merging import check_here, contradictions, merged, problems_of, seconds_by_node
from pytest_modelbudget.results import Result, Snapshot, SnapshotState, State
from pytest_modelbudget.results.groups import ModelGroup

NODES = tuple(Registered(f"m.yaml::{name}", name) for name in "abcdef")
TEST = Registered("test_m.py::test_x", "test_x", "test")
REGISTRY = RunRegistry((*NODES, TEST), {"m.yaml": "d" * 64}, (ModelGroup("tag edge", "m.yaml", (), ("m.yaml::a",)),))
HEAD = PartHead(
    {"pytest-modelbudget": "1.0", "torch": "2.6"}, Checkout("a" * 40), BaseCommit("c" * 40, "main ccccccc"), REGISTRY, (), dealing="e" * 64
)  # fmt: skip


def result(name: str, **values: Any) -> Result:
    """What a model came to."""
    return Result(**{"id": name, "state": State.OK, "nodeid": f"m.yaml::{name}", "seconds": 0.25, **values})


def part(number: int, names: str, **values: Any) -> Part:
    """The part of one of three shards that checked some models."""
    head = replace(HEAD, selected=tuple(f"m.yaml::{name}" for name in names), shard=f"{number}/3", **values)
    return Part(f"p{number}.part", str(number), head, tuple(map(result, names)))


def three() -> list[Part]:
    """A whole run; a test that checks models gave no result, as one that is skipped."""
    last = part(3, "ef")
    return [
        part(1, "ab"),
        part(2, "cd"),
        replace(last, head=replace(last.head, selected=(*last.head.selected, TEST.nodeid))),
    ]


def test_a_whole_run() -> None:
    """All results, what was found anywhere once, and a failure of any part."""
    parts = three()
    obsolete = ObsoleteFiles("m.yaml::snapshot-files", "m.yaml", ("x.yaml",))
    parts[1] = replace(
        parts[1], head=replace(parts[1].head, exit_status=1, failed_tests=("t.py::t",), obsolete=(obsolete,))
    )
    more = replace(obsolete, files=("w.yaml", "x.yaml"))
    parts[2] = replace(
        parts[2], head=replace(parts[2].head, obsolete=(more,), versions={**HEAD.versions, "torch": "2.7"})
    )
    assert problems_of(parts, "1.0") == contradictions(parts) == []
    run = merged(parts)
    assert [item.id for item in run.results] == list("abcdef")
    assert (run.failed, run.obsolete, run.registry) == (True, (more,), REGISTRY)
    assert run.notes == (
        "a test failed in the run of p2.part: t.py::t",
        "torch is not the same in all parts: 2.6 in p1.part, p2.part; 2.7 in p3.part",
    )
    assert seconds_by_node(run.results)["m.yaml::a"] == 0.25
    assert seconds_by_node([result("lost", seconds=0.0)]) == {}


@pytest.mark.parametrize("absent", [0, 1, 2])
def test_a_missing_part(absent: int) -> None:
    """The shard that is not there is named, with the models that nobody checked."""
    parts = three()
    gone = parts.pop(absent)
    [problem] = problems_of(parts, "1.0")
    assert problem.startswith(
        f"the part of shard {absent + 1}/3 is missing, so {len(gone.head.selected)} of 7 registered ids"
    )
    assert all(nodeid in problem for nodeid in gone.head.selected)
    assert problem.endswith("give the parts of all shards")


def test_no_part_at_all() -> None:
    """Nothing is never a run."""
    assert problems_of([], "1.0") == ["there is no part: give the files that the runs wrote, or their folder"]


def test_what_no_splitter_selected() -> None:
    """Without shards of our own the ids are named."""
    parts = [replace(item, head=replace(item.head, shard="", dealing="")) for item in three()]
    assert problems_of(parts[:2], "1.0") == [
        "3 of 7 registered ids are in no part: m.yaml::e, m.yaml::f, test_m.py::test_x: run them in a part too"
    ]


@pytest.mark.parametrize("again", [0, 1, 2])
def test_the_same_part_twice(again: int) -> None:
    """Under its name or another."""
    parts = three()
    copy = replace(parts[again], name="copy.part")
    assert problems_of([*parts, copy], "1.0") == [
        f"copy.part is the same part as p{again + 1}.part: give each part once"
    ]


def others(**values: Any) -> Any:
    """The second of three parts with another head."""

    def change(parts: list[Part]) -> None:
        parts[1] = replace(parts[1], head=replace(parts[1].head, **values))

    return change


def registry(**values: Any) -> Any:
    """The second of three parts with another registry."""
    return others(registry=replace(REGISTRY, **values))


def results(*wrong: Result) -> Any:
    """The second of three parts with other results."""

    def change(parts: list[Part]) -> None:
        parts[1] = replace(parts[1], results=wrong)

    return change


def stored(path: str) -> Snapshot:
    """A snapshot that an update run would write to a path."""
    return Snapshot(SnapshotState.MISSING, path, "text")


LIMITED = ModelGroup("tag edge", "m.yaml", (Budget("params", "max", 1),), ("m.yaml::a",))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(others(checkout=Checkout("b" * 40)), "p2.part is of commit bbbbbbbbbbbb, and p1.part is of commit aaaaaaaaaaaa: check out the same commit in all jobs", id="another commit"),
        pytest.param(others(checkout=Checkout("a" * 40, "", {"zoo.py": "b" * 64})), "p2.part is of another work tree than p1.part: in these files that git tracks, which have been changed since the commit, they differ: zoo.py: ", id="another work tree"),
        pytest.param(others(base=BaseCommit("d" * 40, "main ddddddd")), "p2.part has the base main ddddddd, and p1.part has the base main ccccccc: ", id="another base"),
        pytest.param(others(base=BaseCommit(reason="not a git repository")), "p2.part has the base none: not a git repository, and ", id="no base"),
        pytest.param(others(update=True), "p2.part is of an update run, and p1.part is of a run that checks: start all parts with the same options", id="other options"),
        pytest.param(others(versions={"pytest-modelbudget": "2.0"}), "p2.part was written by pytest-modelbudget 2.0, and this is 1.0: use the same version in all jobs", id="another version"),
        pytest.param(others(dealing="f" * 64), "p2.part (shard 2/3) was dealt otherwise than p1.part (shard 1/3): give all shards the same", id="another dealing"),
        pytest.param(registry(nodes=NODES), "p2.part has another registry than p1.part: it lacks test_m.py::test_x: ", id="fewer models"),
        pytest.param(registry(nodes=(*REGISTRY.nodes, Registered("m.yaml::g", "g"))), "it has", id="more models"),
        pytest.param(registry(manifests={"m.yaml": "e" * 64}), "p2.part has another registry than p1.part: the text of m.yaml is not the same: ", id="another manifest"),
        pytest.param(registry(groups=(LIMITED,)), "groups have other limits", id="another group"),
        pytest.param(registry(nodes=(*NODES[:-1], Registered("m.yaml::f", "f", tags=("edge",)), TEST)), "the tags of m.yaml::f are not the same", id="other tags"),
        pytest.param(others(selected=("m.yaml::b", "m.yaml::c", "m.yaml::d")), "p2.part and p1.part both selected m.yaml::b: ", id="selected twice"),
        pytest.param(results(result("c")), "p2.part: it has no result for m.yaml::d, which it selected: write it again", id="a result is missing"),
        pytest.param(results(result("c"), result("d"), result("d")), "p2.part: it has two results for m.yaml::d: ", id="a result twice"),
        pytest.param(results(result("c"), result("d"), result("e")), "p2.part: it has a result for m.yaml::e, which it did not select: ", id="a result of another part"),
        pytest.param(results(result("c"), result("d", id="x")), "p2.part: the result of m.yaml::d is that of another id: ", id="another id"),
        pytest.param(results(result("c"), result("d", files=("m.yaml",))), "p2.part: it has a result that names files to delete", id="files to delete"),
        pytest.param(results(result("c"), result("d", snapshot=stored("../__model_budget__/d.yaml"))), "p2.part: it has snapshots elsewhere than beside what declares their models: ../__model_budget__/d.yaml: ", id="a snapshot elsewhere"),
        pytest.param(results(result("c"), result("d", snapshot=stored("__model_budget__/../m.yaml"))), "p2.part: it has snapshots elsewhere", id="a snapshot that leads out"),
        pytest.param(results(result("c"), result("d", snapshot=stored("m.yaml"))), "p2.part: it has snapshots elsewhere", id="no snapshot"),
    ],
)  # fmt: skip
def test_parts_that_do_not_belong_together(change: Any, words: str) -> None:
    """The one that differs from the others is named, not those."""
    parts = three()
    change(parts)
    problems = problems_of(parts, "1.0") or contradictions(parts)
    assert (
        words.replace("it has", "only it has m.yaml::g") in problems[0] if words == "it has" else words in problems[0]
    )
    assert all("p3.part" not in problem for problem in problems if "both selected" not in problem)


@pytest.mark.parametrize(
    ("checkout", "manifests", "words"),
    [
        pytest.param(Checkout("b" * 40), {"m.yaml": "d" * 64}, "the parts are of commit aaaaaaaaaaaa, and this checkout is of bbbbbbbbbbbb: ", id="another commit"),
        pytest.param(Checkout("a" * 40, "nets/"), {"m.yaml": "d" * 64}, "the parts are of the top of the repository, and this is nets/: merge where", id="another place"),
        pytest.param(Checkout(), {"m.yaml": "d" * 64}, "and this checkout is of (no repository): ", id="no repository"),
        pytest.param(Checkout("a" * 40), {"m.yaml": ""}, "m.yaml, the manifest of the parts, is not here: ", id="another folder"),
        pytest.param(Checkout("a" * 40), {"m.yaml": "e" * 64}, "m.yaml is not the manifest that the parts were checked by: ", id="another manifest"),
        pytest.param(Checkout("a" * 40), {"m.yaml": "d" * 64}, "", id="the same"),
    ],
)  # fmt: skip
def test_where_parts_are_merged(checkout: Checkout, manifests: dict[str, str], words: str) -> None:
    """Only in a checkout that they are of: the base and the snapshots are read there."""
    problems = list(check_here(merged(three()), checkout, manifests))
    assert problems == [] if not words else words in problems[0]


def test_parts_of_machines_without_git() -> None:
    """They know of no commit, and are held against the manifests alone."""
    parts = [replace(item, head=replace(item.head, checkout=Checkout())) for item in three()]
    assert list(check_here(merged(parts), Checkout("a" * 40), {"m.yaml": "d" * 64})) == []
    assert len(list(check_here(merged(parts), Checkout("a" * 40), {"m.yaml": "e" * 64}))) == 1
