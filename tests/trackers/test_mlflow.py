"""MLflow: what was sent can be read back there, each run and each point once."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget import wire
from pytest_modelbudget.check import Result
from pytest_modelbudget.summary import Flops, Summary
from pytest_modelbudget.trackers.mlflow import artifacts, content, outbox
from pytest_modelbudget.trackers.mlflow.facts import Facts
from tests.builders import towers
from tests.trackers.mlflow_helpers import (
    SECRET,
    SOURCES,
    free_port,
    needs_mlflow,
    result,
    waiting,
    wider,
)

RUN = """
import json, sys
from pathlib import Path
from pytest_modelbudget import wire
from pytest_modelbudget.trackers import tracker

results = [wire.result_from(one) for one in json.loads(sys.stdin.read())]
delivery = tracker("mlflow").log(results, Path.cwd(), exit_failed=False, deadline=float(sys.argv[1]))
imported = "mlflow" in sys.modules
print(json.dumps({"ok": delivery.ok, "lines": delivery.lines, "imported": imported}))
"""


@dataclass(frozen=True, slots=True)
class Repository:
    """A user's repository; `log` does there what a run of pytest does."""

    path: Path
    environment: dict[str, str]

    def git(self, *arguments: str) -> str:
        """A git command."""
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
        return subprocess.run(
            ["git", *identity, *arguments],
            cwd=self.path,
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    def commit(self, when: int) -> str:
        """An empty commit at a time, in seconds; returns its id."""
        date = {"GIT_AUTHOR_DATE": f"{when} +0000", "GIT_COMMITTER_DATE": f"{when} +0000"}
        Repository(self.path, self.environment | date).git("commit", "-q", "--allow-empty", "-m", "x")
        return self.git("rev-parse", "HEAD")

    def start(self, results: Sequence[Result], deadline: float = 120) -> subprocess.Popen[str]:
        """Begin to log, as a process of its own."""
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(deadline)],
            cwd=self.path, env=self.environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(json.dumps([wire.result_dict(one) for one in results]))
        process.stdin.close()
        return process

    def log(self, results: Sequence[Result], deadline: float = 120) -> dict[str, Any]:
        """Log, and return what came back."""
        return finished(self.start(results, deadline))


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a process that logs came to."""
    assert process.stdout is not None
    said = json.loads(process.stdout.read())
    assert process.wait() == 0
    assert isinstance(said, dict)
    return said


def repository(path: Path, **environment: str) -> Repository:
    """A new repository, with an origin whose address holds a password."""
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("MLFLOW_", "GITHUB_", "GIT_"))}
    repo = Repository(path, inherited | {"PYTHONPATH": str(SOURCES)} | environment)
    path.mkdir()
    repo.git("init", "-q", "-b", "trunk")
    repo.git("remote", "add", "origin", f"https://me:{SECRET}@example.com/team/nets.git")
    return repo


@dataclass(frozen=True, slots=True)
class Store:
    """What an MLflow store holds."""

    client: Any

    def runs(self, experiment: str) -> list[Any]:
        """The runs of an experiment, oldest first."""
        found = self.client.get_experiment_by_name(experiment)
        return list(self.client.search_runs([found.experiment_id], order_by=["attributes.start_time"])) if found else []

    def run(self, experiment: str, name: str) -> Any:
        """The only run of a name."""
        [run] = [run for run in self.runs(experiment) if run.info.run_name == name]
        return run

    def points(self, run: Any, metric: str) -> list[tuple[int, float]]:
        """Step and value of every point."""
        return sorted((point.step, point.value) for point in self.client.get_metric_history(run.info.run_id, metric))

    def files(self, run: Any, folder: str | None = None) -> set[str]:
        """The paths of a run's artifacts."""
        found: set[str] = set()
        for one in self.client.list_artifacts(run.info.run_id, folder):
            found |= self.files(run, one.path) if one.is_dir else {one.path}
        return found

    def text(self, run: Any, path: str, into: Path) -> str:
        """An artifact."""
        return Path(self.client.download_artifacts(run.info.run_id, path, str(into))).read_text(encoding="utf-8")


