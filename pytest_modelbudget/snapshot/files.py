"""Snapshot files: where each lies, how it compares, and atomic writes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from pytest_modelbudget.budget import Baseline
from pytest_modelbudget.diff import changes
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.loading import UnreadableFile, read_head, read_text
from pytest_modelbudget.results import Snapshot, SnapshotState
from pytest_modelbudget.snapshot.text import MOST_ROWS, NewerFormat, compared, read, render
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.system import writing

FOLDER = "__model_budget__"
"""The folder beside the declaring file; not `__snapshots__`, where other plugins delete what they do not know."""

_FEW_ROWS = 10_000


def path_for(entry: ModelEntry) -> str:
    """The snapshot file of a model, relative to the root, with forward slashes; `:` is not for file names."""
    home = "" if entry.home in ("", ".") else f"{entry.home}/"
    return f"{home}{FOLDER}/{entry.id.replace(':', '_')}.yaml"


def count_missing(root: Path, entries: Iterable[ModelEntry]) -> int:
    """How many models have no snapshot file yet."""
    return sum(not os.path.lexists(root / path_for(entry)) for entry in entries)


def earlier_path(paths: Collection[str], entry: ModelEntry, *, root: Path) -> str:
    """Where the snapshot of a model lay among the `paths` files of an earlier state.

    Its own path, else the only file of that name in another folder's `__model_budget__` that is gone now, as when a
    manifest moved.
    """
    path = path_for(entry)
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


def compare(root: Path, entry: ModelEntry, summary: Summary, text: str = "") -> Snapshot:
    """Hold the fresh summary against the committed file; the clean case compares text and parses nothing.

    `text` is the summary as it is rendered, for callers that have it.
    """
    path = path_for(entry)
    text = text or render(summary, declared=entry.declared)
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
    if committed == text:
        return Snapshot(SnapshotState.EQUAL, path)
    if compared(committed) == compared(text):  # only estimates moved, which the next update writes
        return Snapshot(SnapshotState.RESTATED, path, text)
    return _explain_difference(path, committed, text, summary)


def _problem_text(error: Exception) -> str:
    return f"cannot be read ({error.strerror or error})" if isinstance(error, OSError) else str(error)


def _explain_difference(path: str, committed: str, text: str, summary: Summary) -> Snapshot:
    try:
        before = read(committed, _most_rows(summary))
    except NewerFormat as error:
        return Snapshot(SnapshotState.REFUSED, path, text, problem=f"{path}: {error}")
    except ModelBudgetError as error:
        return Snapshot(SnapshotState.BROKEN, path, text, problem=_with_line(path, str(error)))
    if before.model == summary.model and not changes(before, summary):
        return Snapshot(SnapshotState.RESTATED, path, text, before, note=_restated_note(before, summary))
    return Snapshot(SnapshotState.DIFFERENT, path, text, before)


def _most_rows(summary: Summary) -> int:
    """Rows that are held against those of `summary`: time grows with both, and no model shrinks to a tenth unseen."""
    return min(MOST_ROWS, max(_FEW_ROWS, 10 * len(summary.layers)))


def baseline(committed: str | None, summary: Summary, text: str, *, name: str, path: str) -> Baseline:
    """What the snapshot in the base, which `name` names, says of the model that is `text` now; None: there is none."""
    if committed is None:
        return Baseline(name, reason=f"not in the base ({name})")
    if committed == text:
        return Baseline(name, summary)
    try:
        return Baseline(name, read(committed, _most_rows(summary)))
    except ModelBudgetError as error:
        return Baseline(name, reason=f"{path} of the base ({name}) cannot be read: {error}")


def _with_line(path: str, message: str) -> str:
    """`file: line 4 has ...` as `file:4: it has ...`."""
    match = re.match(r"line (\d+):? (.*)", message, re.DOTALL)
    return f"{path}:{match[1]}: {match[2]}" if match else f"{path}: {message}"


def _restated_note(before: Summary, after: Summary) -> str:
    if before.flops.rules != after.flops.rules:
        return f"remeasured: FLOPs are counted by rules {after.flops.rules}, the snapshot by rules {before.flops.rules}"
    return "the snapshot says the same in other words"


def _read(path: Path, home: Path) -> str:
    """The text of a snapshot with any line ends.

    Raises:
        FileNotFoundError: there is none.
        ModelBudgetError: it is a link that leads out of `home`, or no text of a size that is read.
    """
    _refuse_outside(path, home)
    return read_text(path)


def _refuse_outside(path: Path, home: Path) -> None:
    try:
        inside = path.resolve().is_relative_to(home.resolve())
    except RuntimeError:  # links that lead in a circle, before Python 3.13
        inside = False
    if not inside:
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


def declared_in(path: Path) -> str | None:
    """The file name a snapshot says it was declared in; None for what is not a snapshot of ours."""
    try:
        lines = read_head(path, 80_000).decode("utf-8-sig", "replace").splitlines()[:8]
    except (OSError, UnreadableFile):
        return None
    matches = (re.fullmatch(r'declared: "?([^"\n]*)"?\s*', line) for line in lines)
    return next((match[1] for match in matches if match), None)


def obsolete(root: Path, home: str, known: Callable[[str, str], bool]) -> Iterator[str]:
    """Yield each snapshot file in the folder of `home` for which `known(path, declared)` is false."""
    folder = root / home / FOLDER
    try:
        _refuse_outside(folder, root / home)
    except ModelBudgetError:  # what a link leads out to is not ours to delete
        return
    for file in sorted(folder.rglob("*.yaml")):
        path = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.as_posix()
        declared = declared_in(file)
        if declared is not None and not known(path, declared):
            yield path
