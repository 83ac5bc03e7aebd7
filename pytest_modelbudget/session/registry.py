"""What a manifest registers, with its sources, for pytest and the command alike."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pytest_modelbudget import snapshot
from pytest_modelbudget.base import Base
from pytest_modelbudget.budget import Budget
from pytest_modelbudget.config import ITEM_NAMES, LoadedManifest, load
from pytest_modelbudget.engine.run import entries_from
from pytest_modelbudget.engine.tracebacks import user_traceback
from pytest_modelbudget.entry import ModelEntry, duplicates, names_file
from pytest_modelbudget.errors import FrameworkMissing, ModelBudgetError, Place, did_you_mean
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.results.groups import ModelGroup
from pytest_modelbudget.session.addresses import counted_addresses, folded_addresses
from pytest_modelbudget.session.baseline import BaseManifest, manifest_at_base

ConfigMistake = tuple[Place | None, str]
"""Where something is wrong, and what."""


@dataclass(frozen=True, slots=True)
class Registry:
    """What one manifest registers.

    `entries` are those of the manifest, then those of its sources, sorted and so the same in every process. `absent`
    are sources whose framework is not installed, as entries that are skipped as a model would be, `broken` those
    that could not be read; `yielded` are entries by id as sources gave them, without what the manifest adds.
    """

    path: Path
    loaded: LoadedManifest
    entries: tuple[ModelEntry, ...]
    absent: tuple[ModelEntry, ...] = ()
    broken: tuple[ConfigMistake, ...] = ()
    yielded: Mapping[str, ModelEntry] = field(default_factory=dict)

    @property
    def groups(self) -> tuple[ModelGroup, ...]:
        """Tags and groups with limits on the sum over their models."""
        return tuple(
            ModelGroup(
                level.name,
                self.loaded.file,
                level.sums,
                tuple(f"{self.loaded.file}::{entry.id}" for entry in self.entries if level.matches(entry)),
                Place(self.loaded.file, level.line),
            )
            for level in self.loaded.layers
            if level.sums
        )

    def base_manifest(self, base: Base) -> BaseManifest:
        """The manifest as it was at the base."""
        ids = [entry.id for entry in self.entries]
        complete = not self.broken and not self.absent
        return manifest_at_base(base, self.loaded, ids if complete else None)

    def base_limits(self, entry: ModelEntry, base_manifest: BaseManifest) -> tuple[Budget, ...] | None:
        """The limits of one of its models at the base; None where they cannot be told."""
        return base_manifest.limits(self.yielded.get(entry.id, entry))

    def mistakes(self) -> dict[str, list[ConfigMistake]]:
        """All that is wrong, under the model it concerns, `manifest` or `sources`."""
        by_model: dict[str, list[ConfigMistake]] = {}
        for mistake in self.loaded.mistakes:
            by_model.setdefault(mistake.model or "manifest", []).append((mistake.place, mistake.message))
        if self.broken:
            by_model["sources"] = list(self.broken)
        return by_model

    def why_obsolete_unknown(self) -> str:
        """Why it cannot be told which snapshots are obsolete; empty when it can."""
        lacking = (f"the source {entry.build} lacks its framework" for entry in self.absent)
        general = (str(mistake) for mistake in self.loaded.mistakes if mistake.model is None)
        return next(iter((*(message for _, message in self.broken), *lacking, *general)), "")

    def obsolete(self, root: Path) -> tuple[str, ...]:
        """The snapshots beside the manifest whose model it no longer registers: files, and `file::id` for lines."""
        damaged = {mistake.model for mistake in self.loaded.mistakes if mistake.model is not None}
        owned = {address for entry in self.entries for address in snapshot.addresses(root, entry)}
        owned |= {snapshot.own_path(self.loaded.home, name) for name in damaged}

        def known(address: str, declared: str) -> bool:
            file = declared.partition("::")[0]
            if address in owned or address.partition("::")[2] in damaged:
                return True
            return file != self.path.name and (self.path.parent / file).exists()

        return tuple(snapshot.obsolete(root, self.loaded.home, known))


SourceReader = Callable[[str, ModelEntry], tuple[ModelEntry, ...]]
"""Calls a source, as `run.entries_from` does."""


def register_manifest(path: Path, root: Path, sources: SourceReader = entries_from) -> Registry:
    """Read the manifest at `path` and call its sources; whatever is wrong is part of the answer."""
    loaded = load(path, file=relative_posix(path, root))
    make_importable(path.parent)
    entries = list(loaded.entries)
    taken_ids = {*ITEM_NAMES, *(entry.id for entry in entries), *(mistake.model for mistake in loaded.mistakes)}
    broken: list[ConfigMistake] = []
    absent: list[ModelEntry] = []
    yielded: dict[str, ModelEntry] = {}
    for reference, place in loaded.sources:
        holder = ModelEntry(
            id="sources", build=reference, place=place, limits=loaded.limits, isolate=loaded.defaults.isolate
        )
        try:
            source_entries = sources(reference, holder)
            applied = [loaded.apply(entry, reference) for entry in source_entries]
            yielded.update((entry.id, entry) for entry in source_entries)
        except FrameworkMissing:
            absent.append(loaded.apply(holder))
            continue
        except ModelBudgetError as error:
            broken.append((place, str(error).removeprefix(f"{place}: ")))
            continue
        except (Exception, SystemExit) as error:
            broken.append((place, f"the source {reference} failed:\n{user_traceback(error)}"))
            continue
        for entry in sorted(applied, key=lambda entry: entry.id):
            if entry.id in taken_ids:
                broken.append((place, f"the source {reference} yields the model id {entry.id!r}, which is taken"))
            else:
                taken_ids.add(entry.id)
                entries.append(entry)
    entries, unknown = _with_originals(entries)
    return Registry(path, loaded, tuple(entries), tuple(absent), (*broken, *unknown), yielded)


def _with_originals(entries: Sequence[ModelEntry]) -> tuple[list[ModelEntry], list[ConfigMistake]]:
    """The entries of exported files with the models that they were made from, and what is wrong with the others."""
    by_id = {entry.id: entry for entry in entries}
    resolved: list[ModelEntry] = []
    mistakes: list[ConfigMistake] = []
    for entry in entries:
        if entry.exported_from is None:
            resolved.append(entry)
            continue
        original = by_id.get(entry.exported_from)
        if problem := _why_no_original(entry, original, by_id):
            mistakes.append((entry.place, f"{entry.id}: exported_from: {problem}"))
        resolved.append(entry if problem else replace(entry, original=original))
    return resolved, mistakes


def _why_no_original(entry: ModelEntry, original: ModelEntry | None, ids: Mapping[str, ModelEntry]) -> str:
    if not isinstance(entry.build, str) or not names_file(entry.build):
        return "it is for models that are files (build: ./net.onnx)"
    if original is None:
        hint = did_you_mean(entry.exported_from, ids)
        return (
            f"there is no model {entry.exported_from!r} in this manifest{hint} (those of decorators have no name here)"
        )
    if original is entry or original.exported_from is not None:
        return f"{entry.exported_from!r} is an exported file itself: name the model that it was made from"
    if not isinstance(original.build, str):
        return f"{entry.exported_from!r} comes from a source: name a model of the manifest"
    return ""


def make_importable(folder: Path) -> None:
    """Builders are found from the root and from the manifest's folder, as test modules are."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def relative_posix(path: Path, root: Path) -> str:
    """`path` as node ids name it."""
    return Path(os.path.relpath(path, root)).as_posix()