def store_at(uri: str) -> Store:
    """The store at an address."""
    from mlflow import MlflowClient

    return Store(MlflowClient(tracking_uri=uri))


def local_store(repo: Repository) -> Store:
    """The embedded store of a repository."""
    return store_at(f"sqlite:///{repo.path}/.modelbudget/mlflow.db")


@dataclass(frozen=True, slots=True)
class Sent:
    """A repository with two commits, of which the second was logged first, and what came back each time."""

    repo: Repository
    commits: tuple[str, str]
    killed: dict[str, Any]
    logged: dict[str, Any]
    kept: Path

    @property
    def store(self) -> Store:
        """Its embedded store."""
        return local_store(self.repo)


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Sent:
    """The first commit's run is over its deadline at once; the second one's run sends both."""
    repo = repository(tmp_path_factory.mktemp("mlflow") / "checkout")
    first = repo.commit(1_700_000_000)
    killed = repo.log([result(towers(), limits={"params": "6300"}), result(towers(), "zoo/net:a")], deadline=0.05)
    kept = Path(shutil.copytree(waiting(repo.path)[0], repo.path.parent / waiting(repo.path)[0].name))
    second = repo.commit(1_700_000_060)
    logged = repo.log(
        [result(wider(51), limits={"params": "6300"}), result(replace(towers(), flops=Flops()), "zoo/net:a")]
    )
    return Sent(repo, (first, second), killed, logged, kept)


@needs_mlflow
def test_a_run_over_its_deadline_is_sent_by_the_next_one(sent: Sent) -> None:
    """The lines say so, and how to look at it; the process that runs pytest never imports MLflow."""
    assert not sent.killed["ok"]
    assert sent.killed["lines"][0] == "mlflow: not sent: no answer within 0.05 s"
    assert sent.logged["ok"], sent.logged["lines"]
    assert sent.logged["lines"][0] == "mlflow: logged to .modelbudget/mlflow.db"
    assert sent.logged["lines"][1].endswith("mlflow ui --backend-store-uri sqlite:///.modelbudget/mlflow.db")
    job = sent.store.run("modelbudget/nets", f"trunk {sent.commits[1][:8]}")
    experiment, run = job.info.experiment_id, job.info.run_id
    page = f"http://127.0.0.1:5000/#/experiments/{experiment}/runs/{run}?workflowType=machine_learning"
    assert sent.logged["lines"][2] == f"  this run: {page}"
    assert [line.split(":")[0].strip() for line in sent.logged["lines"][2:6]] == [
        "this run", "its report", "all models over time", "all runs",
    ]  # fmt: skip
    assert sent.logged["lines"][6] == "  also sent what was waiting from 1 earlier run"
    assert waiting(sent.repo.path) == []
    assert not sent.killed["imported"]
    assert not sent.logged["imported"]


