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
from pytest_modelbudget.config import ITEM_NAMES, Loaded, load
from pytest_modelbudget.engine.run import entries_from
from pytest_modelbudget.engine.tracebacks import user_traceback
from pytest_modelbudget.entry import ModelEntry, duplicates
from pytest_modelbudget.errors import FrameworkMissing, ModelBudgetError, Place
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.results.groups import Group
from pytest_modelbudget.session.baseline import Earlier, manifest_at

Complaint = tuple[Place | None, str]
"""Where something is wrong, and what."""


@dataclass(frozen=True, slots=True)
class Registry:
    """What one manifest registers.

    `entries` are those of the manifest, then those of its sources, sorted and so the same in every process. `absent`
    are sources whose framework is not installed, as entries that are skipped as a model would be, `broken` those
    that could not be read; `yielded` are entries by id as sources gave them, without what the manifest adds.
    """

    path: Path
    loaded: Loaded
    entries: tuple[ModelEntry, ...]
    absent: tuple[ModelEntry, ...] = ()
    broken: tuple[Complaint, ...] = ()
    yielded: Mapping[str, ModelEntry] = field(default_factory=dict)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Tags and groups with limits on the sum over their models."""
        return tuple(
            Group(
                level.name,
                self.loaded.file,
                level.sums,
                tuple(f"{self.loaded.file}::{entry.id}" for entry in self.entries if level.matches(entry)),
                Place(self.loaded.file, level.line),
            )
            for level in self.loaded.layers
            if level.sums
        )

    def earlier(self, base: Base) -> Earlier:
        """The manifest as it was at the base."""
        ids = [entry.id for entry in self.entries]
        complete = not self.broken and not self.absent
        return manifest_at(base, self.loaded, ids if complete else None)

    def before(self, entry: ModelEntry, earlier: Earlier) -> tuple[Budget, ...] | None:
        """The limits of one of its models at the base; None where they cannot be told."""
        return earlier.limits(self.yielded.get(entry.id, entry))

    def mistakes(self) -> dict[str, list[Complaint]]:
        """All that is wrong, under the model it concerns, `manifest` or `sources`."""
        found: dict[str, list[Complaint]] = {}
        for mistake in self.loaded.mistakes:
            found.setdefault(mistake.model or "manifest", []).append((mistake.place, mistake.message))
        if self.broken:
            found["sources"] = list(self.broken)
        return found

    def unsure(self) -> str:
        """Why it cannot be told which snapshots are obsolete; empty when it can."""
        lacking = (f"the source {entry.build} lacks its framework" for entry in self.absent)
        wrong = (str(one) for one in self.loaded.mistakes if one.model is None)
        return next(iter((*(message for _, message in self.broken), *lacking, *wrong)), "")

    def obsolete(self, root: Path) -> tuple[str, ...]:
        """The snapshot files beside the manifest whose model it no longer registers."""
        damaged = (one.model for one in self.loaded.mistakes if one.model is not None)
        kept = {snapshot.path_for(entry) for entry in self.entries}
        kept |= {snapshot.path_for(replace(ModelEntry(id=name, build=""), home=self.loaded.home)) for name in damaged}

        def known(path: str, declared: str) -> bool:
            file = declared.partition("::")[0]
            return path in kept or (file != self.path.name and (self.path.parent / file).exists())

        return tuple(snapshot.obsolete(root, self.loaded.home, known))


Sources = Callable[[str, ModelEntry], tuple[ModelEntry, ...]]
"""Calls a source, as `run.entries_from` does."""


def register(path: Path, root: Path, sources: Sources = entries_from) -> Registry:
    """Read the manifest at `path` and call its sources; whatever is wrong is part of the answer."""
    loaded = load(path, file=relative(path, root))
    importable(path.parent)
    found = list(loaded.entries)
    known = {*ITEM_NAMES, *(entry.id for entry in found), *(mistake.model for mistake in loaded.mistakes)}
    broken: list[Complaint] = []
    absent: list[ModelEntry] = []
    yielded: dict[str, ModelEntry] = {}
    for reference, place in loaded.sources:
        holder = ModelEntry(
            id="sources", build=reference, place=place, limits=loaded.limits, isolate=loaded.defaults.isolate
        )
        try:
            given = sources(reference, holder)
            more = [loaded.apply(entry) for entry in given]
            yielded.update((entry.id, entry) for entry in given)
        except FrameworkMissing:
            absent.append(loaded.apply(holder))
            continue
        except ModelBudgetError as error:
            broken.append((place, str(error).removeprefix(f"{place}: ")))
            continue
        except (Exception, SystemExit) as error:
            broken.append((place, f"the source {reference} failed:\n{user_traceback(error)}"))
            continue
        for entry in sorted(more, key=lambda entry: entry.id):
            if entry.id in known:
                broken.append((place, f"the source {reference} yields the model id {entry.id!r}, which is taken"))
            else:
                known.add(entry.id)
                found.append(entry)
    return Registry(path, loaded, tuple(found), tuple(absent), tuple(broken), yielded)


def importable(folder: Path) -> None:
    """Builders are found from the root and from the manifest's folder, as test modules are."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def relative(path: Path, root: Path) -> str:
    """`path` as node ids name it."""
    return Path(os.path.relpath(path, root)).as_posix()


def clashes(entries: Sequence[ModelEntry]) -> Iterator[tuple[ModelEntry, str]]:
    """Each entry whose snapshot another would overwrite, with what is wrong."""
    for same in duplicates(tuple(entries), snapshot.path_for).values():
        for entry in same:
            others = ", ".join(f"{other.id} ({other.place})" for other in same if other is not entry)
            yield (
                entry,
                f"its snapshot would be {snapshot.path_for(entry)}, which is also that of {others}: rename one "
                "(file systems that ignore case count too)",
            )


def bad_config(name: str, mistakes: Sequence[Complaint]) -> Result:
    """All mistakes at once, each with its line."""
    lines = [f"{place}: {message}" if place else message for place, message in mistakes]
    return Result(id=name, state=State.BAD_CONFIG, error="\n".join(lines), place=mistakes[0][0])


def obsolete_files(name: str, files: Sequence[str], declared: str) -> Result:
    """Snapshot files that no model owns, and how to delete them."""
    many = len(files)
    lines = [
        f"{many} snapshot file{'s have' if many > 1 else ' has'} no model in {declared}:",
        *(f"  {path}" for path in files),
        "delete:  pytest --model-budget-prune",
    ]
    return Result(id=name, state=State.OBSOLETE, error="\n".join(lines), files=tuple(files))
