"""Small git repositories, made with git itself."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
}
CI_VARIABLES = (
    "CI", "TF_BUILD", "GITHUB_BASE_REF", "GITHUB_REF", "GITHUB_SHA", "CI_MERGE_REQUEST_TARGET_BRANCH_NAME",
    "CI_MERGE_REQUEST_EVENT_TYPE", "CI_COMMIT_SHA", "CI_COMMIT_BRANCH", "CI_COMMIT_BEFORE_SHA", "CI_DEFAULT_BRANCH",
    "SYSTEM_PULLREQUEST_TARGETBRANCH", "BUILD_SOURCEBRANCH", "BUILDKITE_PULL_REQUEST_BASE_BRANCH", "CHANGE_TARGET",
    "BITBUCKET_PR_DESTINATION_BRANCH",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Repository:
    """A folder with a `.git`."""

    path: Path

    def git(self, *arguments: str) -> str:
        """`git ...` in it, which has to succeed."""
        done = subprocess.run(
            ["git", "-c", "protocol.file.allow=always", *arguments],
            cwd=self.path, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def commit(self, message: str = "change", **files: str) -> str:
        """Commit everything, with `files` (name: text) written first; the id."""
        for name, text in files.items():
            (self.path / name).write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.git("rev-parse", "HEAD")

    def clone(self, path: Path, *arguments: str) -> Repository:
        """A clone of it, over the protocol, so that `--depth` works."""
        self.git("clone", "--quiet", *arguments, f"file://{self.path.as_posix()}", str(path))
        return Repository(path)


def repository(path: Path, branch: str = "main") -> Repository:
    """An empty repository whose first branch has that name."""
    path.mkdir(parents=True, exist_ok=True)
    made = Repository(path)
    made.git("init", "--quiet", "--initial-branch", branch)
    return made
