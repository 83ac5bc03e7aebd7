"""A run over the registered models: what `pytest --model-budget` does with a manifest."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from pytest_modelbudget.base import Base, locate
from pytest_modelbudget.cli.capture import captured
from pytest_modelbudget.cli.project import Project
from pytest_modelbudget.engine.run import entries_from, in_ci, run
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.isolation import Isolation, isolates
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.session.baseline import Earlier
from pytest_modelbudget.session.finish import Collected
from pytest_modelbudget.session.registry import Registry, bad_config, clashes, obsolete_files, register
from pytest_modelbudget.summary import Summary

Listener = Callable[[Result, str], None]
"""Told each result when it is there, with what the model's code printed."""


@dataclass(frozen=True, slots=True)
class Run:
    """The results of a run, the manifests they are of, and what these say that is not about one model."""

    results: tuple[Result, ...]
    registries: tuple[Registry, ...]
    collected: Collected
    interrupted: bool = False


@contextmanager
def based(project: Project, wanted: str) -> Iterator[Base]:
    """The base of a run, which `wanted` names as `--base` does.

    Raises:
        ModelBudgetError: it is not there.
    """
    with closing(Base(project.root, locate(project.root, wanted, os.environ, ci=in_ci()))) as base:
        yield base


def check_models(
    project: Project, base: Base, ids: Sequence[str] = (), *, accept: bool = False, tell: Listener | None = None
) -> Run:
    """Check all models of the project's manifests, or those that `ids` (globs, node ids) select.

    Raises:
        ModelBudgetError: an id that selects nothing.
    """
    results: list[Result] = []
    interrupted = False
    with ExitStack() as stack:
        isolation = stack.enter_context(closing(Isolation())) if isolates() else None
        with captured():
            sources = entries_from if isolation is None else isolation.entries
            registries = tuple(register(path, project.root, sources) for path in project.manifests)
        chosen = _Chosen(ids, registries)
        earlier = {one.path: one.earlier(base) for one in registries}
        count = None if isolation is None else isolation.count
        try:
            for result, said in _results(project, registries, chosen, accept, base, earlier, count):
                results.append(result)
                if tell is not None:
                    tell(result, said)
        except KeyboardInterrupt:
            interrupted = True
            results += _not_checked(registries, chosen, {result.nodeid for result in results})
    collected = Collected()
    for registry in registries:
        collected.add(registry.groups, earlier[registry.path].findings)
    return Run(tuple(results), registries, collected, interrupted)


def _not_checked(registries: Sequence[Registry], chosen: _Chosen, done: Collection[str]) -> Iterator[Result]:
    """A result for each model that an interrupt came before."""
    for registry, entry in _models(registries, chosen):
        if (nodeid := f"{registry.loaded.file}::{entry.id}") not in done:
            why = "the run was interrupted before it was checked"
            yield Result(entry.id, State.NOT_CHECKED, place=entry.place, tags=entry.tags, error=why, nodeid=nodeid)


def _models(registries: Sequence[Registry], chosen: _Chosen) -> list[tuple[Registry, ModelEntry]]:
    return [
        (registry, entry)
        for registry in registries
        for entry in (*registry.absent, *registry.entries)
        if chosen(registry, entry.id)
    ]


class _Chosen:
    """Which ids are selected."""

    def __init__(self, globs: Sequence[str], registries: Sequence[Registry]) -> None:
        self.globs = globs
        names = [(one.loaded.file, name) for one in registries for name in _names(one)]
        for glob in globs:
            if not any(_matches(glob, file, name) for file, name in names):
                known = ", ".join(sorted({name for _, name in names})[:20])
                raise ModelBudgetError(f"no model {glob!r} is registered\n  registered: {known or '(none)'}")

    def __call__(self, registry: Registry, name: str) -> bool:
        return not self.globs or any(_matches(glob, registry.loaded.file, name) for glob in self.globs)


def _names(registry: Registry) -> Iterator[str]:
    yield from (entry.id for entry in (*registry.absent, *registry.entries))
    yield from registry.mistakes()


def _matches(glob: str, file: str, name: str) -> bool:
    return fnmatchcase(name, glob) or f"{file}::{name}" == glob


def _results(
    project: Project,
    registries: Sequence[Registry],
    chosen: _Chosen,
    accept: bool,
    base: Base,
    earlier: Mapping[Path, Earlier],
    count: Callable[[ModelEntry], Summary] | None,
) -> Iterator[tuple[Result, str]]:
    clashing = {id(entry): why for entry, why in clashes([entry for one in registries for entry in one.entries])}
    todo = _models(registries, chosen)
    for registry in registries:
        yield from ((one, "") for one in _about_manifest(registry, project, chosen))
    for number, (registry, entry) in enumerate(todo, 1):
        nodeid = f"{registry.loaded.file}::{entry.id}"
        if clash := clashing.get(id(entry)):
            yield Result(id=entry.id, state=State.BAD_CONFIG, error=clash, place=entry.place, nodeid=nodeid), ""
            continue
        with _progress(f"[{number}/{len(todo)}] {entry.id}"), captured() as output:
            before = registry.before(entry, earlier[registry.path])
            result = run(entry, project.root, accept=accept, count=count, base=base, limits_before=before)
            said = output()
        yield replace(result, nodeid=nodeid), said


def _about_manifest(registry: Registry, project: Project, chosen: _Chosen) -> Iterator[Result]:
    file = registry.loaded.file
    for name, mistakes in registry.mistakes().items():
        if chosen(registry, name):
            yield replace(bad_config(name, mistakes), nodeid=f"{file}::{name}")
    if not chosen.globs and not registry.unsure() and (files := registry.obsolete(project.root)):
        yield replace(obsolete_files("snapshot-files", files, file), nodeid=f"{file}::snapshot-files")


@contextmanager
def _progress(text: str) -> Iterator[None]:
    """Shows what is being done, where a person looks on; gone when it is done."""
    if not sys.stderr.isatty():
        yield
        return
    sys.stderr.write(f"\r\x1b[K{text}")
    sys.stderr.flush()
    try:
        yield
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
