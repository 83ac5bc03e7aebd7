"""MLflow: when a model's history gets a point, and which builds add to it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_modelbudget.trackers.mlflow import ci, content, history
from pytest_modelbudget.trackers.mlflow.ci import Build
from pytest_modelbudget.trackers.mlflow.facts import RepositoryFacts
from pytest_modelbudget.trackers.mlflow.history import HistoryState, LastWritten
from pytest_modelbudget.trackers.mlflow.outbox import ModelRecord, OutboxEntry, RunRecord

JOB = RunRecord("k", "n", "FINISHED", {}, {}, "job")


def model(params: float) -> ModelRecord:
    """A model of so many params."""
    return ModelRecord("key", "m", "FINISHED", {}, {"params/total": params}, f"digest of {params}", "m")


def entry(step: int, created: int = 0, *models: ModelRecord) -> OutboxEntry:
    """A run of pytest at a commit; the commit's time is a thousand times its step."""
    return OutboxEntry("x", created or step, step * 1000, step, "e", JOB, models)


def state(step: int, params: float, created: int = 0) -> HistoryState:
    """What a history says of its newest point."""
    one = model(params)
    return HistoryState(step, created or step, one.digest, one.metrics)


@pytest.mark.parametrize(
    ("before", "now", "params", "seen", "points", "moves"),
    [
        pytest.param(None, entry(3), 10, -1, [(3, 3000, 10)], True, id="the first point"),
        pytest.param(state(3, 10), entry(9), 10, 8, [], False, id="nothing changed"),
        pytest.param(state(3, 10), entry(9), 20, 8, [(8, 8000, 10), (9, 9000, 20)], True, id="held until the change"),
        pytest.param(state(3, 10), entry(9), 20, 6, [(6, 6000, 10), (9, 9000, 20)], True, id="held where measured"),
        pytest.param(state(3, 10), entry(9), 20, -1, [(9, 9000, 20)], True, id="not known where measured"),
        pytest.param(state(8, 10), entry(10), 20, 8, [(10, 10000, 20)], True, id="last measured at its change"),
        pytest.param(state(3, 10), entry(4), 20, 3, [(4, 4000, 20)], True, id="the next commit, nothing to hold"),
        pytest.param(state(9, 20), entry(3, 99), 10, -1, [(3, 3000, 10)], False, id="late"),
        pytest.param(state(3, 10), entry(3, 7), 20, 3, [(3, 7, 20)], True, id="the same commit, measured again"),
        pytest.param(state(3, 10, 7), entry(3, 5), 20, 3, [], False, id="the same commit, measured before"),
        pytest.param(state(3, 10), entry(3, 7), 10, 3, [], False, id="the same again"),
    ],
)
def test_points(
    before: HistoryState | None,
    now: OutboxEntry,
    params: float,
    seen: int,
    points: list[tuple[int, int, float]],
    moves: bool,
) -> None:
    """Step, time and value of each point to write, and whether it becomes the newest."""
    measured = LastWritten(seen, seen * 1000, seen)
    found, after = history.plan_points(before, now, model(params), measured)
    assert [(one.step, one.time_ms, one.metrics["params/total"]) for one in found] == points
    assert (after is not None) == moves
    if after is not None:
        assert history.read({history.STATE: after.text()}) == after
        assert history.plan_points(after, now, model(params), measured) == ((), None)


def test_a_state_that_cannot_be_read_is_none() -> None:
    """Someone may have edited the tag."""
    assert [history.read({history.STATE: text}) for text in ("", "{", "[]", '{"step": 1}')] == [None] * 4


def test_the_state_of_many_budgets_fits_a_tag() -> None:
    """Servers cut a tag after 5,000 characters, which would lose the state."""
    metrics = {f"budget/{'x' * 30}_{number}_used_pct": 12345.678912345 for number in range(40)}
    assert len(HistoryState(10**9, 10**13, "d" * 16, metrics).text()) < 5000


@pytest.mark.parametrize(
    ("latest", "agrees"),
    [
        pytest.param({"params/total": 10.0, "layers/count": 3.0}, True, id="the same"),
        pytest.param({"params/total": 11.0}, False, id="somebody wrote another value"),
        pytest.param({}, False, id="no points"),
    ],
)
def test_a_state_is_checked_against_the_points(latest: dict[str, float], agrees: bool) -> None:
    """What a server says is the newest is true; the tag may be that of a slower writer."""
    assert state(3, 10).agrees(latest) == agrees


