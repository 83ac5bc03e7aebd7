"""The few questions put to git; each is one process without a shell, and none of them runs a hook or the network."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cached_property
from pathlib import Path

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.loading import MOST_BYTES, UnreadableFile

_TIMEOUT_SECONDS = 60
_HOOK_VARIABLES = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_COMMON_DIR",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
    "GIT_SHALLOW_FILE",
    "GIT_GRAFT_FILE",
)
"""What git sets for its hooks; a run inside a hook is about the repository it stands in, not about that one."""

_QUIET_ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "none",  # before git 2.45 a partial clone can be kept from fetching in no other way
    "LC_ALL": "C",
}


class NoGit(ModelBudgetError):
    """There is no repository to ask; the message says why."""


class Git:
    """The repository that a folder lies in; `known` says that it is one, so that git need not be asked.

    Raises:
        NoGit: git is not installed, the folder is in no repository, or git refuses it.
    """

    def __init__(self, folder: Path, *, known: bool = False) -> None:
        program = shutil.which("git")
        if program is None:
            raise NoGit("git is not installed")
        self.folder = folder
        self._command = [program, "--literal-pathspecs", "-c", "core.fsmonitor=false"]
        self._environment = {
            name: value for name, value in os.environ.items() if name not in _HOOK_VARIABLES
        } | _QUIET_ENVIRONMENT
        if not known:
            self._look()

    def _look(self) -> None:
        answer = self._run("rev-parse", "--is-inside-work-tree")
        if answer.returncode:
            raise NoGit(_explain_failure(answer.stderr, self.folder))
        if answer.stdout.strip() != "true":
            raise NoGit("not in the work tree of a git repository")

    @cached_property
    def shallow(self) -> bool:
        """Whether the clone lacks old commits."""
        return (self._ask("rev-parse", "--is-shallow-repository") or "").strip() == "true"

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [*self._command, *arguments],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="surrogateescape",
                timeout=_TIMEOUT_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoGit(f"git cannot be run ({error})") from None

    def _ask(self, *arguments: str) -> str | None:
        """The answer, or None when git has none."""
        answer = self._run(*arguments)
        return None if answer.returncode else answer.stdout

    def commit(self, name: str) -> str | None:
        """The full id of the commit that `name` stands for, when it is in this clone."""
        if not name or name.startswith("-") or "\0" in name:
            return None
        output = self._ask("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        return output.strip() if output else None

    def parents(self, commit: str) -> list[str]:
        """The parents that the commit itself names; a shallow clone may not have them."""
        text = self._ask("cat-file", "commit", commit) or ""
        head = text.partition("\n\n")[0]
        return [line.split()[1] for line in head.splitlines() if line.startswith("parent ")]

    def branch(self) -> str | None:
        """The branch that is checked out; None for a detached HEAD."""
        output = self._ask("symbolic-ref", "--quiet", "--short", "HEAD")
        return output.strip() if output else None

    def points_at(self, name: str) -> str | None:
        """What a symbolic ref points at: `refs/remotes/origin/main` for `refs/remotes/origin/HEAD`."""
        output = self._ask("symbolic-ref", "--quiet", name)
        return output.strip() if output else None

    def merge_base(self, commit: str, other_commit: str) -> str | None:
        """The best common ancestor that is in this clone."""
        output = self._ask("merge-base", commit, other_commit)
        return output.strip() if output else None

    def is_ancestor(self, ancestor: str, descendant: str) -> bool:
        """Whether `descendant` is known to contain `ancestor`."""
        return self._ask("merge-base", "--is-ancestor", ancestor, descendant) is not None

    def files(self, commit: str) -> dict[str, str] | None:
        """Path below the folder: blob id, of all regular files of a commit; None when its trees are not here."""
        listing = self._ask("ls-tree", "-r", "-z", commit)
        if listing is None:
            return None
        blobs_by_path = {}
        for line in filter(None, listing.split("\0")):
            facts, _, path = line.partition("\t")
            mode, _, blob = facts.split()
            if mode.startswith("100"):
                blobs_by_path[path] = blob
        return blobs_by_path

    def position(self) -> tuple[Path, str]:
        """The top of the repository, and the path of the folder from there, with a slash at its end unless empty."""
        top, prefix = (self._ask("rev-parse", f"--show-{what}") or "" for what in ("toplevel", "prefix"))
        return Path(top.removesuffix("\n")), prefix.removesuffix("\n")

    def changed_files(self) -> list[str]:
        """The paths from the top of the repository of all tracked files that are not as in HEAD."""
        listing = self._ask("diff", "--no-ext-diff", "--no-renames", "--name-only", "-z", "HEAD") or ""
        return [path for path in listing.split("\0") if path]

    def tracks(self, name: str) -> bool:
        """Whether the file of that name in the folder is in the index."""
        return bool(self._ask("ls-files", "--error-unmatch", "--", name))

    def tracked(self, folder: str) -> bool:
        """Whether files below a folder are known to git: committed, or to be."""
        return bool(self._ask("ls-files", "-z", "--", folder))

    def work_tree(self) -> list[str]:
        """The files below the folder that are tracked, or would be: not those that are ignored."""
        listing = self._ask("ls-files", "-z", "--cached", "--others", "--exclude-standard") or ""
        return [name for name in listing.split("\0") if name]

    def blobs(self) -> Blobs:
        """A process that gives any number of blobs."""
        return Blobs([*self._command, "cat-file", "--batch"], self.folder, self._environment)


def is_tracked(path: Path) -> bool:
    """Whether git keeps the file at `path`; without a repository nothing is kept."""
    path = Path(os.path.realpath(path))
    try:
        return Git(path.parent).tracks(path.name)
    except NoGit:
        return False


class Blobs:
    """One `git cat-file --batch`, asked for one blob after the other."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def read(self, blob: str, most: int = MOST_BYTES) -> bytes | None:
        """The content of a blob; None when it is not in this clone (or git has gone).

        Raises:
            UnreadableFile: it has more than `most` bytes; nothing more can be asked then.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(f"{blob}\n".encode())
            stdin.flush()
            head = stdout.readline().split()
        except OSError:
            return None
        if len(head) != 3:
            return None
        if int(head[2]) > most:
            raise UnreadableFile(f"is too large: {int(head[2]):,} bytes, and at most {most:,} are read of such a file")
        content = stdout.read(int(head[2]))
        end = stdout.read(1)
        return content if end else None  # git has gone in the middle

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # git is gone already
                    pass
        self._process.wait(_TIMEOUT_SECONDS)


def _explain_failure(stderr: str, folder: Path) -> str:
    if "dubious ownership" in stderr or "safe.directory" in stderr:
        return (
            f"git refuses a repository of another user: git config --global --add safe.directory {folder.as_posix()} "
            "(the path of the clone) allows it"
        )
    if "not a git repository" in stderr:
        return "not a git repository"
    lines = [line.removeprefix("fatal: ") for line in stderr.splitlines() if line.strip()]
    return f"git fails: {lines[-1]}" if lines else "git fails"
