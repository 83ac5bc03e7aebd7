"""Whose histories an entry may add to: all models of few, of very many those that moved. Part of the sender."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_modelbudget.trackers.mlflow import model_records, names, tables, totals
from pytest_modelbudget.trackers.mlflow.history import LastWritten, MetricPoints
from pytest_modelbudget.trackers.mlflow.model_records import RecordContext
from pytest_modelbudget.trackers.mlflow.outbox import ModelRecord, OutboxEntry, TotalsRecord
from pytest_modelbudget.trackers.mlflow.store import Store
from pytest_modelbudget.trackers.mlflow.tables import StoredTable
from pytest_modelbudget.trackers.mlflow.totals import ModelTotals

if TYPE_CHECKING:
    from mlflow.entities import Run as StoredRun

MOST_BEGUN = 1000
"""When more models than this move at once no history begins: each would take half a dozen requests."""

_FEW = 50
"""The histories of up to so many models are looked for one by one, without reading those of all others."""

_HISTORIES = "tags.`modelbudget.kind` = 'history'"


@dataclass(frozen=True, slots=True)
class Chosen:
    """Models that may get a point, and the `runs` of those that have a history, both by or with its key.

    `holds` are the points before a move, at the last commit where the model was measured. `moved` counts all that moved
    since then, None where that is not known.
    """

    models: tuple[ModelRecord, ...]
    runs: Mapping[str, StoredRun]
    holds: Mapping[str, MetricPoints] = field(default_factory=dict)
    moved: int | None = None


class Chooser:
    """Chooses the models of the entry at `path`, whose histories are in `experiment`."""

    def __init__(self, store: Store, experiment: str, path: Path, entry: OutboxEntry) -> None:
        self._store, self._experiment, self._path, self._entry = store, experiment, path, entry

    def choose(self, mark: LastWritten, others: Iterable[LastWritten]) -> Chosen:
        """The models to look at, when `mark` is that of these models and `others` are those of other sets."""
        if self._entry.totals is None:
            return Chosen(self._entry.history, self._store.by_key(self._experiment, _HISTORIES))
        return self._of_table(self._entry.totals, mark, others)

    def _of_table(self, record: TotalsRecord, mark: LastWritten, others: Iterable[LastWritten]) -> Chosen:
        now, context = tables.content_of(self._path), RecordContext(record.project, record.unit, record.tags)
        earlier, newest = self._earlier(record, mark, others), mark.is_before(self._entry)
        moved = None if earlier is None else sum(is_move for _, _, is_move in _compared(earlier, now))
        may_begin = newest and moved is not None and moved <= MOST_BEGUN
        look_at_all = not newest or not mark.fingerprint or moved is None or moved > _FEW
        runs = self._store.by_key(self._experiment, _HISTORIES) if look_at_all else {}
        models, holds = [], {}
        for old, row, is_move in _compared(earlier or (), now):
            if not (is_move or look_at_all):
                continue
            key = model_records.history_key(row, context)
            if not look_at_all and (run := self._store.run_of_key(self._experiment, key)) is not None:
                runs[key] = run
            if key in runs or (is_move and may_begin):
                models.append(model_records.record(row, context, record.slugs.get(row.key, "")))
                if is_move and earlier is not None and old is not None and old.metrics:
                    holds[key] = MetricPoints(earlier.step, earlier.point_ms, names.charted(old.metrics))
        return Chosen(tuple(models), runs, holds, moved)

    def _earlier(self, record: TotalsRecord, mark: LastWritten, others: Iterable[LastWritten]) -> StoredTable | None:
        """The table of the last run of these models, else of the newest one of at least half as many."""
        if mark.run:
            return tables.read(self._store, mark.run)
        similar = [
            other
            for other in others
            if other.run and other.is_before(self._entry) and 2 * other.models >= record.models
        ]
        newest = max(similar, key=lambda other: (other.step, other.created_ms), default=None)
        return None if newest is None else tables.read(self._store, newest.run)


def _compared(earlier: Iterable[ModelTotals], content: bytes) -> Iterator[tuple[ModelTotals | None, ModelTotals, bool]]:
    """Each model that was counted, with its earlier line and whether it moved: is another, or came out differently."""
    for old, row in totals.pairs(earlier, totals.rows(content)):
        if row is not None and row.digest:
            yield old, row, old is None or old.outcome != row.outcome