def test_a_mark_spares_only_what_is_newer_and_equal() -> None:
    """An older entry, or one with another model or outcome, is written as usual."""
    now = entry(5, 50, model(10))
    mark = history.mark_of(now)
    assert history.mark_in(mark.text()) == mark == LastWritten(5, 5000, 50, now.fingerprint)
    assert history.mark_in("odd") == history.mark_in("") == history.mark_in("[]") == LastWritten()
    assert mark.is_before(entry(6, 60))
    assert not mark.is_before(entry(5, 40))
    assert not mark.is_before(entry(4, 90))
    failed = replace(now, history=(replace(now.history[0], status="FAILED"),))
    assert len({now.fingerprint, failed.fingerprint, entry(5, 50, model(11)).fingerprint}) == 3


def test_nobody_relies_on_what_is_being_written() -> None:
    """A newer entry keeps where all models were last measured; a late one may change what that was."""
    mark = history.mark_of(entry(5, 50, model(10)))
    assert mark.while_writing(entry(6, 60)) == LastWritten(5, 5000, 50, writer="k")
    assert mark.while_writing(entry(4, 60)) == LastWritten(writer="k")


def test_a_mark_of_other_models_is_doubted() -> None:
    """Some may be the same: nobody may spare them, nor hold their values where a late entry may have written."""
    mark = history.mark_of(entry(5, 50, model(10)))
    assert mark.doubted(entry(6, 60)) == replace(mark, fingerprint="")
    assert mark.doubted(entry(5, 60)) == mark.doubted(entry(4, 60)) == LastWritten()
    assert history.last_written_in({"modelbudget.mark.a": mark.text(), "mlflow.note.content": "x"}) == {
        "modelbudget.mark.a": mark
    }


def test_each_set_of_models_has_a_mark_of_its_own() -> None:
    """Of a model that another CI job checks a mark says nothing."""
    one, other = model(10), replace(model(10), key="other")
    assert history.mark_tag(entry(1, 0, one, other)) == history.mark_tag(entry(1, 0, other, one))
    assert len({history.mark_tag(entry(1, 0, *models)) for models in ([one], [other], [one, other])}) == 3


GITHUB = {"GITHUB_ACTIONS": "true", "GITHUB_SERVER_URL": "https://h", "GITHUB_REPOSITORY": "o/r", "GITHUB_RUN_ID": "7"}
GITLAB = {"GITLAB_CI": "true", "CI_DEFAULT_BRANCH": "main", "CI_JOB_URL": "https://h/1"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param({}, Build(), id="no CI"),
        pytest.param({"CI": "true"}, Build("CI"), id="unknown service"),
        pytest.param(
            GITHUB | {"GITHUB_REF": "refs/heads/a/b", "GITHUB_RUN_ATTEMPT": "2"},
            Build("GitHub Actions", "a/b", job_url="https://h/o/r/actions/runs/7/attempts/2"), id="GitHub push",
        ),
        pytest.param(
            GITHUB | {"GITHUB_REF": "refs/pull/12/merge", "GITHUB_HEAD_REF": "fix", "GITHUB_EVENT_NAME": "pull_request"},
            Build("GitHub Actions", "fix", pull_request="12", job_url="https://h/o/r/actions/runs/7"), id="GitHub pull request",
        ),
        pytest.param(
            {"GITHUB_ACTIONS": "true", "GITHUB_REF": "refs/heads/gh-readonly-queue/main/pr-1", "GITHUB_EVENT_NAME": "merge_group"},
            Build("GitHub Actions", "gh-readonly-queue/main/pr-1", pull_request="?"), id="GitHub merge queue",
        ),
        pytest.param({"GITHUB_ACTIONS": "true", "GITHUB_REF": "refs/tags/v1"}, Build("GitHub Actions"), id="GitHub tag"),
        pytest.param(
            GITLAB | {"CI_COMMIT_BRANCH": "main"},
            Build("GitLab CI", "main", "main", job_url="https://h/1"), id="GitLab branch",
        ),
        pytest.param(
            GITLAB | {"CI_MERGE_REQUEST_IID": "3", "CI_MERGE_REQUEST_SOURCE_BRANCH_NAME": "fix"},
            Build("GitLab CI", "fix", "main", "3", "https://h/1"), id="GitLab merge request",
        ),
        pytest.param(
            {"TF_BUILD": "True", "BUILD_REASON": "PullRequest", "BUILD_SOURCEBRANCH": "refs/pull/4/merge"},
            Build("Azure Pipelines", pull_request="?"), id="Azure pull request",
        ),
        pytest.param(
            {"BUILDKITE": "true", "BUILDKITE_BRANCH": "m", "BUILDKITE_PIPELINE_DEFAULT_BRANCH": "m", "BUILDKITE_PULL_REQUEST": "false"},
            Build("Buildkite", "m", "m"), id="Buildkite",
        ),
        pytest.param(
            {"BITBUCKET_BUILD_NUMBER": "5", "BITBUCKET_BRANCH": "x", "BITBUCKET_PR_ID": "8"},
            Build("Bitbucket Pipelines", "x", pull_request="8"), id="Bitbucket",
        ),
        pytest.param(
            {"CIRCLECI": "true", "CIRCLE_BRANCH": "x", "CIRCLE_PULL_REQUEST": "https://h/o/r/pull/9"},
            Build("CircleCI", "x", pull_request="9"), id="CircleCI",
        ),
        pytest.param(
            {"JENKINS_URL": "https://h", "BRANCH_NAME": "PR-2", "CHANGE_ID": "2", "CHANGE_BRANCH": "fix", "BUILD_URL": "https://h/2"},
            Build("Jenkins", "fix", pull_request="2", job_url="https://h/2"), id="Jenkins change",
        ),
        pytest.param(
            {"JENKINS_URL": "https://h", "BRANCH_NAME": "dev", "BRANCH_IS_PRIMARY": "true"},
            Build("Jenkins", "dev", "dev"), id="Jenkins primary branch",
        ),
    ],
)  # fmt: skip
def test_what_ci_services_say(environ: dict[str, str], expected: Build) -> None:
    """As their pages describe the variables."""
    assert ci.read_build(environ) == expected


