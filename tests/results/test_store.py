"""Results that are put away while a run goes on, and read again at its end."""

from __future__ import annotations

import copy
import pickle
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_modelbudget import reports
from pytest_modelbudget.base import Base, BaseCommit
from pytest_modelbudget.reports import github, text
from pytest_modelbudget.reports.listing import MOST_IN_FULL
from pytest_modelbudget.results import BaseComparison, Result, State, codec, store
from pytest_modelbudget.results.store import ResultStore
from pytest_modelbudget.session.finish import Collected, Wanted, finish
from pytest_modelbudget.summary.metrics import METRICS
from tests.pages import FEW

EACH = [
    *FEW,
    replace(FEW[0], id="since", since=BaseComparison("HEAD~1 12ab", totals={"params": 6_201, "flops": None})),
    replace(FEW[1], id="moved", since=BaseComparison("HEAD~1 12ab", "", {"params": 1}, FEW[1].changes, FEW[0].summary)),
    replace(FEW[4], id="long", error="x" * 9_000, files=("a", "b")),
]
"""Results of all states, with all that is put away of one."""


@pytest.fixture
def nothing_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one result is put into the file, and none stays at hand."""
    monkeypatch.setattr(store, "_MOST_UNSPILLED", 0)
    monkeypatch.setattr(store, "_MOST_LOADED", 0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Each time that a whole result is read again."""
    read: list[bytes] = []
    decompress = zlib.decompress

    def noted(data: bytes) -> bytes:
        read.append(data)
        return decompress(data)

    monkeypatch.setattr(zlib, "decompress", noted)
    return read


@pytest.mark.usefixtures("nothing_in_memory")
@pytest.mark.parametrize("result", EACH, ids=lambda result: result.id)
def test_a_result_that_was_put_away_is_what_it_was(result: Result) -> None:
    """It equals what a worker's result would be, in either order, and is copied, pickled, replaced and shown as it."""
    results = ResultStore()
    stored = results.add(result)
    results.add(replace(FEW[2], id="another"))
    travelled = codec.unpack(codec.pack(result))
    assert (stored == travelled) is (travelled == stored) is True
    assert stored.summary == result.summary
    assert [pickle.loads(pickle.dumps(stored)), copy.deepcopy(stored), codec.unpack(next(results.packed()))] == [
        travelled
    ] * 3
    assert replace(stored, id="x") == replace(travelled, id="x") != travelled
    assert (repr(stored.summary), repr(stored.snapshot)) == (repr(travelled.summary), repr(travelled.snapshot))
    assert codec.result_dict(stored) == codec.result_dict(travelled)
    if stored.summary is not None and result.summary is not None:
        for metric in METRICS.values():
            assert [metric.get(stored.summary) for _ in range(2)] == [metric.get(result.summary)] * 2
    assert stored.is_model is result.is_model
    assert stored.to_write is result.to_write


def test_the_last_result_of_a_test_counts() -> None:
    """It stands where the first one stood; other models of the same test stay."""
    results = ResultStore()
    for result in (FEW[0], FEW[2], replace(FEW[0], state=State.CONFLICT)):
        results.add_packed(codec.pack(result))
    assert [(result.id, result.state) for result in results] == [("towers", State.CONFLICT), ("nested", State.OK)]
    assert [codec.unpack(data).state for data in results.packed()] == [State.CONFLICT, State.OK]


@pytest.mark.usefixtures("nothing_in_memory")
def test_a_disk_without_room_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written stays in memory."""

    class Full:
        def seek(self, place: int) -> None:
            """The file ends here."""

        def write(self, data: bytes) -> int:
            return len(data) // 2

        def close(self) -> None:
            """Nothing to do."""

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    results = ResultStore()
    for result in FEW:
        results.add(result)
    assert list(results) == [codec.unpack(codec.pack(result)) for result in FEW]


@pytest.mark.usefixtures("nothing_in_memory")
def test_what_is_ok_and_unchanged_is_not_read_again(reads: list[bytes]) -> None:
    """However many there are: what the end of a run and its texts ask of each is at hand."""
    results = ResultStore()
    for number in range(MOST_IN_FULL + 1):
        results.add(replace(FEW[0], id=f"net-{number}", nodeid=f"modelbudget.yaml::net-{number}"))
    finished = finish(results, Wanted(), Base(Path(), BaseCommit()), Collected(), failed=False)
    assert len(list(finished.closing(80))) > 3
    assert all(reports.render(kind, finished.results) for kind in ("md", "comment", "codequality", "badge"))
    assert not list(github.commands(finished.results, text.DEFAULT_SETTING))
    assert reads == []
