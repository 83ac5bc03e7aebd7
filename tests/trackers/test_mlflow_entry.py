"""MLflow: what is sent, under which names, and never with a secret in it."""

from __future__ import annotations

import io
import json
import re
import subprocess
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_modelbudget.diff import changes
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.summary import Flops
from pytest_modelbudget.summary.metrics import METRICS
from pytest_modelbudget.system import writing
from pytest_modelbudget.trackers.mlflow import artifacts, content, facts, names, outbox, target
from pytest_modelbudget.trackers.mlflow.facts import RepositoryFacts
from tests.builders import HOSTILE, towers
from tests.trackers.mlflow_helpers import (
    SECRET,
    result,
    wider,
)


def test_every_metric_has_one_name() -> None:
    """Of its own, and with a prefix, which charts make a section of."""
    assert len(set(names.NAMES.values())) == len(METRICS)
    assert all("/" in name for name in names.NAMES.values())


def test_metrics_of_the_two_towers() -> None:
    """Counted on paper: 6,201 params of 4 bytes, 12,200 FLOPs, 5,050 params in the largest of 6 layers."""
    checked = result(
        replace(towers(), samples=1000), limits={"params": "12402", "weight_bytes": "24804 B", "layers": 24}
    )
    assert checked.summary is not None
    assert names.metrics(checked.summary, checked.limits) == {
        "params/total": 6201,
        "params/trainable": 6201,
        "params/non_trainable": 0,
        "params/non_embedding": 6201,
        "params/buffers": 0,
        "params/per_sample": 6.201,
        "memory/weights_mib": pytest.approx(24804 / 1048576, rel=1e-7),
        "compute/forward_gflops": 0.0000122,
        "layers/count": 6,
        "layers/largest_share_pct": pytest.approx(505000 / 6201, rel=1e-7),
        "budget/params_used_pct": 50,
        "budget/weight_bytes_used_pct": 100,
        "budget/layers_used_pct": 25,
    }


@pytest.mark.parametrize(
    ("flops", "expected"),
    [
        pytest.param(Flops(), {}, id="unknown"),
        pytest.param(Flops(2 * 10**9, (("my::op", 1),)), {"compute/forward_gflops_at_least": 2.0}, id="a lower bound"),
        pytest.param(Flops(0), {"compute/forward_gflops": 0.0}, id="really none"),
    ],
)
def test_unknown_flops_are_left_out(flops: Flops, expected: dict[str, float]) -> None:
    """They are never 0, and a lower bound has a name of its own; neither has a share of a budget."""
    checked = result(replace(towers(), flops=flops), limits={"flops": "1 GFLOPs"})
    assert checked.summary is not None
    found = names.metrics(checked.summary, checked.limits)
    assert {name: value for name, value in found.items() if name.startswith("compute/")} == expected
    assert ("budget/flops_used_pct" in found) == (not flops.uncounted and flops.value is not None)
    assert ("compute/forward_gflops" in names.unknown_names(found)) == ("compute/forward_gflops" not in expected)


@pytest.mark.parametrize("name", ["resnet50", "a.b_c-d"])
def test_a_plain_name_is_its_slug(name: str) -> None:
    """Nothing is added to it."""
    assert artifacts.slug_of(name) == name


@pytest.mark.parametrize("name", ["zoo/net", "net:a", "a+b", "a=b", *HOSTILE])
def test_any_other_name_becomes_harmless(name: str) -> None:
    """Only letters, digits and `._-` are left, and names that differ stay apart."""
    slug = artifacts.slug_of(name)
    assert set(slug) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
    assert slug[:1] not in ("", ".")
    assert name == slug or slug != artifacts.slug_of(f"{name}/")


def make(results: Sequence[Result], exit_failed: bool = False) -> tuple[outbox.OutboxEntry, dict[str, str | bytes]]:
    """An entry as it would be sent."""
    now_ms = 1_700_000_000_000
    return content.make_entry(
        results, RepositoryFacts("nets"), target="x", key="k" * 32, now_ms=now_ms, exit_failed=exit_failed
    )


