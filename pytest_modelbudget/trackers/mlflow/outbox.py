"""The outbox: one folder for each run that is to be sent, written whole or not at all, of plain files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FOLDER = ".modelbudget"
"""The project's own folder under the root; it ignores itself in git."""

OUTCOME = "modelbudget.outcome"
"""The tag that says how a model came out."""

SCHEMA = 2
"""Version of an entry's shape."""

_ENTRY = "entry.json"
_DONE = "done"
"""The keys of the models whose history has been written, so that an entry of many can be sent in several goes."""

MOST_ENTRIES = 50
MOST_BYTES = 200 * 10**6

_ABANDONED = 3600.0
"""Seconds after which an unfinished entry is taken for one whose writer died."""


@dataclass(frozen=True, slots=True)
class Run:
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
class Model:
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
class Entry:
    """What one run of pytest sends: a run of its own, and what the history of each model may get.

    `target` names the place it is meant for, without credentials. Times are in milliseconds of Unix time:
    `created_ms` of this entry, `point_ms` of the commit.
    """

    target: str
    created_ms: int
    point_ms: int
    step: int
    experiment: str
    job: Run
    history: tuple[Model, ...] = field(default=())

    @property
    def fingerprint(self) -> str:
        """Of what all its models are and how they came out; equal when the histories need nothing new."""
        models = sorted((model.key, model.digest, model.status, model.tags.get(OUTCOME, "")) for model in self.history)
        return hashlib.sha256(json.dumps(models).encode()).hexdigest()[:16]

    @property
    def history_experiment(self) -> str:
        """The experiment with one long-lived run for each model."""
        return f"{self.experiment}/history"


class NotReadable(Exception):
    """An entry of another version, or one that was damaged."""


def home(root: Path) -> Path:
    """The project's own folder, made when it is not there.

    Raises:
        OSError: it cannot be made.
    """
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ".gitignore").exists():
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    return folder


def write(outbox: Path, entry: Entry, files: Mapping[str, str | bytes]) -> Path:
    """Write an entry with its artifacts (path in the entry -> content); it appears only when it is whole.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    outbox.mkdir(parents=True, exist_ok=True)
    name = f"{entry.created_ms:013d}-{entry.job.key[:12]}"
    draft = outbox / f".{name}"
    try:
        for path, content in {**files, _ENTRY: json.dumps({"schema": SCHEMA, **asdict(entry)})}.items():
            (draft / path).parent.mkdir(parents=True, exist_ok=True)
            data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
            (draft / path).write_bytes(data)
        return draft.rename(outbox / name)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def entries(outbox: Path) -> list[Path]:
    """The whole entries, newest first."""
    if not outbox.is_dir():
        return []
    return sorted((path for path in outbox.iterdir() if not path.name.startswith(".") and path.is_dir()), reverse=True)


def waiting(outbox: Path, target: str) -> tuple[int, int]:
    """How many entries wait for `target`, and how many for other places."""
    found = []
    for path in entries(outbox):
        with suppress(NotReadable):
            found.append(read(path).target)
    return found.count(target), len(found) - found.count(target)


def read(path: Path) -> Entry:
    """An entry as it was written.

    Raises:
        NotReadable: it is of another version or damaged.
    """
    try:
        data = json.loads((path / _ENTRY).read_text(encoding="utf-8"))
        if data.pop("schema") != SCHEMA:
            raise NotReadable(f"{path.name} was written by another version of pytest-modelbudget")
        return Entry(**{**data, "job": _run(data["job"]), "history": tuple(Model(**one) for one in data["history"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotReadable(f"{path.name} is damaged ({type(error).__name__})") from error


def _run(data: dict[str, Any]) -> Run:
    return Run(**{**data, "tables": tuple(data["tables"])})


def done(path: Path) -> frozenset[str]:
    """The keys that were noted with `note_done`."""
    with suppress(OSError):
        return frozenset((path / _DONE).read_text(encoding="ascii").split())
    return frozenset()


def note_done(path: Path, *keys: str) -> None:
    """Note that nothing is left to do for these models of an entry."""
    with suppress(OSError), (path / _DONE).open("a", encoding="ascii") as file:  # else it is done once more
        file.write("".join(f"{key}\n" for key in keys))


def remove(path: Path) -> None:
    """Remove an entry; at no moment does half an entry look like a whole one."""
    hidden = path.with_name(f".{path.name}")
    try:
        path.rename(hidden)
    except OSError:
        hidden = path
    shutil.rmtree(hidden, ignore_errors=True)


def trim(outbox: Path, *, most_entries: int = MOST_ENTRIES, most_bytes: int = MOST_BYTES) -> list[str]:
    """Remove the oldest entries over the bounds, never the newest, and abandoned drafts; say which entries."""
    for draft in outbox.glob(".*"):
        with suppress(OSError):  # another process may have removed it
            if draft.is_dir() and time.time() - draft.stat().st_mtime > _ABANDONED:
                shutil.rmtree(draft, ignore_errors=True)
    dropped, total = [], 0
    for number, path in enumerate(entries(outbox)):
        total += _size(path)
        if number and (number >= most_entries or total > most_bytes):
            dropped.append(_described(path))
            remove(path)
    return dropped


def _size(path: Path) -> int:
    """Bytes of an entry; files that another process removes in this moment count nothing."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total


def _described(path: Path) -> str:
    """An entry for people: the name of its run and when that was."""
    try:
        entry = read(path)
    except NotReadable:
        return path.name
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(entry.created_ms / 1000))
    return f"{entry.job.name} of {when} UTC"
