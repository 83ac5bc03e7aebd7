"""MLflow: what was sent can be read back there, each run and each point once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget.summary import Flops, Summary
from pytest_modelbudget.trackers import mlflow
from pytest_modelbudget.trackers.mlflow import artifacts, content, outbox
from pytest_modelbudget.trackers.mlflow.facts import RepositoryFacts
from tests.builders import towers
from tests.trackers.mlflow_helpers import SECRET, free_port, needs_mlflow, result, waiting, wider
from tests.trackers.mlflow_server import Repository, Store, finished, local_store, repository, server, store_at


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
        [
            result(wider(51), limits={"params": "6300"}),
            result(replace(towers(), flops=Flops()), "zoo/net:a"),
            result(wider(40), "shrinking"),
            result(wider(30), "steady"),
        ]
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


@pytest.mark.parametrize(
    ("script", "path", "command"),
    [
        pytest.param(".venv/bin/mlflow", "bin", ".venv/bin/mlflow", id="not activated"),
        pytest.param(".venv/bin/mlflow", ".venv/bin", "mlflow", id="activated"),
        pytest.param("bin/mlflow", "bin", "{root}/.venv/bin/python -m mlflow", id="no script beside Python"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="scripts are found by their endings there")
def test_the_command_for_the_pages_works_as_it_is_printed(
    script: str, path: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts the mlflow of the environment that pytest ran in, from the root, whatever PATH has."""
    (tmp_path / script).parent.mkdir(parents=True)
    (tmp_path / script).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
    monkeypatch.setenv("PATH", str(tmp_path / path))
    assert mlflow._mlflow_command(tmp_path) == command.format(root=tmp_path)


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
    assert job.info.end_time - job.info.start_time == 2 * 500
    assert job.data.metrics == {
        "session/failed": 0, "session/params_sum": 12_402, "session/budget_used_pct": pytest.approx(620100 / 6300, abs=1e-3),
    }  # fmt: skip
    page = f"#/experiments/{job.info.experiment_id}/runs/{job.info.run_id}/artifacts"
    assert f"[report]({page}/report.html?" in tags["mlflow.note.content"].splitlines()[2]
    assert (
        "| `two-towers` | ok | 6,201 | = | 12.20 kFLOPs | 24.22 KiB | - | params 98.4% |" in tags["mlflow.note.content"]
    )
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
    assert "6,302" in sent.store.text(run, "latest/summary.html", tmp_path)
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


@pytest.mark.slow
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
    assert len(before) == 6
    folder = sent.repo.path / ".modelbudget" / "outbox"
    shutil.copytree(sent.kept, folder / sent.kept.name)
    command = [sys.executable, "-m", "pytest_modelbudget.trackers.mlflow.sender", ".", str(folder)]
    done = subprocess.run(
        command, cwd=sent.repo.path, env=sent.repo.environment, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["job", "begun", "sent"]
    assert waiting(sent.repo.path) == []
    assert everything() == before


@pytest.mark.slow
@needs_mlflow
def test_the_latest_value_is_the_last_measured(sent: Sent) -> None:
    """Also when it is smaller, of the same commit, and an older one comes late; MLflow alone would show the largest."""
    (sent.repo.path / "model.py").write_text("# not committed\n", encoding="utf-8")
    place = RepositoryFacts("nets", commit="c" * 40, commit_ms=1_700_000_060_000, step=2)
    late, files = content.make_entry(
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
    """Eight processes at once would destroy a new database; here each run arrives once."""
    repo = repository(tmp_path / "checkout")
    repo.commit(1_700_000_000)
    processes = [repo.start([result(towers())]) for _ in range(8)]
    assert [finished(process)["ok"] for process in processes] == [True] * 8
    store = local_store(repo)
    assert [run.data.tags["modelbudget.state"] for run in store.runs("modelbudget/nets")] == ["complete"] * 8
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
