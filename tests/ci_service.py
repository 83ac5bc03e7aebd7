"""A CI service as small as can be: it plays the jobs of a recipe, so that a recipe is a program and no picture of one.

`GitHub` and `GitLab` read the recipe itself. A job of a matrix (`parallel` in GitLab) is one job for each of its values. A
job runs its scripts in a clone of its own, as deep as the recipe asks for, with the variables of a pull request; jobs hand
on nothing but artifacts. `pip` does nothing, since this project is there. What a recipe says and is not played is an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from tests.demonstration import CI_VARIABLES

REPOSITORY = Path(__file__).parents[1]
_EXPRESSION = re.compile(r"\$\{\{ *([\w.-]+) *\}\}")
_TOOLS = {
    "pip": "#!/bin/sh\nexit 0\n",
    "srun": "#!/bin/sh\ntrap 'kill $(jobs -p); exit' TERM\nfor task in 1 2; do \"$@\" & done\nwait\n",
}
"""What is not there, or not to be used: `srun` runs a command as two tasks, and ends them when it is ended."""

_RULE = re.compile(r"\$(\w+) == (?:\"(\w+)\"|\$(\w+))")


@dataclass(frozen=True, slots=True)
class PullRequest:
    """A branch of a repository; `merged` is the commit that the service makes of it and `main` for trial."""

    origin: Path
    branch: str
    merged: str


@dataclass(frozen=True, slots=True)
class JobRun:
    """How one job ended, what it printed, and the folder that it ran in."""

    name: str
    state: str
    log: str = ""
    workspace: Path = Path()

    @property
    def passed(self) -> bool:
        """Whether it is green; a job that was skipped is not."""
        return self.state == "success"


@dataclass
class Machines:
    """Machines that have the project installed, each with a folder of its own below `folder`, and one pull request."""

    request: PullRequest
    folder: Path

    def workspace(self, shown: str) -> Path:
        """An empty folder for a job."""
        path = self.folder / "jobs" / re.sub(r"\W+", "-", shown)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def shell(self, script: str, workspace: Path, variables: Mapping[str, str], *words: str) -> tuple[int, str]:
        """The status of a script and what it printed."""
        tools = self.folder / "tools"
        tools.mkdir(exist_ok=True)
        for name, text in _TOOLS.items():
            (tools / name).write_text(text, encoding="utf-8")
            (tools / name).chmod(0o755)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(CI_VARIABLES)}
        path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), inherited.get("PATH", "")])
        environment = {
            **inherited, "PATH": path, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "100",
            "PYTEST_ADDOPTS": "-p no:cacheprovider -p no:hypothesispytest", "CI": "true", **variables,
        }  # fmt: skip
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", *words, "-c", script], cwd=workspace, env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", timeout=300,
            check=False,
        )  # fmt: skip
        return done.returncode, done.stdout

    def checkout(self, workspace: Path, commit: str, depth: int) -> None:
        """A clone at a commit, with as many commits behind it; all of them when `depth` is 0."""
        shallow = [f"--depth={depth}"] if depth else []
        origin = self.request.origin.as_uri()
        _git(workspace, "init", "--quiet")
        _git(workspace, "remote", "add", "origin", origin)
        branches = [] if depth else ["+refs/heads/*:refs/remotes/origin/*"]
        _git(workspace, "fetch", "--quiet", "--no-tags", *shallow, "origin", commit, *branches)
        _git(workspace, "checkout", "--quiet", "--detach", commit)


@dataclass
class Service(Machines, ABC):
    """A service with one recipe; artifacts lie below `folder`, one folder for each name."""

    recipe: Mapping[str, Any]
    states: dict[str, str] = field(default_factory=dict)
    """How each job of the recipe ended; all of its matrix have to pass."""

    @property
    def artifacts(self) -> Path:
        """What jobs handed on."""
        return self.folder / "artifacts"

    def run(self) -> list[JobRun]:
        """All jobs, each after those that it needs."""
        return [run for name in self.jobs() for run in self.run_job(name)]

    def run_job(self, name: str) -> list[JobRun]:
        """One job, or all of its matrix; a job that ran before is run again, with the artifacts that are there now."""
        job = self.jobs()[name]
        ready = all(self.states[needed] == "success" for needed in job.get("needs", ()))
        if ready or self.runs_always(job):
            runs = [self.play(name, job, *instance) for instance in self.instances(name, job)]
        else:
            runs = [JobRun(name, "skipped")]
        states = {run.state for run in runs}
        self.states[name] = "success" if states == {"success"} else "skipped" if states == {"skipped"} else "failure"
        return runs

    @abstractmethod
    def jobs(self) -> Mapping[str, Mapping[str, Any]]:
        """The jobs of the recipe by name."""

    @abstractmethod
    def runs_always(self, job: Mapping[str, Any]) -> bool:
        """Whether a job runs after one that failed."""

    @abstractmethod
    def instances(self, name: str, job: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """What a job is run as: the name of each run, and what is known in it alone."""

    @abstractmethod
    def play(self, name: str, job: Mapping[str, Any], shown: str, known: Mapping[str, Any]) -> JobRun:
        """Run one of them."""

    def upload(self, name: str, files: Sequence[Path], workspace: Path, *, overwrite: bool) -> None:
        """Keep files under a name, which is taken only once."""
        folder = self.artifacts / name
        assert overwrite or not folder.exists(), f"an artifact {name} is there already"
        shutil.rmtree(folder, ignore_errors=True)
        for file in files:
            target = folder / file.relative_to(workspace)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


class GitHub(Service):
    """Plays a workflow of GitHub Actions for the event `pull_request`."""

    def jobs(self) -> Mapping[str, Mapping[str, Any]]:
        """Those under `jobs`, which are written in the order of their needs."""
        jobs: Mapping[str, Mapping[str, Any]] = self.recipe["jobs"]
        return jobs

    def runs_always(self, job: Mapping[str, Any]) -> bool:
        """It says so by `if: always()`."""
        return _condition(job, failed=True)

    def instances(self, name: str, job: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Each combination of the matrix's values."""
        matrix = job.get("strategy", {}).get("matrix", {})
        combinations = [dict(zip(matrix, values, strict=True)) for values in product(*matrix.values())]
        for values in combinations:
            known = {"matrix": values, "strategy": {"job-total": len(combinations)}}
            yield _filled(job.get("name", name), known), known

    def play(self, name: str, job: Mapping[str, Any], shown: str, known: Mapping[str, Any]) -> JobRun:
        """Its steps; after one that fails only those that say `if: always()`."""
        workspace = self.workspace(shown)
        state, log = "success", ""
        for step in job["steps"]:
            if _condition(step, failed=state == "failure"):
                try:
                    log += self._step(_filled(step, known), workspace)
                except _StepError as error:
                    state, log = "failure", f"{log}{error}"
        return JobRun(shown, state, log, workspace)

    def _step(self, step: Mapping[str, Any], workspace: Path) -> str:
        """What a step prints."""
        unknown = step.keys() - {"uses", "with", "run", "env", "shell", "if", "name"}
        assert not unknown, f"a step with {unknown} is not played"
        if "uses" in step:
            return self._action(step["uses"].partition("@")[0], step.get("with", {}), workspace)
        words = ("-o", "pipefail") if step.get("shell") == "bash" else ()
        variables = {**self._variables(workspace), **step.get("env", {})}
        status, printed = self.shell(step["run"], workspace, variables, *words)
        if status:
            raise _StepError(f"{printed}Error: Process completed with exit code {status}.\n")
        return printed

    def _variables(self, workspace: Path) -> dict[str, str]:
        return {
            "GITHUB_ACTIONS": "true",
            "GITHUB_REF": "refs/pull/1/merge",
            "GITHUB_SHA": self.request.merged,
            "GITHUB_BASE_REF": "main",
            "GITHUB_HEAD_REF": self.request.branch,
            "GITHUB_WORKSPACE": str(workspace),
            "GITHUB_STEP_SUMMARY": str(workspace.with_name(f"{workspace.name}.summary.md")),
        }

    def _action(self, name: str, inputs: Mapping[str, Any], workspace: Path) -> str:
        match name:
            case "actions/checkout":
                self.checkout(workspace, self.request.merged, int(inputs.get("fetch-depth", 1)))
            case "actions/setup-python":
                pass
            case "actions/upload-artifact":
                files = sorted(_files(workspace / inputs["path"]))
                if not files and inputs.get("if-no-files-found") == "error":
                    raise _StepError(f"Error: No files were found with the provided path: {inputs['path']}.\n")
                if files:
                    above = (workspace / inputs["path"]) if (workspace / inputs["path"]).is_dir() else files[0].parent
                    self.upload(inputs["name"], files, above, overwrite=bool(inputs.get("overwrite")))
            case "actions/download-artifact":
                assert inputs["merge-multiple"], "artifacts in folders of their own are not played"
                for artifact in sorted(self.artifacts.glob("*")):
                    if fnmatchcase(artifact.name, inputs["pattern"]):
                        shutil.copytree(artifact, workspace / inputs["path"], dirs_exist_ok=True)
            case _:
                raise AssertionError(f"{name} is not played")
        return ""