def snapshot_clashes(entries: Sequence[ModelEntry]) -> Iterator[tuple[ModelEntry, str]]:
    """Each entry whose snapshot another would overwrite, with what is wrong."""
    for clashing in duplicates(tuple(entries), _own_path).values():
        for entry in clashing:
            others = ", ".join(f"{other.id} ({other.place})" for other in clashing if other is not entry)
            yield (
                entry,
                f"its snapshot would be {_own_path(entry)}, which is also that of {others}: rename one "
                "(file systems that ignore case count too)",
            )


def _own_path(entry: ModelEntry) -> str:
    """What no other model may have, whichever way both are stored: each may move to the other way."""
    return snapshot.own_path(entry.home, entry.id)


def bad_config_result(name: str, mistakes: Sequence[ConfigMistake]) -> Result:
    """All mistakes at once, each with its line."""
    lines = [f"{place}: {message}" if place else message for place, message in mistakes]
    return Result(id=name, state=State.BAD_CONFIG, error="\n".join(lines), place=mistakes[0][0])


def obsolete_files_result(name: str, files: Sequence[str], declared: str) -> Result:
    """Snapshots that no model owns, files and lines of files of totals, and how to delete them."""
    lines = [
        f"{counted_addresses(files)} no model in {declared}:",
        *(f"  {line}" for line in folded_addresses(files)),
        "delete:  pytest --model-budget-prune",
    ]
    return Result(id=name, state=State.OBSOLETE, error="\n".join(lines), files=tuple(files))
