"""Find registered models: manifests as files, decorated builders as values of test modules."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pytest_modelbudget import snapshot
from pytest_modelbudget.budget import Budget
from pytest_modelbudget.config import MANIFEST_NAMES, holds_manifest
from pytest_modelbudget.engine.run import entries_from
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError, Place
from pytest_modelbudget.loading import is_file, non_file_kind
from pytest_modelbudget.plugin import was_requested
from pytest_modelbudget.plugin.base import BASE, COLLECTED, ISOLATION, MODEL_ITEMS, report_back
from pytest_modelbudget.plugin.expected import Checklist, write_checklist
from pytest_modelbudget.plugin.importing import entries_of
from pytest_modelbudget.plugin.items import (
    BadConfigItem,
    BudgetItem,
    ModelItem,
    SnapshotFilesItem,
)
from pytest_modelbudget.plugin.parts import FIXTURE, PART, PartRun
from pytest_modelbudget.session.registry import (
    Registry,
    SourceReader,
    make_importable,
    register_manifest,
    relative_posix,
    snapshot_clashes,
)

NO_MODEL = (
    "model-budget: no model found. Register one in modelbudget.yaml (models: {net: {build: module:callable, "
    'inputs: "float32[B, 3, 32, 32]"}}), with @pytest_modelbudget.model in a test file, or check one with the '
    "model_budget fixture; a manifest elsewhere is named with --model-budget-file"
)


class Collector:
    """The part of the plugin that runs wherever tests run, on workers too."""

    def __init__(self, config: pytest.Config) -> None:
        self.root = config.rootpath
        self.chosen = _chosen_manifest(config)
        self.models = 0
        self.part = config.stash[PART]
        self.checklist = Checklist()
        self.made = config.stash[MODEL_ITEMS] = list[pytest.Item]()
        self.pytest_collect_directory(self.root)
        _add_root_manifest(config, self.chosen)  # on workers too: each finds out for itself what it is to collect
        make_importable(self.root)

    def pytest_collect_directory(self, path: Path) -> None:
        """What has the name of a manifest and is no file would be passed over without a word."""
        for name in MANIFEST_NAMES if self.chosen is None else ():
            if kind := non_file_kind(path / name):
                raise pytest.UsageError(f"model-budget: {path / name} is {kind}, where a manifest should be: remove it")

    def pytest_collect_file(self, file_path: Path, parent: pytest.Collector) -> pytest.File | None:
        """A manifest is a file of models."""
        if self.chosen is not None:
            is_manifest = file_path.resolve() == self.chosen
        else:
            is_manifest = file_path.suffix in (".yaml", ".yml", ".toml") and holds_manifest(file_path)
        return ManifestFile.from_parent(parent, path=file_path) if is_manifest else None

    @pytest.hookimpl(tryfirst=True)
    def pytest_pycollect_makeitem(self, collector: pytest.Collector, name: str, obj: object) -> pytest.Item | None:
        """A `ModelEntry` in a test module is a model."""
        if not isinstance(obj, ModelEntry):
            return None
        return ModelItem.from_parent(collector, name=obj.id, entry=_placed_in_module(obj, collector.path, self.root))

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """A part knows of all tests that check models, whatever is deselected afterwards."""
        if self.part is not None:
            self.part.note_test(item)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(
        self, session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Name clashes, obsolete files of test modules, and the run without any model."""
        self.checklist.complete = True  # pytest comes here only when nothing ended collection
        _mark_clashes(items)
        if not any("::" in arg for arg in config.args):
            self._add_module_files(items)
        self.models = sum(
            isinstance(item, BudgetItem) or FIXTURE in getattr(item, "fixturenames", ()) for item in items
        )
        on_worker = hasattr(config, "workeroutput")
        if on_worker:
            config.workeroutput["modelbudget_models"] = self.models  # type: ignore[attr-defined]
            report_back(config, config.workeroutput)  # type: ignore[attr-defined]
        elif not self.models and not session.testsfailed and wants_models(config):
            raise pytest.UsageError(NO_MODEL)
        if self.part is not None:
            self._deal(self.part, items, config)

    def _add_module_files(self, items: list[pytest.Item]) -> None:
        """Items for obsolete files of test modules; a part only notes them."""
        for item in tuple(_module_files(items, self.root)):
            if self.part is None:
                items.append(item)
            else:
                self.part.note_obsolete(item)

    def _deal(self, part: PartRun, items: list[pytest.Item], config: pytest.Config) -> None:
        part.note_models(self.made)
        try:
            part.keep_own(items, config)
        except ModelBudgetError as mistake:
            raise pytest.UsageError(f"model-budget: {mistake}") from None

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """End the worker with the last model, so that what it measured is there when coverage is summed up."""
        try:
            return (yield)
        finally:
            isolation = session.config.stash[ISOLATION]
            if isolation is not None:
                isolation.close()

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Models that an option left out are not expected."""
        self.checklist.leave_out(items)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Write down which models are to be checked, before the first is."""
        self.checklist.add(session.items)
        self.checklist.leave_out(self.made)  # what `--lf` or another plugin took out without a word
        if self.part is not None:
            self.part.note_selected(session.items)
        write_checklist(session.config, self.checklist)


