"""What a CI service says about a build in its variables: branch, default branch, pull request, address of the job."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_modelbudget.loading import InvalidText, UnreadableFile, read_json, read_text

_LARGEST_EVENT = 20 * 10**6
"""Bytes of an event file beyond which it is not read."""


@dataclass(frozen=True, slots=True)
class Build:
    """A build of a CI service; empty where it does not say. `service` is empty outside CI."""

    service: str = ""
    branch: str = ""
    default_branch: str = ""
    pull_request: str = ""
    job_url: str = ""

    @property
    def is_pull_request(self) -> bool:
        """Whether it builds a proposal, which is no part of the default branch's history."""
        return bool(self.pull_request)


def read_build(environ: Mapping[str, str]) -> Build:
    """The build that `environ` describes."""
    for name, service in _SERVICES.items():
        if environ.get(name):
            return service(environ)
    return Build(service="CI" if environ.get("CI", "").lower() not in ("", "0", "false") else "")


def _github(environ: Mapping[str, str]) -> Build:
    event = _event(environ.get("GITHUB_EVENT_PATH", ""))
    ref = environ.get("GITHUB_REF", "")
    number = re.match(r"refs/pull/(\d+)/", ref)
    proposal = environ.get("GITHUB_EVENT_NAME", "").startswith(("pull_request", "merge_group"))
    pull = event.get("pull_request")
    event_number = str(pull.get("number", "")) if isinstance(pull, dict) else ""
    parts = [environ.get(f"GITHUB_{name}", "") for name in ("SERVER_URL", "REPOSITORY", "RUN_ID")]
    attempt = environ.get("GITHUB_RUN_ATTEMPT", "")
    attempt_path = f"/attempts/{attempt}" if attempt not in ("", "1") else ""
    repository = event.get("repository")
    return Build(
        "GitHub Actions",
        branch=environ.get("GITHUB_HEAD_REF") or ("" if number or not ref.startswith("refs/heads/") else ref[11:]),
        default_branch=str(repository.get("default_branch", "")) if isinstance(repository, dict) else "",
        pull_request=event_number or (number[1] if number else "") or ("?" if proposal else ""),
        job_url="{}/{}/actions/runs/{}".format(*parts) + attempt_path if all(parts) else "",
    )


def _event(path: str) -> Mapping[str, Any]:
    """The event that started a GitHub job; empty when it cannot be read."""
    with suppress(OSError, UnreadableFile, InvalidText):
        event = read_json(read_text(Path(path), _LARGEST_EVENT)) if path else {}
        return event if isinstance(event, dict) else {}
    return {}


def _gitlab(environ: Mapping[str, str]) -> Build:
    return Build(
        "GitLab CI",
        branch=environ.get("CI_MERGE_REQUEST_SOURCE_BRANCH_NAME") or environ.get("CI_COMMIT_BRANCH", ""),
        default_branch=environ.get("CI_DEFAULT_BRANCH", ""),
        pull_request=environ.get("CI_MERGE_REQUEST_IID", "") or environ.get("CI_EXTERNAL_PULL_REQUEST_IID", ""),
        job_url=environ.get("CI_JOB_URL", ""),
    )


def _azure(environ: Mapping[str, str]) -> Build:
    source = environ.get("BUILD_SOURCEBRANCH", "")
    number = environ.get("SYSTEM_PULLREQUEST_PULLREQUESTNUMBER") or environ.get("SYSTEM_PULLREQUEST_PULLREQUESTID", "")
    base = environ.get("SYSTEM_TEAMFOUNDATIONCOLLECTIONURI", "").rstrip("/")
    parts = [base, environ.get("SYSTEM_TEAMPROJECT", ""), environ.get("BUILD_BUILDID", "")]
    return Build(
        "Azure Pipelines",
        branch=source[11:] if source.startswith("refs/heads/") else "",
        pull_request=number or ("?" if environ.get("BUILD_REASON") == "PullRequest" else ""),
        job_url="{}/{}/_build/results?buildId={}".format(*parts) if all(parts) else "",
    )


def _buildkite(environ: Mapping[str, str]) -> Build:
    number = environ.get("BUILDKITE_PULL_REQUEST", "")
    return Build(
        "Buildkite",
        branch=environ.get("BUILDKITE_BRANCH", ""),
        default_branch=environ.get("BUILDKITE_PIPELINE_DEFAULT_BRANCH", ""),
        pull_request="" if number == "false" else number,
        job_url=environ.get("BUILDKITE_BUILD_URL", ""),
    )


def _bitbucket(environ: Mapping[str, str]) -> Build:
    parts = [environ.get("BITBUCKET_GIT_HTTP_ORIGIN", ""), environ.get("BITBUCKET_BUILD_NUMBER", "")]
    return Build(
        "Bitbucket Pipelines",
        branch=environ.get("BITBUCKET_BRANCH", ""),
        pull_request=environ.get("BITBUCKET_PR_ID", ""),
        job_url="{}/pipelines/results/{}".format(*parts) if all(parts) else "",
    )


def _circle(environ: Mapping[str, str]) -> Build:
    pull = environ.get("CIRCLE_PULL_REQUEST", "")
    return Build(
        "CircleCI",
        branch=environ.get("CIRCLE_BRANCH", ""),
        pull_request=pull.rstrip("/").rpartition("/")[2],
        job_url=environ.get("CIRCLE_BUILD_URL", ""),
    )


def _jenkins(environ: Mapping[str, str]) -> Build:
    branch = environ.get("CHANGE_BRANCH") or environ.get("BRANCH_NAME") or environ.get("GIT_BRANCH", "")
    branch = branch.removeprefix("origin/")
    return Build(
        "Jenkins",
        branch=branch,
        default_branch=branch if environ.get("BRANCH_IS_PRIMARY") == "true" else "",
        pull_request=environ.get("CHANGE_ID", ""),
        job_url=environ.get("BUILD_URL", ""),
    )


_SERVICES = {
    "GITHUB_ACTIONS": _github,
    "GITLAB_CI": _gitlab,
    "TF_BUILD": _azure,
    "BUILDKITE": _buildkite,
    "BITBUCKET_BUILD_NUMBER": _bitbucket,
    "CIRCLECI": _circle,
    "JENKINS_URL": _jenkins,
}
"""The services that are known, by a variable that each sets."""