def named(name: str) -> Result:
    """A model of any name, also of one that no manifest lets through."""
    return replace(result(replace(towers(), notes=(name,))), id=name)


def test_two_models_of_one_id_have_two_histories() -> None:
    """Two files may each declare a model of the same name."""
    one, two = result(towers()), replace(result(wider(60)), nodeid="b.py::two-towers")
    two = replace(two, snapshot=replace(two.snapshot, path="b/__model_budget__/two-towers.yaml"))
    entry, files = make([one, two])
    assert len({model.key for model in entry.history}) == 2
    assert len({model.slug for model in entry.history}) == 2
    assert all(f"job/models/{model.slug}/result.json" in files for model in entry.history)


def test_a_model_that_was_not_built_is_reported_and_has_no_point() -> None:
    """Its numbers are question marks, the sum of all params is not known either; that no budget is used is known."""
    broken = Result("broken", State.BUILD_ERROR, error="Traceback\nboom\x1b[2J", nodeid="modelbudget.yaml::broken")
    entry, files = make([result(towers(), limits={"buffers": 10}), broken], exit_failed=True)
    rows = json.loads(files["job/models.json"])["data"]
    assert ["broken", *["?"] * 8, "-", "BUILD ERROR"] in rows
    assert [model.name for model in entry.history] == ["two-towers"]
    assert entry.job.metrics["session/budget_used_pct"] == 0  # known, as long as one of them has a limit
    assert (entry.job.metrics["session/failed"], entry.job.tags["modelbudget.verdict"]) == (1, "1 build error, 1 ok")
    assert "session/params_sum" not in entry.job.metrics
    assert entry.job.tags["mlflow.note.content"].splitlines()[0] == "FAILED: 1 build error, 1 ok"
    assert files["job/models/broken/error.txt"] == "Traceback\nboom\\x1b[2J\n"


def test_of_many_models_only_the_interesting_get_artifacts_of_their_own() -> None:
    """The others are in the report and the results; every one has its history."""
    results = [result(towers(), f"net-{number}") for number in range(60)]
    results.append(result(towers(), "greedy", limits={"params": "6k"}))
    entry, files = make(results)
    assert {path.split("/")[2] for path in files if path.startswith("job/models/")} == {"greedy"}
    assert len(entry.history) == 61
    packed = files["job/all-models.zip"]
    assert isinstance(packed, bytes)
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {f"net-{number}" for number in range(60)}
        assert artifacts.summary_in(archive.read("net-7/result.json").decode()).params == 6201
        assert (
            archive.read("net-7/layers.csv").decode().splitlines()[3]
            == 'dense,Dense,"[B, 50]",5050,5050,0,0,20200,10000,,1,user'
        )
    report = str(files["job/report.html"])
    assert "Model budget: 1 over budget, 60 ok" in report
    assert "60 more have no part on this page" in report
    assert len(entry.job.metrics) < 20
    assert entry.job.tables == ("models.json", "models/greedy/layers.json")


def test_pages_keep_to_their_sandbox() -> None:
    """MLflow shows them in a frame without storage, network of its own, or a way out."""
    _, files = make([named(name) for name in ("plain", *HOSTILE[:3])], exit_failed=True)
    pages = [str(text) for path, text in files.items() if path.endswith(".html")]
    assert len(pages) == 5
    for page in pages:
        assert not re.search(
            r"localStorage|sessionStorage|document\.cookie|<iframe|<link|<\w[^>]*\ssrc=|@import|window\.(open|top)",
            page,
        )
        assert "<img" not in page


def test_names_of_artifacts_are_slugs() -> None:
    """Whatever a model is called: some characters make folders, others make MLflow's client wait for minutes."""
    _, files = make([named(name) for name in HOSTILE])
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", part) for path in files for part in path.split("/"))
    assert not any(part in (".", "..") for path in files for part in path.split("/"))


