"""The numbers of all models of a run as one table, a line each, and what moved from one table to another. Pure.

Runs of very many models send this table in place of files and histories for each model. Where most lines are as in the
table of an earlier run, only those that differ are sent. Tables are sorted by key, so that two of them are compared
line by line, whatever their length.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Final

from pytest_modelbudget.results import State
from pytest_modelbudget.summary.metrics import METRICS
from pytest_modelbudget.trackers.mlflow import names

FILE: Final = "all-models.csv.gz"
"""The whole table, among the artifacts of a run."""

DIFFERING: Final = "differing-models.csv.gz"
"""Only the lines that differ from the whole table of another run; `GONE` is the state of a model that is no more."""

GONE: Final = "gone"

_WORDS = ("key", "model", "state", "framework", "digest")
_NUMBERS = (*names.NAMES.values(), names.AT_LEAST, *map(names.used_name, METRICS))
_MOST_BYTES = 500 * 10**6
"""Of the text of a table that is read."""


class UnreadableTable(Exception):
    """Something else than a table of models; the message says where."""


@dataclass(frozen=True, slots=True)
class ModelTotals:
    """A model's line. `key` names it in all runs, `digest` tells whether anything that its history shows is another.

    `metrics` are its numbers under their MLflow names, without those that are not known; all of them are unknown for a
    model that could not be counted.
    """

    key: str
    model: str
    state: str
    framework: str = ""
    digest: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def outcome(self) -> tuple[str, str]:
        """What the model is, and how it came out: another one is a move."""
        return self.digest, self.state

    @property
    def failed(self) -> bool:
        """Whether it failed its run."""
        return self.state in _STATES and State(self.state).failed


_STATES = frozenset(state.value for state in State)


class TableBuilder:
    """Lines become the content of a table; each is kept as text, since a hundred thousand models have one."""

    def __init__(self, rows: Iterable[ModelTotals] = ()) -> None:
        self._lines: list[tuple[str, str]] = []
        self._known: set[str] = set()
        self._keys: Counter[str] = Counter()
        for row in rows:
            self.add(row)

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, row: ModelTotals) -> None:
        """Put one line into it; of two models with one key the second has a number after it."""
        key, *words = map(_storable, (row.key, row.model, row.state, row.framework, row.digest))
        self._known.update(row.metrics)
        self._keys[key] += 1
        if self._keys[key] > 1:
            key = f"{key}#{self._keys[key]}"
        self._lines.append((key, json.dumps([[key, *words], dict(row.metrics)])))

    def keys_hash(self) -> str:
        """Which models these are."""
        return _hash(key for key, _ in sorted(self._lines))

    def fingerprint(self) -> str:
        """Of all that the table says."""
        return _hash(line for _, line in sorted(self._lines))

    def content(self) -> bytes:
        """The table as compressed CSV, without columns that are empty throughout; equal lines give equal bytes."""
        numbers = [name for name in _NUMBERS if name in self._known]
        sink = io.BytesIO()
        with (
            gzip.GzipFile("", "wb", fileobj=sink, mtime=0) as packed,
            io.TextIOWrapper(packed, encoding="utf-8", newline="") as text,
        ):
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow((*_WORDS, *numbers))
            for _, line in sorted(self._lines):
                words, metrics = json.loads(line)
                writer.writerow((*words, *(_number_text(metrics.get(name)) for name in numbers)))
        return sink.getvalue()


def _hash(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()[:16]


def _storable(word: str) -> str:
    """A word as UTF-8 can hold it; names of files need not be text."""
    return word.encode("utf-8", "backslashreplace").decode()


def _number_text(number: float | None) -> str:
    if number is None:
        return ""
    return str(int(number)) if float(number).is_integer() else repr(number)


def rows(content: bytes) -> Iterator[ModelTotals]:
    """The lines of a table, in the order of their keys.

    Raises:
        UnreadableTable: it is damaged, too large, or something else.
    """
    before = ""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
            text = io.TextIOWrapper(packed, encoding="utf-8", newline="")
            table = csv.DictReader(_bounded(text), strict=True)
            if tuple(table.fieldnames or ())[: len(_WORDS)] != _WORDS:
                raise UnreadableTable("other columns")
            for cells in table:
                row = _row(cells)
                if row.key <= before:
                    raise UnreadableTable(f"{row.key!r} is not in its order")
                yield row
                before = row.key
    except (OSError, EOFError, ValueError, KeyError, csv.Error, zlib.error) as error:
        raise UnreadableTable(f"{type(error).__name__}: {error}") from None


def _bounded(lines: Iterable[str]) -> Iterator[str]:
    length = 0
    for line in lines:
        length += len(line)
        if length > _MOST_BYTES:
            raise UnreadableTable(f"more than {_MOST_BYTES:,} bytes")
        yield line


def _row(cells: Mapping[str, str | None]) -> ModelTotals:
    key, model, state, framework, digest = (cells[name] or "" for name in _WORDS)
    metrics = {name: float(text) for name in _NUMBERS if (text := cells.get(name))}
    if not key or not all(map(isfinite, metrics.values())):
        raise UnreadableTable(f"a line without a key, or with a number that is none: {key!r}")
    return ModelTotals(key, model, state, framework, digest, metrics)


def pairs(
    earlier: Iterable[ModelTotals], later: Iterable[ModelTotals]
) -> Iterator[tuple[ModelTotals | None, ModelTotals | None]]:
    """The lines of two tables side by side, by key; None where one of them has no such model."""
    left, right = iter(earlier), iter(later)
    before, now = next(left, None), next(right, None)
    while before is not None or now is not None:
        if now is None or (before is not None and before.key < now.key):
            yield before, None
            before = next(left, None)
        elif before is None or now.key < before.key:
            yield None, now
            now = next(right, None)
        else:
            yield before, now
            before, now = next(left, None), next(right, None)


def differing(earlier: Iterable[ModelTotals], later: Iterable[ModelTotals]) -> Iterator[ModelTotals]:
    """The lines that turn the table `earlier` into `later`, as `overlaid` does."""
    for before, now in pairs(earlier, later):
        if now is not None and now != before:
            yield now
        elif now is None and before is not None:
            yield replace(before, state=GONE, digest="", metrics={})


def overlaid(earlier: Iterable[ModelTotals], changes: Iterable[ModelTotals]) -> Iterator[ModelTotals]:
    """The table `earlier` with the lines of `changes` in place of its own."""
    for before, now in pairs(earlier, changes):
        row = before if now is None else now
        if row is not None and row.state != GONE:
            yield row
