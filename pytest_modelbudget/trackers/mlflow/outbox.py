"""The outbox: one folder for each run that is to be sent, written whole or not at all, of plain files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.loading import InvalidText as NotJson
from pytest_modelbudget.loading import UnreadableFile, read_json, read_text
from pytest_modelbudget.system import writing
from pytest_modelbudget.trackers.mlflow import entry_shape

FOLDER = ".modelbudget"
"""The project's own folder under the root; it ignores itself in git."""

OUTCOME = "modelbudget.outcome"
"""The tag that says how a model came out."""

NOTE = "mlflow.note.content"
"""The tag that pages show as description."""

MODELS = "session/models"
"""The metric of a run that counts the lines of its table of all models."""

SCHEMA = 2
"""Version of an entry's shape."""

_ENTRY = "entry.json"
_DONE = "done"
"""The keys of the models whose history has been written, so that an entry of many can be sent in several goes."""

_NAME = re.compile(r"[0-9]{13,16}-[A-Za-z0-9]{1,12}")
"""What an entry is called; nothing else in the outbox is sent, counted or removed."""

_MOST_FILES = 10_000

MOST_ENTRIES = 50
MOST_BYTES = 200 * 10**6


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One MLflow run to write: `key` says which one it is, whenever and however often it is sent.

    `folder`, inside the entry, holds its artifacts, `tables` names those that are tables. `took_ms` are milliseconds
    that its models took together, which pages show as the duration.
    """

    key: str
    name: str
    status: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    folder: str
    tables: tuple[str, ...] = ()
    took_ms: int = 0


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A model as it was in one run of pytest: what its history, the long-lived run of this `key`, may get.

    `digest` tells whether anything that the history shows is another; `slug` is the model's name in the artifacts.
    """

    key: str
    name: str
    status: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    digest: str
    slug: str


@dataclass(frozen=True, slots=True)
class TotalsRecord:
    """Of very many models: a table of `models` lines (`totals.FILE` in the entry) in place of a record for each.

    `project`, `unit` and `tags` are what records are made with when they are needed. `keys` tells which models these
    are, `fingerprint` all that the table says. `slugs` names those that have files in the artifacts, by their keys.
    Without `history` no model gets a point.
    """

    models: int
    project: str
    unit: str
    tags: Mapping[str, str]
    keys: str
    fingerprint: str
    slugs: Mapping[str, str]
    history: bool


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """What one run of pytest sends: a run of its own, and what the history of each model may get.

    `target` names the place it is meant for, without credentials. Times are in milliseconds of Unix time:
    `created_ms` of this entry, `point_ms` of the commit.
    """

    target: str
    created_ms: int
    point_ms: int
    step: int
    experiment: str
    job: RunRecord
    history: tuple[ModelRecord, ...] = field(default=())
    totals: TotalsRecord | None = None

    @property
    def fingerprint(self) -> str:
        """Of what all its models are and how they came out; equal when the histories need nothing new."""
        if self.totals is not None:
            return self.totals.fingerprint
        models = sorted((model.key, model.digest, model.status, model.tags.get(OUTCOME, "")) for model in self.history)
        return hashlib.sha256(json.dumps(models).encode()).hexdigest()[:16]

    @property
    def adds_to_histories(self) -> bool:
        """Whether models may get points."""
        return bool(self.history) if self.totals is None else self.totals.history

    @property
    def history_experiment(self) -> str:
        """The experiment with one long-lived run for each model."""
        return f"{self.experiment}/history"


class UnreadableEntry(Exception):
    """An entry of another version, or one that was damaged."""