@needs_mlflow
def test_a_run_of_pytest_is_a_run_there(sent: Sent, tmp_path: Path) -> None:
    """With its commit, its verdict, and the summary of each model as text, JSON and table."""
    job = sent.store.run("modelbudget/nets", f"trunk {sent.commits[0][:8]}")
    tags = job.data.tags
    assert job.info.status == "FINISHED"
    assert tags["mlflow.source.git.commit"] == sent.commits[0]
    assert tags["mlflow.source.git.branch"] == "trunk"
    assert tags["mlflow.source.git.repoURL"] == "https://example.com/team/nets.git"
    assert (tags["mlflow.source.name"], tags["mlflow.source.type"]) == ("pytest --model-budget", "JOB")
    assert tags["mlflow.note.content"].splitlines()[0] == "OK: 2 ok"
    assert (tags["modelbudget.state"], tags["modelbudget.dirty"]) == ("complete", "false")
    assert job.data.metrics["session/models"] == 2
    assert job.data.metrics["session/params_sum"] == 12_402
    slug = artifacts.slug_of("zoo/net:a")
    per_model = {
        f"models/{name}/{file}"
        for name in ("two-towers", slug)
        for file in ("summary.txt", "summary.html", "result.json", "layers.json")
    }
    assert sent.store.files(job) == {"report.html", "results.json", "models.json", *per_model}
    assert json.loads(sent.store.text(job, "models.json", tmp_path))["data"][0][:2] == ["two-towers", 6201]
    assert "Total params: 6,201" in sent.store.text(job, "models/two-towers/summary.txt", tmp_path)
    data = json.loads(sent.store.text(job, f"models/{slug}/result.json", tmp_path))
    assert Summary.from_dict(data["summary"]).params == 6201
    layers = json.loads(sent.store.text(job, "models/two-towers/layers.json", tmp_path))
    assert layers["columns"] == ["layer", "params", "type", "output shape", "trainable params", "connected to"]
    assert layers["data"][2] == ["dense", 5050, "Dense", "[B, 50]", 5050, "user"]
    assert {"path": "models/two-towers/layers.json", "type": "table"} in json.loads(tags["mlflow.loggedArtifacts"])


@needs_mlflow
def test_each_model_has_one_line_over_the_commits(sent: Sent, tmp_path: Path) -> None:
    """Also when the later commit arrives first: 6,201 params at commit 1, 6,302 at commit 2 (one unit is 101 more)."""
    run = sent.store.run("modelbudget/nets/history", "two-towers")
    assert sent.store.points(run, "params/total") == [(1, 6201), (2, 6302)]
    assert sent.store.points(run, "budget/params_used_pct") == [(1, 98.428571), (2, 100.03175)]
    assert run.data.metrics["params/total"] == 6302
    assert run.data.tags["mlflow.source.git.commit"] == sent.commits[1]
    assert run.data.tags["modelbudget.outcome"] == "OVER BUDGET"
    assert run.info.status == "FAILED"
    assert sent.store.files(run) == {"latest/summary.html", "latest/layers.json"}
    assert "Total params: 6,302" in sent.store.text(run, "latest/summary.html", tmp_path)
    times = {point.timestamp for point in sent.store.client.get_metric_history(run.info.run_id, "params/total")}
    assert times == {1_700_000_000_000, 1_700_000_060_000}


@needs_mlflow
def test_what_became_unknown_has_no_point(sent: Sent) -> None:
    """The run says that the last point is older."""
    run = sent.store.run("modelbudget/nets/history", "zoo/net:a")
    assert sent.store.points(run, "compute/forward_gflops") == [(1, 0.0000122)]
    assert "compute/forward_gflops" in run.data.tags["modelbudget.unknown"]