def wants_models(config: pytest.Config) -> bool:
    """Whether a run without any model is a mistake: not when an ini file has the option on and the user named paths.

    Nor where the run writes a part: the merge tells.
    """
    if config.getoption("collectonly") or config.stash[PART] is not None:
        return False
    return was_requested(config) or config.args_source is not config.ArgsSource.ARGS


def runs_all(config: pytest.Config) -> bool:
    """Whether this process runs all that it collects, as far as its own options say."""
    selects = config.getoption("keyword") or config.getoption("markexpr") or any("::" in arg for arg in config.args)
    return not (selects or config.getoption("model_budget_part") or hasattr(config, "workerinput"))


def _chosen_manifest(config: pytest.Config) -> Path | None:
    flag, ini = config.getoption("model_budget_file"), config.getini("model_budget_file")
    if not flag and not ini:
        return None
    path = (config.invocation_params.dir / flag if flag else config.rootpath / str(ini)).resolve()
    if kind := non_file_kind(path):
        raise pytest.UsageError(f"model-budget: {flag or ini} is {kind}, where a manifest should be")
    if not is_file(path):
        raise pytest.UsageError(f"model-budget: there is no manifest {flag or ini}")
    return path


def _add_root_manifest(config: pytest.Config, chosen: Path | None) -> None:
    """`testpaths` would hide a manifest in the root; paths the user names stay what they are."""
    if config.args_source is config.ArgsSource.ARGS:
        return
    names = (*MANIFEST_NAMES, "pyproject.toml")
    paths = [chosen] if chosen else [config.rootpath / name for name in names]
    for path in paths:
        covered = any(path.is_relative_to((config.invocation_params.dir / arg).resolve()) for arg in config.args)
        if path.is_file() and _is_manifest(path, chosen) and not covered:
            config.args.append(str(path))


def _is_manifest(path: Path, chosen: Path | None) -> bool:
    """Whether `path` is to be read as a manifest."""
    return path == chosen or (chosen is None and holds_manifest(path))


def _placed_in_module(entry: ModelEntry, module: Path, root: Path) -> ModelEntry:
    budgets = tuple(
        replace(rule, place=_below_root(rule.place, root)) if isinstance(rule, Budget) else rule for rule in entry.rules
    )
    return replace(
        entry,
        home=relative_posix(module.parent, root),
        declared=module.name,
        place=_below_root(entry.place, root),
        budgets=budgets,
    )


def _below_root(place: Place | None, root: Path) -> Place | None:
    """A place with its file as a run names files: relative to the root."""
    if place is None or not Path(place.file).is_absolute():
        return place
    return Place(relative_posix(Path(place.file), root), place.line)


