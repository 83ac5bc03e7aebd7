"""`check --part`: the models that are dealt to this run, written down for `modelbudget merge`."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Collection, Sequence
from itertools import chain
from pathlib import Path

from pytest_modelbudget.base import Base, Checkout, checkout_of
from pytest_modelbudget.cli.project import Project, terminal_width
from pytest_modelbudget.cli.session import INTERRUPTED, CheckRun
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.parts import PartHead, file
from pytest_modelbudget.parts.ending import finish_part, versions
from pytest_modelbudget.parts.registering import manifest_digest, nodes_of, obsolete_of, run_registry, snapshot_paths
from pytest_modelbudget.parts.request import WITHOUT_PART, PartRequest, refuse_beside_part, requested
from pytest_modelbudget.session.registry import Registry
from pytest_modelbudget.system.escape import harmless_lines


def part_request(options: Namespace) -> PartRequest | None:
    """The part that is asked for; that of an earlier run is removed.

    Raises:
        ModelBudgetError: it cannot be done so.
    """
    if not options.part:
        for name, value in (("--shard", options.shard), ("--times", options.times)):
            if value:
                raise ModelBudgetError(f"{name} {WITHOUT_PART.format(part='--part FILE')}")
        return None
    refuse_beside_part({"--report": options.report, "--mlflow": options.mlflow}, "modelbudget merge does it")
    times_path = Path(options.times) if options.times else None
    request = requested(options.part, options.shard, times_path, Path.cwd())
    file.forget(request.path)
    return request


def check_part(
    request: PartRequest, project: Project, base: Base, check: Callable[..., CheckRun], *, update: bool
) -> int:
    """Check what is dealt to this run, write the part, and say how it came out: 0, 1, or 2 when interrupted.

    `check` is `check_models` with all that it takes beside `deal`.
    """
    checkout = checkout_of(project.root)
    dealing = ""

    def deal(registries: Sequence[Registry]) -> Collection[str]:
        nonlocal dealing
        dealt, dealing = request.deal(dict(chain.from_iterable(map(snapshot_paths, registries))), project.root)
        return dealt

    check_run = check(deal=deal)
    head = _head(request, check_run, project, base, checkout, update=update, dealing=dealing)
    finished = finish_part(check_run.results, request, head)
    print("\n".join(finished.closing(terminal_width())))
    for problem in (*filter(None, [check_run.lost]), *finished.problems):
        print(f"ERROR {harmless_lines(problem)}", file=sys.stderr)
    return INTERRUPTED if check_run.interrupted else int(finished.failed or bool(finished.problems))


def _head(
    request: PartRequest,
    check_run: CheckRun,
    project: Project,
    base: Base,
    checkout: Checkout,
    *,
    update: bool,
    dealing: str,
) -> PartHead:
    registries, results = check_run.registries, check_run.results
    manifests = {registry.loaded.file: manifest_digest(registry.path) for registry in registries}
    nodes = chain.from_iterable(map(nodes_of, registries))
    obsolete = (item for registry in registries for item in obsolete_of(registry, project.root))
    return PartHead(
        versions=versions(),
        checkout=checkout,
        base=base.where,
        registry=run_registry(nodes, manifests, check_run.collected.groups),
        selected=tuple(result.nodeid for result in results),
        update=update,
        shard=str(request.shard or ""),
        dealing=dealing,
        findings=tuple(check_run.collected.findings),
        obsolete=tuple(obsolete),
        exit_status=int(check_run.interrupted or any(result.state.failed for result in results)),
    )
