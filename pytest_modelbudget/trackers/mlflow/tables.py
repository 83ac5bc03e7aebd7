"""Tables of all models in an MLflow store: each run of very many has one, whole or as what differs from another run's.

Part of the sender: all of it can be repeated. A table that is gone or damaged counts as none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from pytest_modelbudget.system import writing
from pytest_modelbudget.trackers.mlflow import outbox, totals, views
from pytest_modelbudget.trackers.mlflow.artifacts import sha256_hex
from pytest_modelbudget.trackers.mlflow.outbox import MODELS, OutboxEntry, TotalsRecord
from pytest_modelbudget.trackers.mlflow.store import Store
from pytest_modelbudget.trackers.mlflow.totals import DIFFERING, FILE, ModelTotals, TableBuilder, UnreadableTable

if TYPE_CHECKING:
    from mlflow.entities import Run as StoredRun

TABLE: Final = "modelbudget.table"
"""The tag of a run that says which run has the whole table, and at which commit the models were measured."""

_WHOLE: Final = "modelbudget.whole"
"""The tag of a run that has a whole table: a hash of the project that it is of."""

_FEWEST_WHOLE = 100
"""Up to so many lines that differ are sent as such, of more models up to a tenth; of more the whole table is."""


@dataclass(frozen=True, slots=True)
class StoredTable:
    """All models as they were measured at a commit, its `step` and time; it can be gone through any number of times."""

    step: int
    point_ms: int
    _whole: bytes
    _changes: bytes | None

    def __iter__(self) -> Iterator[ModelTotals]:
        if self._changes is None:
            return totals.rows(self._whole)
        return totals.overlaid(totals.rows(self._whole), totals.rows(self._changes))


@dataclass(frozen=True, slots=True)
class Published:
    """The table of a run that is being sent: the tags that say where it is, and the same for people."""

    tags: dict[str, str]
    note: str


def content_of(path: Path) -> bytes:
    """The table in the outbox entry at `path`.

    Raises:
        UnreadableEntry: it has none, or something else there.
    """
    try:
        content = (path / FILE).read_bytes()
        for _ in totals.rows(content):
            pass
    except (OSError, UnreadableTable) as error:
        raise outbox.UnreadableEntry(f"{path.name} is damaged ({FILE}: {error})") from None
    return content


def publish(store: Store, run: StoredRun, path: Path, entry: OutboxEntry, record: TotalsRecord) -> Published:
    """Send the table of an entry to its run: what differs from the newest whole one, or all of it."""
    run_id, experiment, content = str(run.info.run_id), str(run.info.experiment_id), content_of(path)
    base = _newest_whole(store, experiment, record)
    changes = None if base is None else _few_changes(base[1], content, record.models)
    where = {"step": entry.step, "point_ms": entry.point_ms}
    if base is None or changes is None:
        _upload(store, run, FILE, content)
        tags = {TABLE: json.dumps({**where, "whole": run_id}), _WHOLE: _project_hash(record)}
        return Published(tags, f"all {record.models:,} models: {_link(FILE, experiment, run_id, FILE)}")
    whole_id = str(base[0].info.run_id)
    note = f"all {record.models:,} models: as in {_link(f'{FILE} of another run', experiment, whole_id, FILE)}"
    if len(changes):
        _upload(store, run, DIFFERING, changes.content())
        note += f", but for {_link(f'{len(changes):,} lines', experiment, run_id, DIFFERING)}"
    return Published({TABLE: json.dumps({**where, "whole": whole_id, "lines": len(changes)})}, note)


def _link(text: str, experiment: str, run_id: str, name: str) -> str:
    return f"[{text}]({views.artifact('#', experiment, run_id, name)})"


def _project_hash(record: TotalsRecord) -> str:
    return sha256_hex(f"{record.project}:{record.unit}")[:16]


def _upload(store: Store, run: StoredRun, name: str, content: bytes) -> None:
    with TemporaryDirectory() as folder:
        writing.write(Path(folder) / name, content)
        store.upload(run, Path(folder))


def _newest_whole(store: Store, experiment: str, record: TotalsRecord) -> tuple[StoredRun, StoredTable] | None:
    """The newest whole table of the project that can be read, unless it has far fewer models."""
    condition = f"tags.`{_WHOLE}` = '{_project_hash(record)}' and metrics.`{MODELS}` >= {record.models / 2}"
    run = store.newest_run(experiment, condition)
    table = None if run is None else _read(store, run)
    return None if run is None or table is None else (run, table)


def _few_changes(base: StoredTable, content: bytes, models: int) -> TableBuilder | None:
    """The lines that differ; None when these are so many that the whole table is as well sent."""
    most = max(_FEWEST_WHOLE, models // 10)
    changes = TableBuilder(islice(totals.differing(base, totals.rows(content)), most + 1))
    return changes if len(changes) <= most else None


def read(store: Store, run_id: str) -> StoredTable | None:
    """The table of a run; None when it has none that can be read."""
    run = store.existing_run(run_id)
    return None if run is None else _read(store, run)


def _read(store: Store, run: StoredRun) -> StoredTable | None:
    facts = _facts(run.data.tags.get(TABLE, ""))
    if facts is None:
        return None
    is_whole = facts["whole"] == run.info.run_id
    whole_run = run if is_whole else store.existing_run(facts["whole"])
    whole = None if whole_run is None else store.download(whole_run, FILE)
    changes = store.download(run, DIFFERING) if facts["lines"] else None
    if whole is None or (facts["lines"] and changes is None):
        return None
    table = StoredTable(facts["step"], facts["point_ms"], whole, changes)
    try:
        for _ in table:
            pass
    except UnreadableTable:
        return None
    return table


def _facts(text: str) -> dict[str, Any] | None:
    """What the tag of a run says of its table; None where it has none, or one of somebody else."""
    try:
        data = json.loads(text)
        numbers = {name: int(data.get(name, 0)) for name in ("step", "point_ms", "lines")}
        return {**numbers, "whole": str(data["whole"])}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
