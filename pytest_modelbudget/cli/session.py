"""A run over the registered models: what `pytest --model-budget` does with a manifest."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from pytest_modelbudget import snapshot
from pytest_modelbudget.base import Base, find_base
from pytest_modelbudget.cli.capture import captured_output
from pytest_modelbudget.cli.parallel import Count, Engine, Selected, check_in_pool, check_in_turn
from pytest_modelbudget.cli.progress import progress
from pytest_modelbudget.cli.project import Project
from pytest_modelbudget.engine.run import entries_from, in_ci, run
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.executors import Lost
from pytest_modelbudget.isolation import Isolation, isolation_enabled
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.results.store import ResultStore
from pytest_modelbudget.session.baseline import BaseManifest
from pytest_modelbudget.session.finish import Collected
from pytest_modelbudget.session.registry import (
    Registry,
    bad_config_result,
    obsolete_files_result,
    register_manifest,
    snapshot_clashes,
)
from pytest_modelbudget.system.pace import Pace

INTERRUPTED = 2
"""What a run that was interrupted exits with, as of pytest."""

Dealer = Callable[[Sequence[Registry]], Collection[str]]
"""Given all that is registered, the node ids that this run is to check."""

Listener = Callable[[Result, str, int], None]
"""Told each result when it is there, what the model's code printed, and how many models have no snapshot yet."""


@dataclass(frozen=True, slots=True)
class CheckRun:
    """The results of a run, the manifests they are of, and what these say that is not about one model.

    `lost` says why an executor went away in the middle; empty when it did not.
    """

    results: tuple[Result, ...]
    registries: tuple[Registry, ...]
    collected: Collected
    interrupted: bool = False
    lost: str = ""


@contextmanager
def based(project: Project, wanted: str) -> Iterator[Base]:
    """The base of a run, which `wanted` names as `--base` does.

    Raises:
        ModelBudgetError: it is not there.
    """
    with closing(Base(project.root, find_base(project.root, wanted, os.environ, ci=in_ci()))) as base:
        yield base


def check_models(
    project: Project,
    base: Base,
    ids: Sequence[str] = (),
    *,
    accept: bool = False,
    tell: Listener | None = None,
    deal: Dealer | None = None,
    engine: Engine | None = None,
) -> CheckRun:
    """Check all models of the project's manifests, or those that `ids` (globs, node ids) and `deal` select.

    What is dealt is a part of a run, which leaves obsolete files alone.

    They are counted by the workers of `engine`, or without one by one worker, one after the other; where nothing is to
    be isolated, in this process.

    Raises:
        ModelBudgetError: an id that selects nothing, or an engine that cannot be had.
    """
    results = ResultStore()
    with ExitStack() as stack:
        isolation = stack.enter_context(closing(Isolation())) if isolation_enabled() else None
        with captured_output():
            sources = entries_from if isolation is None else isolation.entries
            registries = tuple(register_manifest(path, project.root, sources) for path in project.manifests)
        selection = _Selection(ids, registries, None if deal is None else deal(registries))
        decision = _Decision(project.root, accept, base, {item.path: item.base_manifest(base) for item in registries})
        new = snapshot.count_missing(project.root, [entry for _, entry in _selected_models(registries, selection)])

        def take(result: Result, output: str) -> None:
            results.add(result)
            if tell is not None:
                tell(result, output, new)

        checked = _check_each(project, registries, selection, decision, isolation, engine)
        interrupted, lost = _take_all(checked, take)
        if interrupted or lost:
            reason = f"{lost or 'the run was interrupted'} before it was checked"
            for result in _not_checked_results(registries, selection, {result.nodeid for result in results}, reason):
                results.add(result)
    collected = Collected()
    for registry in registries:
        collected.add(registry.groups, decision.base_manifests[registry.path].findings)
    return CheckRun(tuple(results), registries, collected, interrupted, lost)


def _take_all(checked: Generator[tuple[Result, str]], take: Callable[[Result, str], None]) -> tuple[bool, str]:
    """Take each result as it comes; returns whether that was interrupted, and why an executor was lost meanwhile."""
    try:
        with closing(checked):
            for result, output in checked:
                take(result, output)
    except KeyboardInterrupt:
        return True, ""
    except Lost as end:
        return False, str(end) or "the executor was lost"
    return False, ""