@pytest.mark.parametrize("text", ["", "{", "[]", '{"repository": 1, "pull_request": 2}'])
def test_an_odd_event_file_is_no_error(tmp_path: Path, text: str) -> None:
    """It is only asked for what it has."""
    (tmp_path / "event.json").write_text(text, encoding="utf-8")
    found = ci.read_build({"GITHUB_ACTIONS": "true", "GITHUB_EVENT_PATH": str(tmp_path / "event.json")})
    assert found == Build("GitHub Actions")


def test_github_says_the_default_branch_in_its_event(tmp_path: Path) -> None:
    """And the number of a pull request that was started by another event."""
    event = {"repository": {"default_branch": "dev"}, "pull_request": {"number": 5}}
    (tmp_path / "event.json").write_text(json.dumps(event), encoding="utf-8")
    found = ci.read_build({"GITHUB_ACTIONS": "true", "GITHUB_EVENT_PATH": str(tmp_path / "event.json")})
    assert (found.default_branch, found.pull_request) == ("dev", "5")


HERE = RepositoryFacts("nets", commit="c" * 40, branch="main", step=3)


@pytest.mark.parametrize(
    ("facts", "wish", "shared", "why"),
    [
        pytest.param(HERE, "", True, "", id="main"),
        pytest.param(replace(HERE, default_branch="dev"), "", True, "main is not the default branch, which is dev", id="another default"),
        pytest.param(replace(HERE, branch="dev", default_branch="dev"), "", True, "", id="the default"),
        pytest.param(replace(HERE, branch="fix"), "", True, "fix is not the default branch", id="a feature"),
        pytest.param(replace(HERE, branch="fix"), "on", True, "", id="switched on"),
        pytest.param(HERE, "off", True, "it is switched off", id="switched off"),
        pytest.param(replace(HERE, branch=""), "", True, "no branch is checked out", id="detached"),
        pytest.param(replace(HERE, ci=Build("x", "main", "main", "12")), "", True, "this is pull request 12", id="pull request"),
        pytest.param(replace(HERE, ci=Build("x", "main", "main", "?")), "", True, "this is pull request", id="unknown number"),
        pytest.param(replace(HERE, dirty=True), "", True, "there are changes that are not committed", id="dirty desk"),
        pytest.param(replace(HERE, dirty=True), "", False, "", id="dirty desk, own store"),
        pytest.param(replace(HERE, dirty=True, ci=Build("x", "main")), "", True, "", id="files of a CI job"),
        pytest.param(RepositoryFacts("nets"), "", False, "", id="no git, own store"),
        pytest.param(RepositoryFacts("nets"), "", True, "there is no commit", id="no git, shared store"),
    ],
)  # fmt: skip
def test_only_the_default_branch_has_a_history(facts: RepositoryFacts, wish: str, shared: bool, why: str) -> None:
    """And the reason is said."""
    assert facts.no_history(wish, shared=shared) == why


def test_steps_of_a_shallow_clone_have_a_history_of_their_own() -> None:
    """Minutes and commits on one axis would tear the line apart."""
    from tests.builders import towers
    from tests.trackers.mlflow_helpers import result

    found = [
        content.make_entry([result(towers())], facts, target="x", key="k", now_ms=1, exit_failed=False)[0].history[0]
        for facts in (HERE, replace(HERE, shallow=True))
    ]
    assert found[0].key != found[1].key
    assert [one.name for one in found] == ["two-towers", "two-towers (by commit time)"]