def _mark_clashes(items: Iterable[pytest.Item]) -> None:
    """Two models with one snapshot file would overwrite each other."""
    models = {id(item.entry): item for item in items if isinstance(item, ModelItem)}
    for entry, clash in snapshot_clashes([item.entry for item in models.values()]):
        models[id(entry)].clash = clash


def _module_files(items: Iterable[pytest.Item], root: Path) -> Iterator[SnapshotFilesItem]:
    """An item for each collected test module that snapshots were declared in and whose models are gone."""
    items = tuple(items)
    modules = {module: None for item in items if (module := item.getparent(pytest.Module)) is not None}
    folders_done = {manifest.path.parent for item in items if (manifest := item.getparent(ManifestFile)) is not None}
    for module in modules:
        home = relative_posix(module.path.parent, root)
        speaks_for_folder = (
            module.path.parent not in folders_done
        )  # one module of a folder speaks for those that are gone
        folders_done.add(module.path.parent)
        placed = (_placed_in_module(entry, module.path, root) for entry in entries_of(module.obj))
        owned = {address for entry in placed for address in snapshot.addresses(root, entry)}
        files = tuple(snapshot.obsolete(root, home, partial(_module_owns, module, owned, speaks_for_folder)))
        if files:
            yield SnapshotFilesItem.from_parent(module, name="snapshot-files", files=files, declared=module.name)


def _module_owns(module: pytest.Module, owned: set[str], speaks_for_folder: bool, address: str, declared: str) -> bool:
    file, _, function = declared.partition("::")
    if file != module.path.name:
        return not speaks_for_folder or (module.path.parent / file).exists()
    return address in owned if not function else hasattr(module.obj, function.split("::")[0])


def _without_interrupt(sources: SourceReader, reference: str, holder: ModelEntry) -> tuple[ModelEntry, ...]:
    """What a source yields; on a worker of xdist, which is replaced by another when it is interrupted, without end.

    Raises:
        ModelBudgetError: it raised KeyboardInterrupt, or what `sources` raises.
    """
    try:
        return sources(reference, holder)
    except KeyboardInterrupt:
        raise ModelBudgetError(f"{holder.place}: the source {reference} raised KeyboardInterrupt") from None


class ManifestFile(pytest.File):
    """A manifest: an item for each model, for each mistake, and for snapshot files that nobody owns."""

    def collect(self) -> Iterator[pytest.Item]:
        """Read the manifest; a mistake is an item that fails, so that the other models are still checked."""
        isolation = self.config.stash[ISOLATION]
        sources = entries_from if isolation is None else isolation.entries
        if hasattr(self.config, "workerinput"):
            sources = partial(_without_interrupt, sources)
        registry = register_manifest(self.path, self.config.rootpath, sources)
        if isolation is not None and not self.config.getoption("collectonly"):
            isolation.start(next(iter(registry.entries), None) if runs_all(self.config) else None)
        part = self.config.stash[PART]
        if part is not None:
            part.note_manifest(self.path, registry.loaded.file)
        for name, mistakes in registry.mistakes().items():
            yield BadConfigItem.from_parent(self, name=name, mistakes=mistakes)
        base_manifest = registry.base_manifest(self.config.stash[BASE])
        self.config.stash[COLLECTED].add(registry.groups, base_manifest.findings)
        for entry in (*registry.absent, *registry.entries):
            base_limits = registry.base_limits(entry, base_manifest)
            yield ModelItem.from_parent(self, name=entry.id, entry=entry, limits_before=base_limits)
        for item in self._snapshot_files(registry):
            if part is None:
                yield item
            else:
                part.note_obsolete(item)

    def _snapshot_files(self, registry: Registry) -> Iterator[SnapshotFilesItem]:
        if reason := registry.why_obsolete_unknown():
            if self.config.getoption("model_budget_prune"):
                yield SnapshotFilesItem.from_parent(
                    self, name="snapshot-files", files=(), refused=reason, declared=registry.loaded.file
                )
            return
        if files := registry.obsolete(self.config.rootpath):
            yield SnapshotFilesItem.from_parent(self, name="snapshot-files", files=files, declared=registry.loaded.file)
