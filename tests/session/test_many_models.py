"""What a run does for each model does not grow with how many there are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pytest_modelbudget import snapshot
from pytest_modelbudget.base import Base, BaseCommit
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.results.store import ResultStore
from pytest_modelbudget.session.finish import Collected, Wanted, finish
from pytest_modelbudget.session.registry import register_manifest, snapshot_clashes
from pytest_modelbudget.session.report_files import ReportFile
from tests.pages import FEW

MANIFEST = """
defaults: {budgets: {params: {max: 10M, warn: 95%}}}
sources: [nets:models]
groups: {wide: {models: "net-1*", budgets: {weight_bytes: 100 MB}, sum: {params: 1G}}}
tags: {small: {budgets: {flops: 1 GFLOPs}}}
"""


def calls(work: Callable[[], object]) -> int:
    """How many functions of Python and of C `work` calls."""
    count = 0

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def collecting(folder: Path, number: int) -> Callable[[], None]:
    """All that is done with the models of a source before the first is built."""
    (folder / "modelbudget.yaml").write_text(MANIFEST)
    entries = tuple(ModelEntry(f"net-{n}", "nets:net", tags=("small",) * (n % 2)) for n in range(number))

    def work() -> None:
        registry = register_manifest(folder / "modelbudget.yaml", folder, lambda reference, holder: entries)
        base_manifest = registry.base_manifest(Base(folder, BaseCommit()))
        assert len(registry.groups[0].members) > 1
        assert len([registry.base_limits(entry, base_manifest) for entry in registry.entries]) == number
        assert not list(snapshot_clashes(registry.entries))
        assert snapshot.count_missing(folder, registry.entries) == number
        assert registry.obsolete(folder) == ()

    return work


def ending(folder: Path, number: int) -> Callable[[], None]:
    """The end of a run."""
    results = ResultStore()
    for n in range(number):
        results.add(replace(FEW[0] if n % 10 else FEW[2], id=f"net-{n}", nodeid=f"m.yaml::net-{n}"))
    wanted = Wanted(reports=[ReportFile(kind, folder / f"report.{kind}") for kind in ("openmetrics", "md", "comment")])

    def work() -> None:
        finished = finish(results, wanted, Base(folder, BaseCommit()), Collected(), failed=False)
        assert (finished.problems, len(list(finished.closing(80))) > 3) == ([], True)

    return work


@pytest.mark.parametrize(
    ("prepared", "number"),
    [pytest.param(collecting, 200, id="collecting"), pytest.param(ending, 210, id="the end of a run")],
)
def test_work_grows_with_the_number_of_models_and_no_faster(tmp_path: Path, prepared: Any, number: int) -> None:
    """The second half of twice as many costs no more calls than the first."""
    prepared(tmp_path, number)()  # what is imported and remembered
    few, twice = calls(prepared(tmp_path, number)), calls(prepared(tmp_path, 2 * number))
    assert twice <= 2.05 * few
