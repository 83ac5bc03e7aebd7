"""What a run registers, as its parts say it; manifests by a digest of their text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from pytest_modelbudget import snapshot
from pytest_modelbudget.loading import UnreadableFile, read_text
from pytest_modelbudget.parts.part import ObsoleteFiles, Registered, RunRegistry
from pytest_modelbudget.results.groups import ModelGroup
from pytest_modelbudget.session.registry import Registry


def manifest_digest(path: Path) -> str:
    """The digest of a manifest's text, whatever its line ends; empty when it cannot be read."""
    try:
        return hashlib.sha256(read_text(path).encode()).hexdigest()
    except (OSError, UnreadableFile):
        return ""


def run_registry(
    nodes: Iterable[Registered], manifests: dict[str, str], groups: Iterable[ModelGroup] = ()
) -> RunRegistry:
    """A registry whose nodes are sorted, so that all parts write the same."""
    by_node = {node.nodeid: node for node in nodes}
    return RunRegistry(tuple(by_node[nodeid] for nodeid in sorted(by_node)), manifests, tuple(groups))


def nodes_of(registry: Registry) -> Iterator[Registered]:
    """The models and mistakes of one manifest."""
    file = registry.loaded.file
    for name, mistakes in registry.mistakes().items():
        yield Registered(f"{file}::{name}", name, "mistakes", mistakes[0][0])
    for entry in (*registry.absent, *registry.entries):
        yield Registered(f"{file}::{entry.id}", entry.id, "model", entry.place, entry.tags)


def snapshot_paths(registry: Registry) -> Iterator[tuple[str, str]]:
    """Each node of one manifest with the path of its snapshot; an empty one where it has none."""
    file = registry.loaded.file
    yield from ((f"{file}::{name}", "") for name in registry.mistakes())
    yield from ((f"{file}::{entry.id}", snapshot.path_for(entry)) for entry in (*registry.absent, *registry.entries))


def obsolete_of(registry: Registry, root: Path) -> Iterator[ObsoleteFiles]:
    """The snapshot files that no model of one manifest owns, where that can be told."""
    if not registry.why_obsolete_unknown() and (files := registry.obsolete(root)):
        file = registry.loaded.file
        yield ObsoleteFiles(f"{file}::snapshot-files", file, files)
