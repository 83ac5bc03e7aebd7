"""What the manifests and the snapshot folders were at the base, held against what they are now."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pytest_modelbudget import config, snapshot
from pytest_modelbudget.base import Base
from pytest_modelbudget.budget import Budget, Finding, loosened
from pytest_modelbudget.config import Loaded
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError, Place
from pytest_modelbudget.loading import Unreadable, is_file, read_text
from pytest_modelbudget.results import Result


@dataclass(frozen=True, slots=True)
class Earlier:
    """A manifest as it was at the base: `loaded`, None when it is the same or cannot be told; `findings` say which."""

    loaded: Loaded | None = None
    findings: tuple[Finding, ...] = ()
    entries: Mapping[str, ModelEntry] = field(default_factory=dict)

    def limits(self, entry: ModelEntry) -> tuple[Budget, ...] | None:
        """The limits of a model there, `entry` being as its source yielded it; None where they cannot be told."""
        if self.loaded is None:
            return None
        if entry.id in self.entries:
            return self.entries[entry.id].parsed_budgets
        if not self.loaded.sources or any(one.model == entry.id for one in self.loaded.mistakes):
            return None
        try:
            return self.loaded.apply(entry).parsed_budgets
        except ModelBudgetError:
            return None


def manifest_at(base: Base, loaded: Loaded, ids: Collection[str] | None) -> Earlier:
    """What a manifest was at the base; `ids` are the models it registers now, None when not all of them are known.

    A manifest that had another of the usual names there, or lay in another folder, is found.
    """
    if not base.where.commit:
        return Earlier()
    name = base.where.name
    try:
        path = _earlier_manifest(base, loaded.file)
        before = None if path is None else base.text(path)
    except ModelBudgetError as problem:
        return Earlier(findings=(Finding("base manifest", "", f"cannot be read: {problem}"),))
    if path is None or before is None:
        text = f"{loaded.file} is not in the base ({name}), so it is new or renamed: loosened limits cannot be told"
        return Earlier(findings=(Finding("base manifest", "", text, Place(loaded.file)),))
    if path == loaded.file and before == _text(base.root / path):
        return Earlier()
    old = config.read(before, file=path)
    if wrong := next((one for one in old.mistakes if one.model is None), None):
        text = f"{wrong} (in the base, {name}): loosened limits cannot be told"
        return Earlier(findings=(Finding("base manifest", "", text),))
    entries = {entry.id: entry for entry in old.entries}
    return Earlier(old, (*_removed(old, loaded, ids), *_sums(old, loaded)), entries)


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, Unreadable):
        return ""


def _earlier_manifest(base: Base, file: str) -> str | None:
    """Its own path, else that of a manifest which is none any more: a usual name beside it, or its own elsewhere."""
    if file in base.files:
        return file
    folder = PurePosixPath(file).parent
    beside = [str(folder / name) for name in (*config.MANIFEST_NAMES, "pyproject.toml")]
    for paths in ([path for path in beside if path in base.files], base.named(PurePosixPath(file).name)):
        gone = [path for path in paths if _was_manifest(base, path) and not _is_manifest(base.root / path)]
        if len(gone) == 1:
            return gone[0]
    return None


def _is_manifest(path: Path) -> bool:
    return is_file(path) and config.holds_manifest(path)


def _was_manifest(base: Base, path: str) -> bool:
    return config.is_manifest(PurePosixPath(path).name, base.text(path) or "")


def _removed(old: Loaded, loaded: Loaded, ids: Collection[str] | None) -> Iterator[Finding]:
    """Models that nobody limits any more."""
    if ids is None or any(mistake.model is None for mistake in loaded.mistakes):
        return
    kept = {*ids, *(mistake.model for mistake in loaded.mistakes)}
    for entry in old.entries:
        if entry.id not in kept:
            yield Finding("model removed", entry.id, f"was registered at the base ({entry.place}), and is no more")


def _sums(old: Loaded, loaded: Loaded) -> Iterator[Finding]:
    now = {level.name: level for level in loaded.layers}
    for level in old.layers:
        here = now.get(level.name)
        yield from loosened(f"sum of {level.name}", here.sums if here else (), level.sums, Place(loaded.file))


def deleted_snapshots(base: Base, root: Path, results: Iterable[Result]) -> Iterator[Finding]:
    """Each snapshot of the base that is gone from the work tree, unless it moved with its model."""
    if not base.where.commit:
        return
    try:
        earlier = [path for path in base.files if f"{snapshot.FOLDER}/" in f"/{path}"]
    except ModelBudgetError:
        return  # told where the base's files were needed
    gone = [path for path in sorted(earlier) if not (root / path).exists()]
    paths = {result.snapshot.path: result.id for result in results}
    new = {PurePosixPath(path).name for path in paths if path not in base.files}
    for path in gone:
        if path in paths:
            yield Finding("snapshot deleted", paths[path], f"{path} is in the base ({base.where.name})")
        elif PurePosixPath(path).name not in new:
            text = f"{path} is in the base ({base.where.name}); no model of this run has it"
            yield Finding("snapshot deleted", "", text)
