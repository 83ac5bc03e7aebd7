"""Many histories and several writers: what does not fit into one run's time comes later, and every point is true."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import towers
from tests.trackers.mlflow_helpers import free_port, needs_mlflow, result, waiting, wider
from tests.trackers.mlflow_server import Fault, Repository, Request, finished, proxy, repository, server, store_at

pytestmark = [pytest.mark.slow, needs_mlflow]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of a server that is well."""
    found, folder = free_port(), tmp_path_factory.mktemp("server")
    with server(folder, found):
        yield found


def slow(path: str, seconds: float) -> Fault:
    """So much more time for every request whose path holds `path`."""

    def fault(request: Request) -> None:
        if path in request.path:
            time.sleep(seconds)

    return fault


def progress(lines: list[str]) -> int:
    """How many of a hundred histories a run says are written."""
    found = re.fullmatch(
        r"  (\d+) of 100 histories of models are written, the rest follows with the next runs or "
        r"`modelbudget mlflow send`",
        lines[1],
    )
    assert found, lines
    return int(found[1])


def test_histories_that_one_run_has_no_time_for_begin_with_later_ones(port: int, tmp_path: Path) -> None:
    """The run itself arrives and does not fail for it; a change that is not written does count as a failure."""
    names = [f"m{number}" for number in range(100)]
    with proxy(port, slow("runs/create", 3)) as between:
        repo = repository(tmp_path / "checkout", "nets-many", MLFLOW_TRACKING_URI=between.uri)
        repo.commit(1_700_000_000)
        first = repo.log([result(towers(), name) for name in names], deadline=40)
        assert first["ok"], first["lines"]
        assert 0 < progress(first["lines"]) < 100
        assert first["lines"][2].startswith("  this run: ")
        assert not [line for line in first["lines"] if "kept" in line]
        assert len(waiting(repo.path)) == 1
        store = store_at(f"http://127.0.0.1:{port}")
        [job] = store.runs("modelbudget/nets-many")
        assert (job.info.status, job.data.tags["modelbudget.state"]) == ("FINISHED", "complete")

        between.fault = lambda _: None
        assert repo.send().communicate(timeout=300)[0].startswith("mlflow: sent 1 of 1")
        assert waiting(repo.path) == []

        between.fault = slow("latest", 1.5)
        repo.commit(1_700_000_060)
        changed = repo.log([result(wider(51), name) for name in names], deadline=60)
        assert not changed["ok"]
        assert 0 < progress(changed["lines"]) < 100
        between.fault = lambda _: None
        assert repo.send().communicate(timeout=300)[0].startswith("mlflow: sent 1 of 1")
    runs = store.runs("modelbudget/nets-many/history")
    assert sorted(run.info.run_name for run in runs) == sorted(names)
    assert all(run.info.status == "FINISHED" for run in runs)
    assert all(store.points(run, "params/total") == [(1, 6201), (2, 6302)] for run in runs)


@pytest.mark.parametrize("slower", [3, 4])
def test_two_commits_that_are_sent_at_once(port: int, tmp_path: Path, slower: int) -> None:
    """Whichever is slower and knows nothing of the other: every point is what its commit had, also the ones after."""
    name, uri = f"nets-at-once-{slower}", f"http://127.0.0.1:{port}"
    first = repository(tmp_path / "first", name, MLFLOW_TRACKING_URI=uri)
    for number in range(2):
        first.commit(1_700_000_000 + number)
        assert first.log([result(towers())])["ok"]
    second = Repository(Path(shutil.copytree(first.path, tmp_path / "second")), first.environment)
    repos, results = {3: first, 4: second}, {3: result(wider(51)), 4: result(wider(52))}
    for repo in repos.values():
        repo.commit(1_700_000_003)
    second.commit(1_700_000_004)

    patient = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "100"}
    reached, may_go_on = threading.Event(), threading.Event()

    def hold(request: Request) -> None:
        if "latest" in request.path:
            reached.set()
            may_go_on.wait(100)

    with proxy(port, hold) as between:
        held = Repository(repos[slower].path, first.environment | patient | {"MLFLOW_TRACKING_URI": between.uri})
        process = held.start([results[slower]])
        assert reached.wait(60)
        other = 7 - slower
        assert repos[other].log([results[other]])["ok"]
        may_go_on.set()
        assert finished(process)["ok"]
    store, history = store_at(uri), f"modelbudget/{name}/history"
    points = [(1, 6201), (2, 6201), (3, 6302), (4, 6403)]
    assert store.points(store.run(history, "two-towers"), "params/total") == points
    second.commit(1_700_000_005)
    assert second.log([results[3]])["ok"]
    assert store.points(store.run(history, "two-towers"), "params/total") == [*points, (5, 6302)]
    second.commit(1_700_000_006)
    assert second.log([results[3]])["ok"]
    second.commit(1_700_000_007)
    assert second.log([results[4]])["ok"]
    assert store.points(store.run(history, "two-towers"), "params/total") == [*points, (5, 6302), (6, 6302), (7, 6403)]
    assert store.run(history, "two-towers").data.metrics["params/total"] == 6403
