"""The recipes for several machines, played: a repository, pull requests, and every job of the recipe.

    python -m tests.shards_demonstration FOLDER

plays `examples/github-shards.yml` and `examples/gitlab-shards.yml` as they are written, in a new folder: each shard in a
clone of its own, then the merge, then the merge again without one of the parts. What each job printed is in its log.
The models are of the framework in `fakes.py`, so that it needs nothing but git and this project.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

from tests.ci_service import GitHub, GitLab, PullRequest, Service, read
from tests.demonstration import Demonstration

SERVICES: dict[str, tuple[type[Service], str]] = {
    "github": (GitHub, "github-shards.yml"),
    "gitlab": (GitLab, "gitlab-shards.yml"),
}
MERGE = "model-budget"
"""The job that decides, in each recipe."""

WIDTHS = range(16, 64, 4)
ZOO = """
    from fakenet import Model
    from pytest_modelbudget import backends

    backends.BACKENDS["fakenet"] = "fakenet"

    def of_width(width):
        return Model(dense=(32, width))
"""
MANIFEST = """
    version: 1
    tags:
      edge:
        budgets: {params: 2k}
        sum: {params: 15k}
    models:
"""


def make(root: Path) -> Demonstration:
    """Twelve models with a limit of 2,000 params each and of 15,000 params for all, which they are within: 14,592."""
    root.mkdir(parents=True)
    repository = Demonstration(root)
    repository.git("init", "--quiet", "--initial-branch", "main")
    repository.git("config", "uploadpack.allowAnySHA1InWant", "true")
    repository.write("fakenet.py", (Path(__file__).parent / "fakes.py").read_text(encoding="utf-8"))
    repository.write("zoo.py", ZOO)
    repository.write("pytest.ini", "[pytest]\n")
    models = "".join(_model(width) for width in WIDTHS)
    repository.write("modelbudget.yaml", f"{dedent(MANIFEST)}{models}")
    accept(repository)
    repository.commit("Twelve models")
    return repository


def _model(width: int) -> str:
    return (
        f'  m{width}: {{build: "zoo:of_width", kwargs: {{width: {width}}}, inputs: "float32[B, 32]", tags: [edge]}}\n'
    )


def accept(repository: Demonstration) -> None:
    """Write the snapshots, whatever limits say of the models."""
    done = repository.pytest("--model-budget-update", "--model-budget-base=off")
    assert "snapshots: wrote" in done.stdout, done.stdout


def pull_request(repository: Demonstration, branch: str, old: str, new: str, *, announced: bool = True) -> PullRequest:
    """A branch that edits the manifest, with its snapshots where the change is announced."""
    repository.git("switch", "--quiet", "--create", branch, "main")
    repository.edit("modelbudget.yaml", old, new)
    if announced:
        accept(repository)
    repository.commit(branch)
    repository.git("switch", "--quiet", "--detach", "main")
    repository.git("merge", "--quiet", "--no-ff", "--message", f"Merge {branch} into main", branch)
    merged = repository.git("rev-parse", "HEAD")
    repository.git("switch", "--quiet", "main")
    return PullRequest(repository.root, branch, merged)


def service(name: str, request: PullRequest, folder: Path, shards: int | None = None) -> Service:
    """A service with its recipe; with another number of shards when one is given."""
    kind, recipe = SERVICES[name]
    written = read(recipe)
    if shards is not None:
        _set_shards(written, shards)
    return kind(request, folder, written)


def _set_shards(recipe: Mapping[str, Any], shards: int) -> None:
    """What a user edits for it: the list of the matrix, or the number of `parallel`."""
    if "jobs" in recipe:
        recipe["jobs"]["shards"]["strategy"]["matrix"]["shard"] = list(range(1, shards + 1))
    else:
        recipe["model-budget-shards"]["parallel"] = shards


def lose_a_part(played: Service, shard: int) -> None:
    """Delete what one shard handed on, as when its upload was lost."""
    next(played.artifacts.rglob(f"modelbudget-{shard}.part")).unlink()


def main(folder: Path) -> None:
    """Play both recipes."""
    repository = make(folder / "project")
    request = pull_request(repository, "wider", "width: 16", "width: 20")
    for name in SERVICES:
        played = service(name, request, folder / name)
        runs = played.run()
        print(*(f"{name}: {run.name}: {run.state}" for run in runs), runs[-1].log, sep="\n")
        lose_a_part(played, 3)
        [run] = played.run_job(MERGE)
        print(f"{name}: {run.name} without part 3: {run.state}", run.log, sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