class GitLab(Service):
    """Plays a `.gitlab-ci.yml` for a merge request, in a pipeline of its branch."""

    def jobs(self) -> Mapping[str, Mapping[str, Any]]:
        """All at the top level, which are written in the order of their needs."""
        return self.recipe

    def runs_always(self, job: Mapping[str, Any]) -> bool:
        """Its rule for this pipeline says `when: always`."""
        return self._when(job) == "always"

    def instances(self, name: str, job: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """As many as `parallel` says."""
        total = job.get("parallel", 1)
        for index in range(1, total + 1):
            numbered = {"CI_NODE_INDEX": str(index)} if "parallel" in job else {}
            yield f"{name} {index}/{total}" if numbered else name, {**numbered, "CI_NODE_TOTAL": str(total)}

    def play(self, name: str, job: Mapping[str, Any], shown: str, known: Mapping[str, Any]) -> JobRun:
        """Its script, in a clone that has the artifacts of the jobs that it needs."""
        unknown = job.keys() - {"image", "parallel", "variables", "script", "artifacts", "rules", "needs", "stage"}
        assert not unknown, f"a job with {unknown} is not played"
        if self._when(job) == "never":
            return JobRun(shown, "skipped")
        workspace = self.workspace(shown)
        head = _git(self.request.origin, "rev-parse", self.request.branch)
        variables = {**self._variables(head), **job.get("variables", {}), **known}
        self.checkout(workspace, head, int(variables.get("GIT_DEPTH", 20)))
        for needed in job.get("needs", ()):
            for artifact in sorted(self.artifacts.glob("*")):
                if artifact.name.partition(" ")[0] == needed:
                    shutil.copytree(artifact, workspace, dirs_exist_ok=True)
        status, log = self.shell("\n".join(job["script"]), workspace, variables, "-o", "pipefail")
        artifacts = job.get("artifacts", {})
        if status == 0 or artifacts.get("when") == "always":
            files = [file for path in artifacts.get("paths", ()) for file in _files(workspace / path)]
            self.upload(shown.replace("/", " of "), files, workspace, overwrite=True)
        return JobRun(shown, "failure" if status else "success", log, workspace)

    def _variables(self, head: str) -> dict[str, str]:
        return {
            "GITLAB_CI": "true",
            "CI_PIPELINE_SOURCE": "merge_request_event",
            "CI_MERGE_REQUEST_EVENT_TYPE": "detached",
            "CI_MERGE_REQUEST_TARGET_BRANCH_NAME": "main",
            "CI_MERGE_REQUEST_SOURCE_BRANCH_NAME": self.request.branch,
            "CI_COMMIT_SHA": head,
            "CI_DEFAULT_BRANCH": "main",
        }

    def _when(self, job: Mapping[str, Any]) -> str:
        """When a job runs, by the first of its rules that holds."""
        variables = self._variables("")
        for rule in job["rules"]:
            match = _RULE.fullmatch(rule["if"])
            assert match, f"the rule {rule['if']} is not played"
            if variables.get(match[1]) == (match[2] or variables.get(match[3])):
                return str(rule.get("when", "on_success"))
        return "never"


class Slurm(Machines):
    """Plays a batch script of SLURM with two tasks, all on one machine."""

    def run(self, name: str) -> JobRun:
        """A script of the examples, submitted in a clone at the pull request's merge commit."""
        workspace = self.workspace(name)
        self.checkout(workspace, self.request.merged, 0)
        home = self.folder / "home"
        home.mkdir()
        script = (REPOSITORY / "examples" / name).read_text(encoding="utf-8")
        status, log = self.shell(script, workspace, {"HOME": str(home)})
        return JobRun(name, "failure" if status else "success", log, workspace)


class _StepError(Exception):
    """A step failed; what it printed."""


def read(name: str) -> dict[str, Any]:
    """A recipe of the examples."""
    recipe: dict[str, Any] = yaml.safe_load((REPOSITORY / "examples" / name).read_text(encoding="utf-8"))
    return recipe


def _condition(part: Mapping[str, Any], *, failed: bool) -> bool:
    """Whether a job or step runs, when one before it failed or none did."""
    condition = part.get("if", "success()")
    assert condition in ("success()", "always()"), f"the condition {condition} is not played"
    return not failed or condition == "always()"


def _filled(value: Any, known: Mapping[str, Any]) -> Any:
    """A value with its expressions replaced; one that is not known is an error."""
    if isinstance(value, Mapping):
        return {key: _filled(inner, known) for key, inner in value.items()}
    if not isinstance(value, str):
        return value
    return _EXPRESSION.sub(lambda match: str(_looked_up(match[1], known)), value)


def _looked_up(name: str, known: Mapping[str, Any]) -> Any:
    value: Any = known
    for part in name.split("."):
        value = value[part]
    return value


def _files(path: Path) -> Iterator[Path]:
    """A file, or all of a folder."""
    return iter([path]) if path.is_file() else (file for file in path.rglob("*") if file.is_file())


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "protocol.file.allow=always", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
