"""Snapshot files: how each compares, and atomic writes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from pytest_modelbudget.diff import changes
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.loading import UnreadableFile, read_head, read_text
from pytest_modelbudget.results import Snapshot, SnapshotState
from pytest_modelbudget.snapshot import lines
from pytest_modelbudget.snapshot.line import render_line
from pytest_modelbudget.snapshot.places import FOLDER, address, home_of, is_totals, own_path, path_for
from pytest_modelbudget.snapshot.text import MOST_ROWS, NewerFormat, compared, read, render
from pytest_modelbudget.snapshot.totals_file import declared_by, leads_outside
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.system import writing

_FEW_ROWS = 10_000


def text_for(entry: ModelEntry, summary: Summary) -> str:
    """What an update writes of a model: a file with its rows, or its line in a file of totals."""
    if entry.snapshot == "totals":
        return render_line(summary, model=entry.id, declared=entry.declared)
    return render(summary, declared=entry.declared)


def count_missing(root: Path, entries: Iterable[ModelEntry]) -> int:
    """How many models have no snapshot yet."""
    return sum(next(_stored_addresses(root, entry), None) is None for entry in entries)


def addresses(root: Path, entry: ModelEntry) -> Iterator[str]:
    """Where the snapshot of a model is to be, and where it is while it is not there."""
    yield address(entry)
    if (stored := next(_stored_addresses(root, entry), None)) is not None:
        yield stored


def _stored_addresses(root: Path, entry: ModelEntry) -> Iterator[str]:
    """Where a snapshot of a model is now, its own place first."""
    if entry.snapshot == "totals" and lines.has(root, entry.home, path_for(entry), entry.id):
        yield address(entry)
    file = own_path(entry.home, entry.id)
    if os.path.lexists(f"{root}/{file}"):
        yield file
    yield from (f"{path}::{entry.id}" for path in lines.holding(root, entry.home, entry.id))


def compare(root: Path, entry: ModelEntry, summary: Summary, text: str = "") -> Snapshot:
    """Hold the fresh summary against what is committed; the clean case compares text and parses nothing.

    `text` is what `text_for` gives, for callers that have it. A model that is stored elsewhere in its folder so far, in
    a file of its own or among the totals, is held against that: to move it is no change, and accepts none.
    """
    text = text or text_for(entry, summary)
    path = path_for(entry)
    if entry.snapshot == "totals":
        stored = lines.compare(root, entry, path, summary, text)
    else:
        stored = _compare_file(root, entry, path, summary, text)
    if stored.stored is not SnapshotState.MISSING:
        return stored
    elsewhere = _compare_elsewhere(root, entry, summary)
    if elsewhere is None:
        return stored
    place = elsewhere.path if is_totals(elsewhere.path) else "a file of its own"
    note = "; ".join(filter(None, (elsewhere.note, f"stored in {place} so far")))
    state = SnapshotState.RESTATED if elsewhere.stored is SnapshotState.EQUAL else elsewhere.stored
    return replace(elsewhere, stored=state, path=path, text=text, note=note)


def _compare_elsewhere(root: Path, entry: ModelEntry, summary: Summary) -> Snapshot | None:
    """The same with what is committed of the model in another place; None where nothing is."""
    if entry.snapshot == "totals":
        path = own_path(entry.home, entry.id)
        if os.path.lexists(f"{root}/{path}"):
            file = _compare_file(root, entry, path, summary)
            if file.stored is not SnapshotState.MISSING:
                return file
    other = next(lines.holding(root, entry.home, entry.id), None)
    return None if other is None else lines.compare(root, entry, other, summary)


def _compare_file(root: Path, entry: ModelEntry, path: str, summary: Summary, text: str = "") -> Snapshot:
    try:
        committed = _read(root / path, root / entry.home)
    except FileNotFoundError:
        return Snapshot(SnapshotState.MISSING, path, text)
    except UnreadableFile as error:
        position = path if error.line is None else f"{path}:{error.line}"
        stored = SnapshotState.REFUSED if error.line is None else SnapshotState.BROKEN
        return Snapshot(stored, path, text, problem=f"{position}: {error}")
    except (ModelBudgetError, OSError) as error:
        return Snapshot(SnapshotState.REFUSED, path, text, problem=f"{path}: {_problem_text(error)}")
    text = text or render(summary, declared=entry.declared)
    if committed == text:
        return Snapshot(SnapshotState.EQUAL, path)
    if compared(committed) == compared(text):  # only estimates moved, which the next update writes
        return Snapshot(SnapshotState.RESTATED, path, text)
    return _explain_difference(path, committed, text, summary)


def _problem_text(error: Exception) -> str:
    return f"cannot be read ({error.strerror or error})" if isinstance(error, OSError) else str(error)


def _explain_difference(path: str, committed: str, text: str, summary: Summary) -> Snapshot:
    try:
        before = read(committed, most_rows(summary))
    except NewerFormat as error:
        return Snapshot(SnapshotState.REFUSED, path, text, problem=f"{path}: {error}")
    except ModelBudgetError as error:
        return Snapshot(SnapshotState.BROKEN, path, text, problem=_with_line(path, str(error)))
    if before.model == summary.model and not changes(before, summary):
        return Snapshot(SnapshotState.RESTATED, path, text, before, note=lines.restated_note(before, summary))
    return Snapshot(SnapshotState.DIFFERENT, path, text, before)


def most_rows(summary: Summary) -> int:
    """Rows that are held against those of `summary`: time grows with both, and no model shrinks to a tenth unseen."""
    return min(MOST_ROWS, max(_FEW_ROWS, 10 * len(summary.layers)))


def _with_line(path: str, message: str) -> str:
    """`file: line 4 has ...` as `file:4: it has ...`."""
    match = re.match(r"line (\d+):? (.*)", message, re.DOTALL)
    return f"{path}:{match[1]}: {match[2]}" if match else f"{path}: {message}"


def _read(path: Path, home: Path) -> str:
    """The text of a snapshot with any line ends.

    Raises:
        FileNotFoundError: there is none.
        ModelBudgetError: it is a link that leads out of `home`, or no text of a size that is read.
    """
    _refuse_outside(path, home)
    return read_text(path)


def _refuse_outside(path: Path, home: Path) -> None:
    if leads_outside(path, home):
        raise ModelBudgetError("is a link that leads out of the folder: remove it")


def write(root: Path, home: str, path: str, text: str, drafts: writing.DraftFolders | None = None) -> bool:
    """Write a snapshot atomically; False when it was the same already. `drafts` serve many that are written.

    Raises:
        ModelBudgetError: it cannot be written there.
    """
    target = root / path
    try:
        try:
            if _read(target, root / home) == text:
                return False
        except FileNotFoundError:
            pass
        except UnreadableFile as error:
            if error.line is None:  # what is no text is a damaged snapshot, and is written anew
                raise
        target.parent.mkdir(parents=True, exist_ok=True)
        _refuse_outside(target, root / home)  # once more: a link may have come in between
        writing.write(target, text, made_in=drafts.of(root / home / FOLDER) if drafts else None)
    except (OSError, ModelBudgetError) as error:
        reason = f"cannot be written ({error.strerror or error})" if isinstance(error, OSError) else str(error)
        raise ModelBudgetError(f"{path}: {reason}") from None
    return True


def superseded(root: Path, path: str, model: str, text: str) -> Iterator[str]:
    """Where else the model is stored that was just written to `path` as `text`: what the same declaration wrote before.

    That is a file of its own beside a file of totals, or a line in another file of totals than `path`.
    """
    home = home_of(path)
    declared = declared_by(text) if is_totals(path) else _in_head(text.splitlines(), "declared")
    file = own_path(home, model)
    head = [] if file == path or leads_outside(root / file, root / home) else _head(root / file)
    if (_in_head(head, "model"), _in_head(head, "declared")) == (model, declared):
        yield file
    for other in lines.holding(root, home, model):
        if other != path and lines.declared(root, home, other, model) == declared:
            yield f"{other}::{model}"


def declared_in(path: Path) -> str | None:
    """The file name a snapshot says it was declared in; None for what is not a snapshot of ours."""
    return _in_head(_head(path), "declared")


def _head(path: Path) -> list[str]:
    """The first lines of a file; none of what cannot be read."""
    try:
        return read_head(path, 80_000).decode("utf-8-sig", "replace").splitlines()
    except (OSError, UnreadableFile):
        return []


def _in_head(head: list[str], key: str) -> str | None:
    matches = (re.fullmatch(key + r': "?([^"\n]*)"?\s*', line) for line in head[:8])
    return next((match[1] for match in matches if match), None)


def obsolete(root: Path, home: str, known: Callable[[str, str], bool]) -> Iterator[str]:
    """Yield the address of each snapshot in the folder of `home` for which `known(address, declared)` is false."""
    folder = root / home / FOLDER
    try:
        _refuse_outside(folder, root / home)
    except ModelBudgetError:  # what a link leads out to is not ours to delete
        return
    for file in sorted(folder.rglob("*.yaml")):
        path = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.as_posix()
        if is_totals(path):
            yield from (line for line, declared in lines.all_lines(root, home, path) if not known(line, declared))
            continue
        declared = declared_in(file)
        if declared is not None and not known(path, declared):
            yield path
