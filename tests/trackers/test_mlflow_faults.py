"""MLflow's server in trouble: a bound on the time, what is kept, and everything exactly once when it is well again."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import towers
from tests.trackers.mlflow_helpers import free_port, needs_mlflow, result, waiting, wider
from tests.trackers.mlflow_server import (
    DRIPS,
    LOST,
    SILENT,
    Answer,
    Fault,
    Repository,
    Request,
    Store,
    finished,
    proxy,
    repository,
    server,
    store_at,
)

pytestmark = [pytest.mark.slow, needs_mlflow]

FIRST = [result(towers()), result(towers(), "other")]
SECOND = [result(wider(51)), result(towers(), "other")]


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """The port of a server that is well, and its folder; two variables choose another version or database for it."""
    port, folder = free_port(), tmp_path_factory.mktemp("server")
    python = os.environ.get("MLFLOW_SERVER_PYTHON", sys.executable)
    backend = os.environ.get("MLFLOW_SERVER_BACKEND", "")
    with server(folder, port, python, backend):
        yield port, folder


def delivered_once(port: int, name: str, jobs: int = 2) -> Store:
    """Every run is there once with all its artifacts, and the histories have every point."""
    store = store_at(f"http://127.0.0.1:{port}")
    runs = store.runs(f"modelbudget/{name}")
    assert len({run.data.tags["modelbudget.key"] for run in runs}) == len(runs) == jobs
    for run in runs:
        assert run.data.tags["modelbudget.state"] == "complete"
        assert run.info.status == "FINISHED"
        per_model = {f"models/{model}/layers.json" for model in ("two-towers", "other")}
        assert {"report.html", "models.json", "results.json"} | per_model <= store.files(run)
    histories = {run.info.run_name: run for run in store.runs(f"modelbudget/{name}/history")}
    assert histories.keys() == {"two-towers", "other"}
    assert len(store.runs(f"modelbudget/{name}/history")) == 2
    grown = [(1, 6201), (2, 6302)] if jobs > 1 else [(1, 6201)]
    assert store.points(histories["two-towers"], "params/total") == grown
    assert store.points(histories["other"], "params/total") == [(1, 6201)]
    assert all(store.files(run) == {"latest/summary.html", "latest/layers.json"} for run in histories.values())
    return store


def of(path: str, answer: Answer | str, *, first: int = 1, last: int = 10**6) -> Fault:
    """A fault of requests whose path holds `path`, from the `first` to the `last` one of each path."""
    return lambda request: answer if path in request.path and first <= request.number <= last else None


HTML = Answer(401, "<html>Log in</html>", "text/html")
JSON = Answer(401, '{"error_code": "UNAUTHENTICATED", "message": "who?"}')
FULL = Answer(507, '{"error_code": "INTERNAL_ERROR", "message": "no space left"}')


@pytest.mark.parametrize(
    ("fault", "deadline", "words"),
    [
        pytest.param(of("", SILENT), 60, "does not answer", id="silent"),
        pytest.param(of("", DRIPS), 20, "no answer within 20 s", id="dripping"),
        pytest.param(of("", JSON), 60, "does not let this user in", id="401 as JSON"),
        pytest.param(of("", HTML), 60, "does not let this user in", id="401 as HTML"),
        pytest.param(of("", Answer(429)), 60, "answers with error 429", id="429"),
        pytest.param(of("", FULL), 60, "no space left", id="507"),
        pytest.param(of("log-batch", Answer(500)), 60, "answers with error 500", id="500 mid-way"),
        pytest.param(of("log-batch", Answer(503), first=2), 60, "answers with error 503", id="disk full: 503"),
        pytest.param(of("artifacts", Answer(500)), 60, "answers with error 500", id="500 for artifacts"),
    ],
)
def test_a_fault_is_bounded_and_everything_arrives_later(
    upstream: tuple[int, Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    fault: Fault,
    deadline: float,
    words: str,
) -> None:
    """The entry is kept; the line says why, and not that the deadline was over; the next run delivers both, each once."""
    name = f"nets-{request.node.callspec.id.replace(' ', '-').replace(':', '')}"
    with proxy(upstream[0], fault) as broken:
        repo = repository(tmp_path / "checkout", name, MLFLOW_TRACKING_URI=broken.uri)
        repo.commit(1_700_000_000)
        failed = repo.log(FIRST, deadline)
        assert not failed["ok"]
        assert words in failed["lines"][0]
        assert len(waiting(repo.path)) == 1
        broken.fault = lambda _: None
        repo.commit(1_700_000_060)
        logged = repo.log(SECOND)
    assert logged["ok"], logged["lines"]
    assert waiting(repo.path) == []
    delivered_once(upstream[0], name)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(of("runs/create", LOST, last=1), id="first run"),
        pytest.param(of("experiments/create", LOST, last=1), id="experiment"),
        pytest.param(of("", LOST, last=1), id="the first answer of every address"),
        pytest.param(of("", Answer(502), last=1), id="one 502 at every address"),
    ],
)
def test_an_answer_that_is_lost_makes_nothing_twice(
    upstream: tuple[int, Path], tmp_path: Path, request: pytest.FixtureRequest, fault: Fault
) -> None:
    """The server did what it was asked for; asked again, it has it once. A few lost answers need a run or two more."""
    name = f"nets-lost-{request.node.callspec.id.replace(' ', '-')}"
    with proxy(upstream[0], fault) as broken:
        repo = repository(tmp_path / "checkout", name, MLFLOW_TRACKING_URI=broken.uri)
        repo.commit(1_700_000_000)
        repo.log(FIRST)
        for _ in range(10):
            if not waiting(repo.path):
                break
            repo.send().communicate(timeout=120)
    assert waiting(repo.path) == []
    delivered_once(upstream[0], name, jobs=1)


def sender_of(repo: Repository) -> int:
    """The process that sends for a repository."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        sends = any("pytest_modelbudget.trackers.mlflow.sender" in word for word in words)
        if sends and str(repo.path) in words:
            return int(folder.name)
    raise AssertionError("no sender is running")


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_a_sender_that_is_killed_has_lost_nothing(upstream: tuple[int, Path], tmp_path: Path) -> None:
    """Wherever it was: after each of its first requests another one is killed, and a later run does the rest."""
    with proxy(upstream[0]) as between:
        repo = repository(tmp_path / "checkout", "nets-killed", MLFLOW_TRACKING_URI=between.uri)
        repo.commit(1_700_000_000)

        def kill(request: Request) -> None:
            if "runs/create" in request.path or "log-batch" in request.path:
                os.kill(sender_of(repo), signal.SIGKILL)

        between.fault = kill
        killed = repo.log(FIRST)
        assert not killed["ok"]
        assert "the sender ended with status -9" in killed["lines"][0]
        assert len(waiting(repo.path)) == 1
        for _ in range(2):
            repo.send().communicate(timeout=120)
        between.fault = lambda _: None
        repo.commit(1_700_000_060)
        assert repo.log(SECOND)["ok"]
    delivered_once(upstream[0], "nets-killed")


