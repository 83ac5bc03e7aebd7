"""The recipes for several machines do what they promise, played by a CI service that runs their own steps."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.ci_service import JobRun, PullRequest, Service, Slurm
from tests.shards_demonstration import MERGE, SERVICES, WIDTHS, lose_a_part, make, pull_request, service

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("git") is None or sys.platform == "win32", reason="needs git and a POSIX shell"),
]


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PullRequest]:
    """Pull requests on twelve models: one that is fine, one too wide as a whole, one with a change unannounced."""
    repository = make(tmp_path_factory.mktemp("shards") / "project")
    return {
        "wider": pull_request(repository, "wider", "width: 16", "width: 20"),
        "too wide": pull_request(repository, "too-wide", "width: 16", "width: 60"),
        "unannounced": pull_request(repository, "unannounced", "width: 16", "width: 20", announced=False),
    }


def states(runs: list[JobRun]) -> list[bool]:
    """Which shards are green, and whether the merge is, last."""
    assert [run.name == MERGE for run in runs] == [False] * (len(runs) - 1) + [True]
    return [run.passed for run in runs]


def logs(runs: list[JobRun]) -> str:
    """All that was printed."""
    return "\n".join(f"--- {run.name}: {run.state}\n{run.log}" for run in runs)


def checked(played: Service) -> dict[str, str]:
    """Each model in the report that the merge kept, with `ok` or `failed`."""
    artifacts = played.artifacts / MERGE
    if (report := next(artifacts.rglob("report.json"), None)) is not None:
        models = json.loads(report.read_text(encoding="utf-8"))["models"]
        return {model["id"]: "ok" if model["state"] == "ok" else "failed" for model in models}
    metrics = next(artifacts.rglob("metrics.txt")).read_text(encoding="utf-8")
    failed = re.findall(r'^model_check_failed\{.*?model="(\w+)".*\} (\d)', metrics, re.MULTILINE)
    return {model: "failed" if value == "1" else "ok" for model, value in failed}


@pytest.mark.parametrize(
    ("name", "shards"),
    [pytest.param("github", 8, id="github as it is written"), pytest.param("gitlab", 3, id="gitlab")],
)
def test_a_shard_that_is_lost_fails_the_merge(
    name: str, shards: int, requests: dict[str, PullRequest], tmp_path: Path
) -> None:
    """With all parts the merge is green and has every model; without one of them it is red and names it."""
    played = service(name, requests["wider"], tmp_path, None if shards == 8 else shards)
    runs = played.run()
    assert states(runs) == [True] * (shards + 1), logs(runs)
    assert checked(played) == {f"m{width}": "ok" for width in WIDTHS}

    lose_a_part(played, 3)
    [merge] = played.run_job(MERGE)
    assert not merge.passed
    assert f"the part of shard 3/{shards} is missing" in merge.log


@pytest.mark.parametrize("name", SERVICES)
def test_a_sum_over_its_limit_fails_the_merge_alone(
    name: str, requests: dict[str, PullRequest], tmp_path: Path
) -> None:
    """Two shards that are green each are red as a whole."""
    runs = service(name, requests["too wide"], tmp_path, shards=2).run()
    assert states(runs) == [True, True, False], logs(runs)
    assert "params: 16,000 > 15,000" in runs[-1].log
    assert all("16,000" not in run.log for run in runs[:-1])


@pytest.mark.parametrize("name", SERVICES)
def test_a_model_that_fails_is_red_in_its_shard_and_in_the_merge(
    name: str, requests: dict[str, PullRequest], tmp_path: Path
) -> None:
    """Its part is kept all the same, and what the merge shows has it beside all others."""
    played = service(name, requests["unannounced"], tmp_path, shards=2)
    *shards, merge = played.run()
    assert sorted(shard.passed for shard in shards) == [False, True], logs(shards)
    assert not merge.passed
    assert "m16: CHANGED" in merge.log
    assert checked(played) == {f"m{width}": "failed" if width == 16 else "ok" for width in WIDTHS}


def test_a_job_of_slurm_is_a_check_on_a_cluster_of_its_own(requests: dict[str, PullRequest], tmp_path: Path) -> None:
    """It has every model, fails with the check, and leaves neither certificates nor workers."""
    pytest.importorskip("distributed")
    played = Slurm(requests["unannounced"], tmp_path)
    run = played.run("slurm-check.sh")
    assert not run.passed
    assert "12 models in" in run.log
    assert ": 1 changed, 11 ok" in run.log
    assert (run.workspace / "modelbudget-report/report.html").is_file()
    assert list((tmp_path / "home").iterdir()) == []