def test_a_change_is_listed_line_by_line() -> None:
    """Under a name that MLflow's pages show; `.diff` they do not."""
    one = result(towers())
    changed = replace(one, state=State.CHANGED, changes=changes(towers(), wider(51)), summary=wider(51))
    _, files = make([changed], exit_failed=True)
    lines = str(files["job/models/two-towers/snapshot.diff.txt"]).splitlines()
    assert lines[0] == "params 6,201 -> 6,302  (+101, +1.63%)"
    assert any(line.startswith("~ dense ") for line in lines)


def test_no_column_has_a_dot() -> None:
    """MLflow shows such columns as empty."""
    _, files = make([result(towers())])
    tables = [json.loads(text) for path, text in files.items() if path.endswith(("models.json", "layers.json"))]
    assert len(tables) == 2
    for table in tables:
        assert not any("." in column for column in table["columns"])
        assert table["columns"][1] == "params"
        assert all(len(row) == len(table["columns"]) for row in table["data"])


# Secrets.


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        pytest.param(f"https://me:{SECRET}@host.example/base", "https://host.example/base", id="user and password"),
        pytest.param(f"https://{SECRET}@host.example", "https://host.example", id="token"),
        pytest.param(f"https://me:a/{SECRET}@host.example/x", "https://host.example/x", id="slash in the password"),
        pytest.param(f"https://me:p@{SECRET}@host.example/x", "https://host.example/x", id="at in the password"),
        pytest.param(f"https://host.example/x?token={SECRET}", "https://host.example/x", id="query"),
        pytest.param(f"postgresql://me:{SECRET}@db:5432/x", "postgresql://db:5432/x", id="database"),
        pytest.param("http://host:5000/team/a@b/", "http://host:5000/team/a@b", id="an at in the path is no secret"),
        pytest.param("sqlite:////home/me@work/x.db", "sqlite:////home/me@work/x.db", id="nor in a file"),
        pytest.param("databricks://profile", "databricks://profile", id="databricks"),
    ],
)
def test_credentials_are_not_shown(uri: str, shown: str) -> None:
    """Neither in the address, nor in any text that holds it."""
    found = target.target_from(Path("/work"), {"MLFLOW_TRACKING_URI": uri})
    assert found.uri == uri
    assert found.shown == shown
    assert SECRET not in repr(found)
    assert found.scrub(f"GET {uri} failed, https://you:{SECRET}@proxy") == f"GET {shown} failed, https://proxy"


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"MLFLOW_TRACKING_URI": f"http://me:{SECRET}@host"}, id="address"),
        pytest.param({"MLFLOW_TRACKING_URI": f"http://host/x?token={SECRET}&a=b"}, id="query"),
        pytest.param(
            {"MLFLOW_TRACKING_URI": "http://host", "MLFLOW_TRACKING_PASSWORD": SECRET}, id="MLflow's variable"
        ),
        pytest.param({"MLFLOW_TRACKING_URI": "http://me:hunter2%2Dsecret@host"}, id="encoded"),
    ],
)
def test_a_password_alone_is_not_shown(environment: dict[str, str]) -> None:
    """A server's answer may quote it."""
    found = target.target_from(Path("/work"), environment)
    assert found.scrub(f"denied: {SECRET} of me") == "denied: *** of me"


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        pytest.param("sqlite:///runs.db", "sqlite:////there/runs.db", id="relative database"),
        pytest.param("sqlite:////x/runs.db", "sqlite:////x/runs.db", id="absolute database"),
        pytest.param("./mlruns", "file:///there/mlruns", id="folder"),
        pytest.param("databricks", "databricks", id="databricks"),
    ],
)
def test_a_relative_address_is_relative_to_where_pytest_runs(uri: str, absolute: str) -> None:
    """The sender runs somewhere else."""
    assert target.target_from(Path("/there"), {"MLFLOW_TRACKING_URI": uri}).uri == absolute


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"https://me:{SECRET}@example.com/team/nets.git", "https://example.com/team/nets.git"),
        (f"https://x-access-token:{SECRET}@example.com/nets", "https://example.com/nets"),
        ("git@example.com:team/nets.git", "git@example.com:team/nets.git"),
        ("", ""),
    ],
)
def test_the_address_of_the_repository_has_no_credentials(url: str, shown: str) -> None:
    """CI services write a token into it."""
    assert facts.without_userinfo(url) == shown