def project_folder(root: Path) -> Path:
    """The project's own folder, made when it is not there.

    Raises:
        ModelBudgetError: a link lies there, or in it.
        OSError: it cannot be made.
    """
    folder = root / FOLDER
    refuse_links(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(folder / ".gitignore"):  # a link that is there is not followed
        writing.write(folder / ".gitignore", "*\n")
    return folder


def refuse_links(folder: Path) -> None:
    """Nothing, for a folder of our own: what is written, sent and removed in it must not lie elsewhere.

    Raises:
        ModelBudgetError: it is a link, or one lies in it.
    """
    for path in (folder, *(folder.iterdir() if folder.is_dir() else ())):
        if path.is_symlink():
            relative = "/".join(path.parts[-1 - (path != folder) :])
            raise ModelBudgetError(f"{relative} is a link, which leads to files that are not this project's: remove it")


def write(outbox: Path, entry: OutboxEntry, files: Mapping[str, str | bytes]) -> Path:
    """Write an entry with its artifacts (path in the entry -> content); it appears only when it is whole.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    path = outbox / f"{entry.created_ms:013d}-{entry.job.key[:12]}"
    data = {"schema": SCHEMA, **asdict(entry)}
    if entry.totals is None:  # as earlier releases write and read it
        del data["totals"]
    writing.write_folder(path, {**files, _ENTRY: json.dumps(data)})
    return path


def entries(outbox: Path) -> list[Path]:
    """The whole entries, newest first."""
    if not outbox.is_dir():
        return []
    return sorted((path for path in outbox.iterdir() if _NAME.fullmatch(path.name) and _is_folder(path)), reverse=True)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def count_waiting(outbox: Path, target: str) -> tuple[int, int]:
    """How many entries wait for `target`, and how many for other places."""
    targets = []
    for path in entries(outbox):
        with suppress(UnreadableEntry):
            targets.append(read(path).target)
    return targets.count(target), len(targets) - targets.count(target)


def damaged(outbox: Path) -> Iterator[str]:
    """Why entries cannot be read, one for each of them."""
    for path in entries(outbox):
        try:
            read(path)
        except UnreadableEntry as reason:
            yield str(reason)


def read(path: Path) -> OutboxEntry:
    """An entry as it was written.

    Raises:
        NotReadable: it is of another version or damaged.
    """
    try:
        if (path / _ENTRY).is_symlink():
            raise UnreadableEntry(f"{path.name} is damaged (its {_ENTRY} is a link)")
        data = read_json(read_text(path / _ENTRY, MOST_BYTES))
        if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
            raise UnreadableEntry(f"{path.name} was written by another version of pytest-modelbudget")
    except (OSError, UnreadableFile, NotJson) as error:
        raise UnreadableEntry(f"{path.name} is damaged ({_ENTRY}: {error})") from error
    if problem := entry_shape.mistake(data):
        raise UnreadableEntry(f"{path.name} is damaged ({_ENTRY}: {problem})")
    history = tuple(ModelRecord(**model) for model in data["history"])
    totals = TotalsRecord(**data["totals"]) if data.get("totals") else None
    return OutboxEntry(**{**data, "job": _run(data["job"]), "history": history, "totals": totals})


def check_files(path: Path) -> None:
    """Nothing, for an entry that has plain files of its own alone, no more than an outbox may hold.

    Raises:
        NotReadable: a link or something that is no file lies in it, or too much.
    """
    files = total = 0
    for folder, folders, names in os.walk(path):
        for name in (*folders, *names):
            status = os.lstat(Path(folder, name))
            is_folder = stat.S_ISDIR(status.st_mode)
            if not is_folder and (not stat.S_ISREG(status.st_mode) or status.st_nlink > 1):
                raise UnreadableEntry(f"{path.name} is damaged ({name} is a link or no file)")
            files, total = files + 1, total + status.st_size
            if files > _MOST_FILES or total > MOST_BYTES:
                raise UnreadableEntry(
                    f"{path.name} is too large: more than {_MOST_FILES:,} files or {MOST_BYTES:,} bytes"
                )


def _run(data: dict[str, Any]) -> RunRecord:
    return RunRecord(**{**data, "tables": tuple(data["tables"])})


def done_keys(path: Path) -> frozenset[str]:
    """The keys that were noted with `note_done`."""
    with suppress(OSError, UnreadableFile):
        return frozenset(read_text(path / _DONE).split())
    return frozenset()


def note_done(path: Path, *keys: str) -> None:
    """Note that nothing is left to do for these models of an entry."""
    with suppress(OSError):  # where it cannot be noted, it is done once more
        writing.append(path / _DONE, "".join(f"{key}\n" for key in keys), follow=False)


def remove(path: Path) -> None:
    """Remove an entry; at no moment does half an entry look like a whole one."""
    hidden = path.with_name(f".{path.name}")
    try:
        path.rename(hidden)
    except OSError:
        hidden = path
    shutil.rmtree(hidden, ignore_errors=True)


def trim(outbox: Path, *, most_entries: int = MOST_ENTRIES, most_bytes: int = MOST_BYTES) -> list[str]:
    """Remove the oldest entries over the bounds, never the newest, and what killed runs left; say which entries."""
    writing.remove_drafts(outbox)
    for leftover in outbox.glob(".[0-9]*"):  # `remove` was killed
        if _is_folder(leftover):
            shutil.rmtree(leftover, ignore_errors=True)
    dropped, total = [], 0
    for number, path in enumerate(entries(outbox)):
        total += _size(path)
        if number and (number >= most_entries or total > most_bytes):
            dropped.append(_describe(path))
            remove(path)
    return dropped


def _size(path: Path) -> int:
    """Bytes of an entry; files that another process removes in this moment count nothing."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def _describe(path: Path) -> str:
    """An entry for people: the name of its run and when that was."""
    try:
        entry = read(path)
    except UnreadableEntry:
        return path.name
    created = time.strftime("%Y-%m-%d %H:%M", time.gmtime(entry.created_ms / 1000))
    return f"{entry.job.name} of {created} UTC"