def test_pytest_that_is_killed_has_its_entry_sent(upstream: tuple[int, Path], tmp_path: Path) -> None:
    """The sender goes on by itself."""
    with proxy(upstream[0]) as between:
        repo = repository(tmp_path / "checkout", "nets-orphan", MLFLOW_TRACKING_URI=between.uri)
        repo.commit(1_700_000_000)
        process = repo.start(FIRST)
        assert until(lambda: bool(between.seen))
        process.kill()
        process.wait()
        assert until(lambda: not waiting(repo.path))
    delivered_once(upstream[0], "nets-orphan", jobs=1)


def until(true: object, seconds: float = 60) -> bool:
    """Whether something becomes true in time."""
    assert callable(true)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.1)
    return False


def test_two_machines_that_send_the_same_entry_at_once(upstream: tuple[int, Path], tmp_path: Path) -> None:
    """An outbox may be copied with a CI job's files; each run is there once in the end."""
    uri = f"http://127.0.0.1:{upstream[0]}"
    here = repository(tmp_path / "here", "nets-two", MLFLOW_TRACKING_URI=uri, MODELBUDGET_MLFLOW_TIMEOUT="60")
    here.commit(1_700_000_000)
    assert not here.log(FIRST, deadline=0.05)["ok"]
    there = Repository(Path(shutil.copytree(here.path, tmp_path / "there")), here.environment)
    senders = [repo.send() for repo in (here, there, here)]
    said = [process.communicate(timeout=120)[0] for process in senders]
    assert all(process.returncode in (0, 1) for process in senders), said
    for repo in (here, there):
        repo.send().communicate(timeout=120)
        assert waiting(repo.path) == []
    delivered_once(upstream[0], "nets-two", jobs=1)