@needs_mlflow
def test_no_password_is_stored(sent: Sent) -> None:
    """Neither in the database nor in an artifact."""
    files = [path for path in (sent.repo.path / ".modelbudget").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


@needs_mlflow
def test_sending_again_changes_nothing(sent: Sent) -> None:
    """An entry whose removal failed, or whose answer was lost, comes a second time."""

    def everything() -> list[object]:
        return [
            (
                run.info.run_id,
                run.info.status,
                run.data.tags,
                run.data.metrics,
                sent.store.points(run, "params/total"),
                sent.store.files(run),
            )
            for experiment in ("modelbudget/nets", "modelbudget/nets/history")
            for run in sent.store.runs(experiment)
        ]

    before = everything()
    assert len(before) == 4
    folder = sent.repo.path / ".modelbudget" / "outbox"
    shutil.copytree(sent.kept, folder / sent.kept.name)
    command = [sys.executable, "-m", "pytest_modelbudget.trackers.mlflow.sender", ".", str(folder)]
    done = subprocess.run(
        command, cwd=sent.repo.path, env=sent.repo.environment, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["job", "sent"]
    assert waiting(sent.repo.path) == []
    assert everything() == before


@needs_mlflow
def test_the_latest_value_is_the_last_measured(sent: Sent) -> None:
    """Also when it is smaller, of the same commit, and an older one comes late; MLflow alone would show the largest."""
    (sent.repo.path / "model.py").write_text("# not committed\n", encoding="utf-8")
    first = sent.repo.log([result(wider(40), "shrinking"), result(wider(30), "steady")])
    assert first["ok"], first["lines"]
    place = Facts("nets", commit="c" * 40, commit_ms=1_700_000_060_000, step=2)
    late, files = content.make(
        [result(wider(70), "shrinking")],
        place,
        target=".modelbudget/mlflow.db",
        key="late" * 8,
        now_ms=1_700_000_070_000,
        exit_failed=False,
    )
    outbox.write(sent.repo.path / ".modelbudget" / "outbox", late, files)
    second = sent.repo.log([result(wider(39), "shrinking"), result(wider(30), "steady")])
    assert second["lines"][-1] == "  also sent what was waiting from 1 earlier run"
    shrinking, steady = (sent.store.run("modelbudget/nets/history", name) for name in ("shrinking", "steady"))
    assert shrinking.data.metrics["params/total"] == 6201 - 11 * 101
    assert sent.store.points(shrinking, "params/total") == [(2, 6201 - 11 * 101), (2, 6201 - 10 * 101)]
    assert sent.store.points(steady, "params/total") == [(2, 6201 - 20 * 101)]
    assert shrinking.data.tags["modelbudget.dirty"] == "true"


@pytest.mark.slow
@needs_mlflow
def test_runs_that_make_the_embedded_store_together(tmp_path: Path) -> None:
    """Four processes at once would destroy a new database; here each run arrives once."""
    repo = repository(tmp_path / "checkout")
    repo.commit(1_700_000_000)
    processes = [repo.start([result(towers())]) for _ in range(4)]
    assert [finished(process)["ok"] for process in processes] == [True] * 4
    store = local_store(repo)
    assert [run.data.tags["modelbudget.state"] for run in store.runs("modelbudget/nets")] == ["complete"] * 4
    assert store.points(store.run("modelbudget/nets/history", "two-towers"), "params/total") == [(1, 6201)]


@pytest.mark.slow
@needs_mlflow
def test_a_server_that_was_away_gets_everything_when_it_is_back(tmp_path: Path) -> None:
    """The first run is refused and kept; the second brings both, and its links lead to the server."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    repo = repository(tmp_path / "checkout", MLFLOW_TRACKING_URI=uri.replace("//", f"//me:{SECRET}@"))
    repo.commit(1_700_000_000)
    refused = repo.log([result(towers())])
    assert refused["lines"][0].startswith(f"mlflow: not sent: nobody answers at {uri}")
    with server(tmp_path, port):
        logged = repo.log([result(wider(51))])
        assert logged["ok"], logged["lines"]
        store = store_at(uri)
        runs = store.runs("modelbudget/nets")
        assert [run.data.tags["modelbudget.state"] for run in runs] == ["complete", "complete"]
        assert logged["lines"][0] == f"mlflow: logged to {uri}"
        assert f"{uri}/#/experiments/{runs[1].info.experiment_id}/runs/{runs[1].info.run_id}" in logged["lines"][1]
        assert "models/two-towers/summary.txt" in store.files(runs[0])
        history = store.run("modelbudget/nets/history", "two-towers")
        assert history.data.metrics["params/total"] == 6302
    assert SECRET not in json.dumps(logged)


@contextmanager
def server(folder: Path, port: int) -> Iterator[None]:
    """A tracking server on loopback."""
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/server.db",
        "--artifacts-destination", str(folder / "artifacts"), "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.2)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait(30)
