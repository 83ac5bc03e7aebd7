"""Lines in files of totals: which file holds a model's, how it compares, and what many of them are written as."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from pytest_modelbudget.diff import changes
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.results import Snapshot, SnapshotState
from pytest_modelbudget.snapshot.line import read_line, render_line
from pytest_modelbudget.snapshot.places import folder_of, is_totals
from pytest_modelbudget.snapshot.totals_file import (
    Refusal,
    TotalsFile,
    declared_by,
    encode,
    leads_outside,
    merged,
    read_file,
    read_now,
)
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.summary.totals import Totals
from pytest_modelbudget.system import writing

LINE = "line "
"""What stands in place of an id, with a number, for a line that is of no model; no id has a space."""


def compare(root: Path, entry: ModelEntry, path: str, summary: Summary, text: str = "") -> Snapshot:
    """Hold the fresh summary against the model's line in the file at `path`; see `files.compare`."""
    file = read_file(root, entry.home, path)
    if isinstance(file, Refusal):
        return Snapshot(SnapshotState.REFUSED, path, text, problem=f"{path}: {file.reason}")
    if file is None:
        return Snapshot(SnapshotState.MISSING, path, text)
    if reason := problem_of(file, entry.id):
        stored = SnapshotState.REFUSED if file.newer else SnapshotState.BROKEN
        return Snapshot(stored, path, text, problem=f"{path}{reason}")
    if (committed := file.get(entry.id)) is None:
        return Snapshot(SnapshotState.MISSING, path, text)
    text = text or render_line(summary, model=entry.id, declared=entry.declared)
    if committed == text:
        return Snapshot(SnapshotState.EQUAL, path)
    try:
        return _explain_difference(entry, path, summary, text, *read_line(committed))
    except ModelBudgetError as error:
        return Snapshot(SnapshotState.BROKEN, path, text, problem=f"{path}:{file.number(entry.id)}: {error}")


def _explain_difference(
    entry: ModelEntry, path: str, summary: Summary, text: str, before: Totals, declared: str
) -> Snapshot:
    if changes(before, summary):
        return Snapshot(SnapshotState.DIFFERENT, path, text, before)
    only_estimates = is_same(before, summary) and declared == entry.declared
    return Snapshot(SnapshotState.RESTATED, path, text, note="" if only_estimates else restated_note(before, summary))


def problem_of(file: TotalsFile, model: str) -> str:
    """What is to be said after the path of a file in which a model's line cannot be told; empty where it can."""
    if file.problem:
        return f"{f':{file.line}' if file.line else ''}: {file.problem}"
    line, reason = file.conflicts.get(model, (0, ""))
    return f":{line}: {reason}" if line else ""


def is_same(stored: Totals, summary: Summary) -> bool:
    """Whether stored totals are those of a summary, estimates apart; then its rows are the same too."""
    return replace(stored, plans=()) == replace(Totals.of(summary), model=stored.model, plans=())


def restated_note(before: Summary | Totals, after: Summary) -> str:
    """Why a model that did not change is written in another way."""
    if before.flops.rules != after.flops.rules:
        return f"remeasured: FLOPs are counted by rules {after.flops.rules}, the snapshot by rules {before.flops.rules}"
    return "the snapshot says the same in other words"


def has(root: Path, home: str, path: str, model: str) -> bool:
    """Whether the file at `path` has a line of a model."""
    file = read_file(root, home, path)
    return isinstance(file, TotalsFile) and model in file


def declared(root: Path, home: str, path: str, model: str) -> str:
    """Where the line of a model in the file at `path` says that it was declared; empty where there is no such line."""
    file = read_file(root, home, path)
    return declared_by(file.get(model) or "") if isinstance(file, TotalsFile) and model in file else ""


def holding(root: Path, home: str, model: str) -> Iterator[str]:
    """The files of totals in a folder that have a line of a model."""
    return (path for path in files_in(root, home) if has(root, home, path, model))


def files_in(root: Path, home: str) -> tuple[str, ...]:
    """The files of totals in the snapshot folder of `home`."""
    folder = folder_of(home)
    try:
        state = os.stat(f"{root}/{folder}")
        return _files_in(f"{root}/", folder, state.st_mtime_ns)
    except OSError:
        return ()


@lru_cache(256)
def _files_in(root: str, folder: str, _: int) -> tuple[str, ...]:
    """Listed once while nothing comes or goes: a new model asks, and there may be a hundred thousand of them."""
    return tuple(f"{folder}{name}" for name in sorted(os.listdir(root + folder)) if is_totals(f"{folder}{name}"))


def all_lines(root: Path, home: str, path: str) -> Iterator[tuple[str, str]]:
    """The address of each line of a file and where it says that its model was declared; `?` of what is no model."""
    file = read_file(root, home, path)
    if not isinstance(file, TotalsFile):
        return
    for model in file.ids:
        yield f"{path}::{model}", declared_by(file.get(model) or "")
    yield from ((f"{path}::{LINE}{number}", "?") for number in file.stray)


def write(
    root: Path, home: str, path: str, lines: Mapping[str, str], drafts: writing.DraftFolders | None = None
) -> int:
    """Put lines by id into a file of totals, atomically, beside those that are there; how many were not there already.

    Processes that do this at the same time wait for each other, so that none loses what another wrote.

    Raises:
        ModelBudgetError: it cannot be written there.
    """
    return _rewrite(root, home, path, lines, (), drafts)


def remove(root: Path, home: str, path: str, models: Iterable[str]) -> int:
    """Take the lines of models out of a file, and the file away when none is left; how many there were.

    Raises:
        ModelBudgetError: it cannot be written, or has a conflict, of which nothing is to be lost.
    """
    return _rewrite(root, home, path, {}, frozenset(models), None)


def _rewrite(
    root: Path,
    home: str,
    path: str,
    lines: Mapping[str, str],
    gone: Iterable[str],
    drafts: writing.DraftFolders | None,
) -> int:
    target, folder = root / path, root / folder_of(home)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if leads_outside(target, root / home):
            raise ModelBudgetError("is a link that leads out of the folder: remove it")
        draft = drafts.of(folder) if drafts else None
        with writing.alone_in(root / home):
            file = _writable(read_now(target, root / home), pruned=not lines)
            text = merged(file, lines, gone)
            if file is not None and file.text == text:
                return 0
            if file is not None and not lines and text == merged(None, {}):
                target.unlink()
            else:
                writing.write(target, encode(text), made_in=draft)
    except (OSError, ModelBudgetError) as error:
        reason = f"cannot be written ({error.strerror or error})" if isinstance(error, OSError) else str(error)
        raise ModelBudgetError(f"{path}: {reason}") from None
    if file is None:
        return len(lines)
    new = sum(model in file.conflicts or file.get(model) != line for model, line in lines.items())
    return new + sum(model in file.starts for model in gone)


def _writable(file: TotalsFile | Refusal | None, *, pruned: bool) -> TotalsFile | None:
    if isinstance(file, Refusal):
        raise ModelBudgetError(file.reason)
    if file is not None and (file.newer or (pruned and file.problem)):
        raise ModelBudgetError(file.problem)
    if file is not None and pruned and file.conflicts:
        line, reason = next(iter(file.conflicts.values()))
        raise ModelBudgetError(f"line {line} {reason}: update its models before anything is pruned")
    return file
