"""What the manifests and the snapshot folders were at the base, held against what they are now."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pytest_modelbudget import config
from pytest_modelbudget.base import Base
from pytest_modelbudget.budget import Budget, Finding, loosened_limits
from pytest_modelbudget.config import LoadedManifest
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError, Place
from pytest_modelbudget.loading import UnreadableFile, is_file, read_text
from pytest_modelbudget.results import Result
from pytest_modelbudget.session import deleted


@dataclass(frozen=True, slots=True)
class BaseManifest:
    """A manifest as it was at the base: `loaded`, None when it is the same or cannot be told; `findings` say which."""

    loaded: LoadedManifest | None = None
    findings: tuple[Finding, ...] = ()
    entries: Mapping[str, ModelEntry] = field(default_factory=dict)

    def limits(self, entry: ModelEntry) -> tuple[Budget, ...] | None:
        """The limits of a model there, `entry` being as its source yielded it; None where they cannot be told."""
        if self.loaded is None:
            return None
        if entry.id in self.entries:
            return self.entries[entry.id].parsed_budgets
        if not self.loaded.sources or any(mistake.model == entry.id for mistake in self.loaded.mistakes):
            return None
        try:
            return self.loaded.apply(entry).parsed_budgets
        except ModelBudgetError:
            return None


def manifest_at_base(base: Base, loaded: LoadedManifest, ids: Collection[str] | None) -> BaseManifest:
    """What a manifest was at the base; `ids` are the models it registers now, None when not all of them are known.

    A manifest that had another of the usual names there, or lay in another folder, is found.
    """
    if not base.where.commit:
        return BaseManifest()
    name = base.where.name
    try:
        path = _base_manifest_path(base, loaded.file)
        base_text = None if path is None else base.text(path)
    except ModelBudgetError as problem:
        return BaseManifest(findings=(Finding("base manifest", "", f"cannot be read: {problem}"),))
    if path is None or base_text is None:
        text = f"{loaded.file} is not in the base ({name}), so it is new or renamed: loosened limits cannot be told"
        return BaseManifest(findings=(Finding("base manifest", "", text, Place(loaded.file)),))
    if path == loaded.file and base_text == _text_or_empty(base.root / path):
        return BaseManifest()
    base_loaded = config.read(base_text, file=path)
    if mistake := next((candidate for candidate in base_loaded.mistakes if candidate.model is None), None):
        text = f"{mistake} (in the base, {name}): loosened limits cannot be told"
        return BaseManifest(findings=(Finding("base manifest", "", text),))
    entries = {entry.id: entry for entry in base_loaded.entries}
    return BaseManifest(
        base_loaded, (*_removed_models(base_loaded, loaded, ids), *_loosened_sums(base_loaded, loaded)), entries
    )


def _text_or_empty(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, UnreadableFile):
        return ""


def _base_manifest_path(base: Base, file: str) -> str | None:
    """Its own path, else that of a manifest which is none any more: a usual name beside it, or its own elsewhere."""
    if file in base.files:
        return file
    folder = PurePosixPath(file).parent
    siblings = [str(folder / name) for name in (*config.MANIFEST_NAMES, "pyproject.toml")]
    for paths in ([path for path in siblings if path in base.files], base.named(PurePosixPath(file).name)):
        former = [path for path in paths if _was_manifest(base, path) and not _is_manifest(base.root / path)]
        if len(former) == 1:
            return former[0]
    return None


def _is_manifest(path: Path) -> bool:
    return is_file(path) and config.holds_manifest(path)


def _was_manifest(base: Base, path: str) -> bool:
    return config.is_manifest(PurePosixPath(path).name, base.text(path) or "")


def _removed_models(
    base_loaded: LoadedManifest, loaded: LoadedManifest, ids: Collection[str] | None
) -> Iterator[Finding]:
    """Models that nobody limits any more."""
    if ids is None or any(mistake.model is None for mistake in loaded.mistakes):
        return
    remaining_ids = {*ids, *(mistake.model for mistake in loaded.mistakes)}
    for entry in base_loaded.entries:
        if entry.id not in remaining_ids:
            yield Finding("model removed", entry.id, f"was registered at the base ({entry.place}), and is no more")


def _loosened_sums(base_loaded: LoadedManifest, loaded: LoadedManifest) -> Iterator[Finding]:
    levels_by_name = {level.name: level for level in loaded.layers}
    for level in base_loaded.layers:
        current_level = levels_by_name.get(level.name)
        yield from loosened_limits(
            f"sum of {level.name}", current_level.sums if current_level else (), level.sums, Place(loaded.file)
        )


def deleted_snapshots(base: Base, root: Path, results: Iterable[Result]) -> Iterator[Finding]:
    """Each snapshot of the base that is gone from the work tree, unless it moved with its model."""
    if base.where.commit:
        yield from deleted.findings(base, root, results)
