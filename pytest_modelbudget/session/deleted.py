"""Snapshots that the base has and the work tree no longer: files, and lines of files of totals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from pathlib import Path

from pytest_modelbudget import snapshot
from pytest_modelbudget.base import Base
from pytest_modelbudget.budget import Finding
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.results import Result
from pytest_modelbudget.session.addresses import folded_addresses


def findings(base: Base, root: Path, results: Iterable[Result]) -> Iterator[Finding]:
    """Each file that is gone, and all lines that are gone of a file of totals, unless they moved with their models."""
    try:
        paths = sorted(path for path in base.files if f"{snapshot.FOLDER}/" in f"/{path}")
    except ModelBudgetError:
        return  # told where the base's files were needed
    search = _Search(base, root, results)
    for path in paths:
        if snapshot.is_totals(path):
            yield from search.lines(path)
        elif not (root / path).exists():
            yield from search.file(path)


class _Search:
    """Holds what the base has against the work tree; each file of totals is taken apart when it is first asked."""

    def __init__(self, base: Base, root: Path, results: Iterable[Result]) -> None:
        self.base, self.root = base, root
        self.models = {snapshot.own_path_beside(result.snapshot.path, result.id): result.id for result in results}

    @cached_property
    def _added_names(self) -> frozenset[str]:
        """The names of the files of models that are in this run, and were not there in the base."""
        before = set(self.base.files)
        for path in filter(snapshot.is_totals, self.base.files):
            before |= _own_paths(path, _text(snapshot.totals_at(self.base, path)))
        return frozenset(path.rpartition("/")[2] for path in self.models if path not in before)

    def file(self, path: str) -> Iterator[Finding]:
        """A finding for a file that is gone."""
        if self._is_among_totals(path):
            return
        if path in self.models:
            yield Finding("snapshot deleted", self.models[path], f"{path} is in the base ({self.base.where.name})")
        elif path.rpartition("/")[2] not in self._added_names:
            text = f"{path} is in the base ({self.base.where.name}); no model of this run has it"
            yield Finding("snapshot deleted", "", text)

    def lines(self, path: str) -> Iterator[Finding]:
        """One finding for all lines that are gone of a file."""
        try:
            before = snapshot.totals_at(self.base, path)
        except ModelBudgetError as problem:
            yield Finding("snapshot deleted", "", f"lines that are gone cannot be told: {problem}")
            return
        now = snapshot.read_file(self.root, snapshot.home_of(path), path)
        if before is None or before is now:
            return
        remaining = {*now.ids} if isinstance(now, snapshot.TotalsFile) else set()
        gone = [model for model in before.ids if model not in remaining]
        if addresses := [f"{path}::{model}" for model in gone if not self._has_moved(path, model)]:
            for text in folded_addresses(addresses):
                yield Finding("snapshot deleted", "", f"{text}: in the base ({self.base.where.name}), and gone")

    def _has_moved(self, path: str, model: str) -> bool:
        own = snapshot.own_path_beside(path, model)
        if (self.root / own).exists() or self._is_among_totals(own):
            return True
        return own not in self.models and own.rpartition("/")[2] in self._added_names

    def _is_among_totals(self, own_path: str) -> bool:
        """Whether the model that has this file, or would have it, has a line in a file of totals beside it now."""
        home = snapshot.home_of(own_path)
        for path in snapshot.totals_files(self.root, home):
            file = snapshot.read_file(self.root, home, path)
            if isinstance(file, snapshot.TotalsFile) and own_path in _own_paths(path, file.text):
                return True
        return False


def _text(file: snapshot.TotalsFile | None) -> str:
    return "" if file is None else file.text


@lru_cache(16)
def _own_paths(path: str, text: str) -> frozenset[str]:
    """The files that the models of a file of totals would have."""
    return frozenset(snapshot.own_path_beside(path, model) for model in snapshot.parse(text).ids)
