"""What an earlier state of the repository, such as the base, says of a model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from pytest_modelbudget.budget import Baseline
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.snapshot.files import most_rows
from pytest_modelbudget.snapshot.line import read_line
from pytest_modelbudget.snapshot.lines import is_same, problem_of
from pytest_modelbudget.snapshot.places import FOLDER, folder_of, is_totals, own_path, path_for
from pytest_modelbudget.snapshot.text import read
from pytest_modelbudget.snapshot.totals_file import MOST_BYTES, Refusal, TotalsFile, parse_bounded
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.summary.totals import Totals

_MOST_CACHED = 256


class Commit(Protocol):
    """The files of a commit, as `base.Base` gives them; paths are relative to `root`."""

    root: Path

    def __hash__(self) -> int:
        """Of the object: a commit does not change."""

    @property
    def files(self) -> Mapping[str, str]:
        """Every YAML file with what stands for its content.

        Raises:
            ModelBudgetError: it cannot be listed.
        """

    def named(self, name: str) -> list[str]:
        """The paths of all files with this name, in whichever folder; see `files`."""

    def text(self, path: str, most: int | None = None) -> str | None:
        """The text of a file of at most so many bytes; None when there is none.

        Raises:
            ModelBudgetError: it is there, but cannot be read here.
        """


@dataclass(frozen=True, slots=True)
class Stored:
    """The text of a model's snapshot, and its address: a file with its rows, or a line, `zoo@nets.totals.yaml::id`."""

    address: str
    text: str
    is_line: bool

    @property
    def file(self) -> str:
        """The path of the file that it is, or is in."""
        return self.address.partition("::")[0] if self.is_line else self.address

    def read(self) -> Summary | Totals:
        """What it says.

        Raises:
            ModelBudgetError: it is damaged.
        """
        try:
            return read_line(self.text)[0] if self.is_line else read(self.text)
        except ModelBudgetError as error:
            raise ModelBudgetError(f"{self.address}: {error}") from None


def earlier_path(paths: Collection[str], path: str, *, root: Path) -> str:
    """Where a snapshot file lay among the `paths` of an earlier state.

    Its own path, else the only file of that name in another folder's `__model_budget__` that is gone now, as when a
    manifest moved.
    """
    if path in paths:
        return path
    name = path.rpartition(f"{FOLDER}/")[2]
    moved = [
        candidate
        for candidate in paths
        if (candidate == f"{FOLDER}/{name}" or candidate.endswith(f"/{FOLDER}/{name}"))
        and not (root / candidate).exists()
    ]
    return moved[0] if len(moved) == 1 else path


def baseline_of(commit: Commit, entry: ModelEntry, summary: Summary, text: str, *, name: str) -> Baseline:
    """What the snapshots of a commit, which `name` names, say of the model that is `text` now."""
    try:
        stored = at_commit(commit, entry)
    except ModelBudgetError as problem:
        return Baseline(name, reason=str(problem))
    if stored is None or not stored.is_line:
        path = path_for(entry) if stored is None else stored.address
        return baseline(None if stored is None else stored.text, summary, text, name=name, path=path)
    if stored.text == text:
        return Baseline(name, summary)
    try:
        totals, _ = read_line(stored.text)
    except ModelBudgetError as error:
        return Baseline(name, reason=f"{stored.address} of the base ({name}) cannot be read: {error}")
    return Baseline(name, replace(summary, plans=totals.plans) if is_same(totals, summary) else totals)


def baseline(committed: str | None, summary: Summary, text: str, *, name: str, path: str) -> Baseline:
    """What the snapshot in the base, which `name` names, says of the model that is `text` now; None: there is none."""
    if committed is None:
        return Baseline(name, reason=f"not in the base ({name})")
    if committed == text:
        return Baseline(name, summary)
    try:
        return Baseline(name, read(committed, most_rows(summary)))
    except ModelBudgetError as error:
        return Baseline(name, reason=f"{path} of the base ({name}) cannot be read: {error}")


def at_commit(commit: Commit, entry: ModelEntry) -> Stored | None:
    """The text that a commit has of a model, in its place or where it was before; None when it has none.

    Raises:
        ModelBudgetError: it has one that cannot be told.
    """
    file = _in_file(commit, entry) if entry.snapshot != "totals" else None
    if file is not None:
        return file
    for path in _totals_paths(commit, entry):
        totals = totals_at(commit, path)
        if totals is None:
            continue
        if reason := problem_of(totals, entry.id):
            raise ModelBudgetError(f"{path} in the commit{reason}")
        if (line := totals.get(entry.id)) is not None:
            return Stored(f"{path}::{entry.id}", line, is_line=True)
    return _in_file(commit, entry) if entry.snapshot == "totals" else None


def _in_file(commit: Commit, entry: ModelEntry) -> Stored | None:
    path = own_path(entry.home, entry.id)
    path = earlier_path(commit.named(path.rpartition("/")[2]), path, root=commit.root)
    text = commit.text(path)
    return None if text is None else Stored(path, text, is_line=False)


def _totals_paths(commit: Commit, entry: ModelEntry) -> Iterator[str]:
    """Files of totals that may have a line of a model: where it is to be first, then all others of its folder."""
    own = path_for(entry)
    if is_totals(own):
        yield earlier_path(commit.named(own.rpartition("/")[2]), own, root=commit.root)
    yield from (path for path in totals_of_folder(commit, folder_of(entry.home)) if path != own)


def totals_of_folder(commit: Commit, folder: str) -> tuple[str, ...]:
    """The files of totals in one snapshot folder of a commit."""
    return _totals_by_folder(commit).get(folder, ())


@lru_cache(8)
def _totals_by_folder(commit: Commit) -> dict[str, tuple[str, ...]]:
    by_folder: dict[str, tuple[str, ...]] = {}
    for path in sorted(filter(is_totals, commit.files)):
        folder = path[: path.rindex("/") + 1]
        by_folder[folder] = (*by_folder.get(folder, ()), path)
    return by_folder


def totals_at(commit: Commit, path: str) -> TotalsFile | None:
    """A file of totals in a commit; None when it has none.

    Raises:
        ModelBudgetError: it is there, but cannot be read here.
    """
    file = _totals_at(commit, path)
    if isinstance(file, Refusal):
        raise ModelBudgetError(file.reason)
    return file


@lru_cache(_MOST_CACHED)
def _totals_at(commit: Commit, path: str) -> TotalsFile | Refusal | None:
    """Read and taken apart once, however many models ask."""
    try:
        text = commit.text(path, MOST_BYTES)
    except ModelBudgetError as problem:
        return Refusal(str(problem))
    file = None if text is None else parse_bounded(text)
    return Refusal(f"{path} in the commit {file.reason}") if isinstance(file, Refusal) else file