# The outbox.


def test_the_outbox_is_bounded_and_keeps_the_newest(tmp_path: Path) -> None:
    """The oldest entries go first, and it says which."""
    entry, files = make([result(towers())])
    paths = [outbox.write(tmp_path, replace(entry, created_ms=number), files) for number in range(4)]
    name = "nets of 1970-01-01 00:00 UTC"
    assert outbox.trim(tmp_path, most_entries=2) == [name, name]
    assert outbox.entries(tmp_path) == [paths[3], paths[2]]
    assert outbox.read(paths[3]) == replace(entry, created_ms=3)
    assert outbox.trim(tmp_path, most_bytes=1) == [name]
    assert outbox.entries(tmp_path) == [paths[3]]


def test_half_an_entry_is_no_entry(tmp_path: Path) -> None:
    """Writing that fails leaves nothing behind; what a process that died left is not read, and goes with the next run."""
    entry, files = make([result(towers())])
    with pytest.raises(OSError, match="job"):
        outbox.write(tmp_path, entry, {"job": "a file", **files})
    assert list(tmp_path.iterdir()) == []
    with writing.draft_folder(tmp_path) as alive:
        outbox.trim(tmp_path)
        assert alive.exists()
    for name in (".modelbudget-x.tmp", ".0000000000001-k"):
        (tmp_path / name).mkdir()
    assert outbox.entries(tmp_path) == []
    outbox.trim(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": 99}', '{"schema": 2, "job": {}}'])
def test_a_damaged_entry_is_known_as_such(tmp_path: Path, text: str) -> None:
    """It can never be sent."""
    (tmp_path / "entry.json").write_text(text, encoding="utf-8")
    with pytest.raises(outbox.UnreadableEntry):
        outbox.read(tmp_path)


# Where it took place.


def git(folder: Path, *arguments: str) -> None:
    """A git command of a user."""
    command = ["git", "-c", "user.name=A", "-c", "user.email=a@example.com", *arguments]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def test_outside_git_the_folder_names_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one step, 0."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "nets").mkdir()
    found = facts.gather(tmp_path / "nets", {})
    assert (found.repository, found.commit, found.step, found.shallow, found.dirty) == ("nets", "", 0, False, False)


def test_the_step_is_the_number_of_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a shallow clone that number is wrong, so the time of the commit in minutes takes its place."""
    monkeypatch.setenv("GIT_COMMITTER_DATE", "1700000040 +0000")
    whole, shallow = tmp_path / "whole", tmp_path / "shallow"
    (whole / "sub").mkdir(parents=True)
    git(whole, "init", "-q", "-b", "trunk")
    empty = facts.gather(whole, {})
    assert (empty.commit, empty.step, empty.commit_ms, empty.branch) == ("", 0, None, "trunk")
    for _ in range(3):
        git(whole, "commit", "-q", "--allow-empty", "-m", "x")
    git(tmp_path, "clone", "-q", "--depth", "1", whole.as_uri(), str(shallow))
    git(shallow, "checkout", "-q", "--detach")
    (whole / "sub" / "new.py").write_text("", encoding="utf-8")
    found = facts.gather(whole / "sub", {})
    assert (found.repository, found.folder, found.step, found.shallow, found.dirty) == ("whole", "sub", 3, False, True)
    found = facts.gather(shallow, {"GITHUB_ACTIONS": "true", "GITHUB_HEAD_REF": "feature"})
    assert (found.repository, found.step, found.shallow, found.dirty) == ("whole", 1_700_000_040 // 60, True, False)
    assert (found.branch, found.commit_ms) == ("feature", 1_700_000_040_000)