def test_an_artifact_store_that_cannot_be_written(upstream: tuple[int, Path], tmp_path: Path) -> None:
    """The run waits half written, and is completed when the store can be written again."""
    port, folder = upstream
    repo = repository(tmp_path / "checkout", "nets-unwritable", MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}")
    repo.commit(1_700_000_000)
    assert repo.log(FIRST)["ok"]
    store = store_at(f"http://127.0.0.1:{port}")
    [job] = store.runs("modelbudget/nets-unwritable")
    place = folder / "artifacts" / job.info.experiment_id
    place.rename(tmp_path / "aside")
    place.write_text("in the way", encoding="utf-8")
    repo.commit(1_700_000_060)
    failed = repo.log(SECOND)
    assert failed["lines"][0].startswith(f"mlflow: not sent: http://127.0.0.1:{port} answers with error 500")
    states = [run.data.tags["modelbudget.state"] for run in store.runs("modelbudget/nets-unwritable")]
    assert sorted(states) == ["complete", "sending"]
    place.unlink()
    (tmp_path / "aside").rename(place)
    assert "sent 1 of 1" in repo.send().communicate(timeout=120)[0]
    delivered_once(port, "nets-unwritable")


def test_a_refused_connection_is_sent_by_the_command(upstream: tuple[int, Path], tmp_path: Path) -> None:
    """No run of pytest is needed for it; a second time there is nothing to do."""
    port = free_port()
    repo = repository(tmp_path / "checkout", "nets-refused", MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}")
    repo.commit(1_700_000_000)
    assert not repo.log(FIRST)["ok"]
    again = repo.send()
    assert "nobody answers" in again.communicate(timeout=60)[0]
    assert again.returncode == 1
    [entry] = waiting(repo.path)
    text = (entry / "entry.json").read_text(encoding="utf-8").replace(f":{port}", f":{upstream[0]}")
    (entry / "entry.json").write_text(text, encoding="utf-8")
    there = Repository(repo.path, repo.environment | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{upstream[0]}"})
    sent = there.send()
    assert sent.communicate(timeout=120)[0].startswith("mlflow: sent 1 of 1 to ")
    assert sent.returncode == 0
    assert there.send().communicate(timeout=60)[0].startswith("mlflow: nothing is waiting for ")
    delivered_once(upstream[0], "nets-refused", jobs=1)


def test_a_full_disk_is_a_line(tmp_path: Path) -> None:
    """Nothing half written is left in the outbox."""
    repo = repository(tmp_path / "checkout")
    repo.commit(1_700_000_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        process = repo.start(FIRST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    failed = finished(process)
    assert failed["lines"][0].startswith("mlflow: nothing was logged (OSError: ")
    assert [path.name for path in (repo.path / ".modelbudget" / "outbox").iterdir()] == []