def _not_checked_results(
    registries: Sequence[Registry], selection: _Selection, checked_nodeids: Collection[str], reason: str
) -> Iterator[Result]:
    """A result for each model that the end of the run came before."""
    for registry, entry in _selected_models(registries, selection):
        if (nodeid := f"{registry.loaded.file}::{entry.id}") not in checked_nodeids:
            yield Result(entry.id, State.NOT_CHECKED, place=entry.place, tags=entry.tags, error=reason, nodeid=nodeid)


def _selected_models(registries: Sequence[Registry], selection: _Selection) -> list[Selected]:
    return [
        (registry, entry)
        for registry in registries
        for entry in (*registry.absent, *registry.entries)
        if selection(registry, entry.id)
    ]


class _Selection:
    """Which ids are selected."""

    def __init__(
        self, globs: Sequence[str], registries: Sequence[Registry], dealt: Collection[str] | None = None
    ) -> None:
        self.globs = globs
        self.dealt = dealt
        names = [(registry.loaded.file, name) for registry in registries for name in _registered_names(registry)]
        for glob in globs:
            if not any(_matches(glob, file, name) for file, name in names):
                registered = ", ".join(sorted({name for _, name in names})[:20])
                raise ModelBudgetError(f"no model {glob!r} is registered\n  registered: {registered or '(none)'}")

    def __call__(self, registry: Registry, name: str) -> bool:
        file = registry.loaded.file
        if self.dealt is not None and f"{file}::{name}" not in self.dealt:
            return False
        return not self.globs or any(_matches(glob, file, name) for glob in self.globs)

    @property
    def is_all(self) -> bool:
        """Whether everything that is registered is selected, and to be judged as a whole."""
        return not self.globs and self.dealt is None


def _registered_names(registry: Registry) -> Iterator[str]:
    yield from (entry.id for entry in (*registry.absent, *registry.entries))
    yield from registry.mistakes()


def _matches(glob: str, file: str, name: str) -> bool:
    return fnmatchcase(name, glob) or f"{file}::{name}" == glob


@dataclass(frozen=True, slots=True)
class _Decision:
    """What the models of a run are held against."""

    root: Path
    accept: bool
    base: Base
    base_manifests: Mapping[Path, BaseManifest]

    def __call__(self, registry: Registry, entry: ModelEntry, count: Count | None) -> Result:
        """How a model comes out; `count` counts it."""
        base_limits = registry.base_limits(entry, self.base_manifests[registry.path])
        result = run(entry, self.root, accept=self.accept, count=count, base=self.base, limits_before=base_limits)
        return replace(result, nodeid=f"{registry.loaded.file}::{entry.id}")


def _check_each(
    project: Project,
    registries: Sequence[Registry],
    selection: _Selection,
    decision: _Decision,
    isolation: Isolation | None,
    engine: Engine | None,
) -> Generator[tuple[Result, str]]:
    """Each result, with what the model's code printed."""
    for registry in registries:
        yield from ((item, "") for item in _manifest_results(registry, project, selection))
    clashing = dict(_clash_results(registries))
    models = []
    for registry, entry in _selected_models(registries, selection):
        if clash := clashing.get(id(entry)):
            yield clash, ""
        else:
            models.append((registry, entry))
    if engine is None or isolation is None or not models:
        yield from check_in_turn(models, decision, isolation, Pace(len(models)))
    else:
        with ExitStack() as stack:
            with progress("starting workers"):
                pool = stack.enter_context(engine(project.root, isolation, [entry for _, entry in models]))
            yield from check_in_pool(pool, isolation, models, decision)


def _clash_results(registries: Sequence[Registry]) -> Iterator[tuple[int, Result]]:
    """By the identity of its entry, the result of each model whose snapshot another would overwrite."""
    files = {id(entry): registry.loaded.file for registry in registries for entry in registry.entries}
    for entry, reason in snapshot_clashes([entry for item in registries for entry in item.entries]):
        nodeid = f"{files[id(entry)]}::{entry.id}"
        yield id(entry), Result(entry.id, State.BAD_CONFIG, error=reason, place=entry.place, nodeid=nodeid)


def _manifest_results(registry: Registry, project: Project, selection: _Selection) -> Iterator[Result]:
    file = registry.loaded.file
    for name, mistakes in registry.mistakes().items():
        if selection(registry, name):
            yield replace(bad_config_result(name, mistakes), nodeid=f"{file}::{name}")
    if selection.is_all and not registry.why_obsolete_unknown() and (files := registry.obsolete(project.root)):
        yield replace(obsolete_files_result("snapshot-files", files, file), nodeid=f"{file}::snapshot-files")
