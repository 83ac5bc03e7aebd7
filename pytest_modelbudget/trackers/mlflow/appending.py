"""Appends an entry's models to their histories: those that have one first, then those whose history begins.

Each model whose history begins takes half a dozen requests, so those of a thousand models may take several runs of
pytest; what is done is noted in the entry. Part of the sender: all of it can be repeated.
"""

from __future__ import annotations

import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.loading import UnreadableFile, decode_text, read_text
from pytest_modelbudget.system import writing
from pytest_modelbudget.trackers.mlflow import artifacts, history, outbox, views
from pytest_modelbudget.trackers.mlflow.choosing import Chooser
from pytest_modelbudget.trackers.mlflow.history import HistoryState, LastWritten, MetricPoints
from pytest_modelbudget.trackers.mlflow.model_records import COMMIT
from pytest_modelbudget.trackers.mlflow.outbox import NOTE, OUTCOME, ModelRecord, OutboxEntry
from pytest_modelbudget.trackers.mlflow.store import TABLES, Store, table_tag
from pytest_modelbudget.trackers.mlflow.trouble import SendError

if TYPE_CHECKING:
    from mlflow.entities import Run as StoredRun

    from pytest_modelbudget.summary import Summary

_T = TypeVar("_T")
_LATEST = "latest"
_MOST_BYTES = 100 * 10**6
"""Bytes of the result of one model."""


@dataclass(slots=True)
class Progress:
    """How far an entry's models have come: `new` ones wait for their history to begin.

    `mark` is what was left in the experiment while writing, None where nothing had to be written; `late` that a
    history had a newer point than this entry; not `begun` that the time did not suffice for the histories there are.
    `moved` counts the models that moved, where that is told of a table of all.
    """

    experiment: str
    mark: LastWritten | None = None
    late: bool = False
    new: tuple[ModelRecord, ...] = ()
    begun: bool = True
    moved: int | None = None


class Appender:
    """Appends the models of the entry at `path`, whose run of pytest is `job` in the experiment `jobs`.

    `begun` has the keys of histories that this process has begun; it is shared by the entries it sends.
    """

    def __init__(self, store: Store, jobs: str, job: str, path: Path, entry: OutboxEntry, begun: set[str]) -> None:
        self._store, self._jobs, self._path, self._entry, self._begun = store, jobs, path, entry, begun
        self._tag, self._mark_of_all = history.mark_tag(entry), history.mark_of(entry, job)
        self._holds: Mapping[str, MetricPoints] = {}

    def existing(self, until: float) -> Progress:
        """Append to the histories that are there, where a model changed; to none after `until` (`time.monotonic`)."""
        if not self._entry.adds_to_histories:
            return Progress("")
        experiment = self._store.experiment(self._entry.history_experiment)
        marks = history.last_written_in(self._store.experiment_tags(experiment))
        mark = marks.pop(self._tag, LastWritten())
        newest = mark.is_before(self._entry)
        if newest and mark.fingerprint == self._entry.fingerprint:
            if mark.step < self._entry.step:
                self._set_mark(experiment, self._tag, self._mark_of_all)
            return Progress(experiment, moved=0)
        writing = mark.while_writing(self._entry)
        self._set_mark(experiment, self._tag, writing)
        for tag, other_mark in marks.items():
            if other_mark.fingerprint:
                self._set_mark(experiment, tag, other_mark.doubted(self._entry))
        chosen = Chooser(self._store, experiment, self._path, self._entry).choose(mark, marks.values())
        runs, self._holds = chosen.runs, chosen.holds
        new = tuple(model for model in chosen.models if model.key not in runs)
        if len(new) == len(chosen.models):
            self._describe(experiment)
        models = [model for model in chosen.models if model.key in runs]
        late = self._append_each(models, runs, writing, until)
        return Progress(experiment, writing, any(late) or not newest, new, begun=None not in late, moved=chosen.moved)

    def _append_each(
        self, models: Sequence[ModelRecord], runs: Mapping[str, StoredRun], mark: LastWritten, until: float
    ) -> list[bool | None]:
        """Append to the history of each; whether it has a newer point, None where the time did not suffice."""
        done_keys = outbox.done_keys(self._path)

        def append(model: ModelRecord) -> bool | None:
            if time.monotonic() > until:
                return None
            run = runs[model.key]
            return self._is_late(self._state(run)) if model.key in done_keys else self._append(model, run, mark)

        late = self._each(models, append)
        finished = (model.key for model, is_late in zip(models, late, strict=True) if is_late is not None)
        outbox.note_done(self._path, *(key for key in finished if key not in done_keys))
        return late

    def new(self, progress: Progress, until: float) -> bool:
        """Begin the histories of new models, none after `until` (`time.monotonic`); True when all have begun."""
        mark, done_keys = progress.mark or LastWritten(), outbox.done_keys(self._path)

        def begin(model: ModelRecord) -> bool:
            if model.key in done_keys:
                return True
            if time.monotonic() > until:
                return False
            run = self._find_or_create_run(progress.experiment, model)
            if self._append(model, run, mark):
                progress.late = True
            outbox.note_done(self._path, model.key)
            return True

        return all(self._each(progress.new, begin))

    def settle(self, progress: Progress) -> None:
        """Let later entries rely on this one, which is written; unless somebody else wrote meanwhile."""
        if progress.mark is None:
            return
        current = history.last_written_in(self._store.experiment_tags(progress.experiment)).get(self._tag)
        trusted = current == progress.mark and not progress.late
        new_mark = (current or LastWritten()).settled(self._mark_of_all, trusted=trusted)
        self._set_mark(progress.experiment, self._tag, new_mark)

    def _each(self, models: Iterable[ModelRecord], act: Callable[[ModelRecord], _T]) -> list[_T]:
        with ThreadPoolExecutor(self._store.parallel) as pool:
            return list(pool.map(act, models))

    def _set_mark(self, experiment: str, tag: str, mark: LastWritten) -> None:
        self._store.set_experiment_tag(experiment, tag, mark.text())

    def _describe(self, experiment: str) -> None:
        """Both experiments get a description, whose links need the ids of both."""
        self._store.set_experiment_tag(experiment, NOTE, views.experiment_note(experiment, self._jobs, history=True))
        self._store.set_experiment_tag(self._jobs, NOTE, views.experiment_note(self._jobs, experiment, history=False))

    def _find_or_create_run(self, experiment: str, model: ModelRecord) -> StoredRun:
        """The run of a new history; looked for afterwards, since another machine may have made one, too."""
        if model.key in self._begun and (earlier := self._store.run_of_key(experiment, model.key)) is not None:
            return earlier
        self._begun.add(model.key)
        self._store.create(experiment, model.key, model.name, self._entry.created_ms, model.tags)
        run = self._store.run_of_key(experiment, model.key)
        if run is None:
            raise SendError("MLflow does not find a run that it has just made")
        return run

    def _append(self, model: ModelRecord, run: StoredRun, last_mark: LastWritten) -> bool:
        """Append to one history; its latest tables and its tags follow when the point is the newest.

        Returns whether the history has a newer point.
        """
        state = self._state(run)
        points, new_state = self._planned(state, model, last_mark)
        if new_state is None:
            self._store.log(run.info.run_id, points)
            if not points:
                self._touch(model, run)
            return self._is_late(state)
        self._upload(model, run)
        tags = {**model.tags, TABLES: table_tag((f"{_LATEST}/layers.json",)), history.STATE: new_state.text()}
        self._store.log(run.info.run_id, points, tags)  # one request; the tags are written after the points
        self._store.end(run.info.run_id, model.status, self._entry.created_ms)
        return False

    def _planned(
        self, state: HistoryState | None, model: ModelRecord, last_mark: LastWritten
    ) -> tuple[tuple[MetricPoints, ...], HistoryState | None]:
        """The points to write, and the state afterwards; where a table says what was before a move, with that."""
        if self._entry.totals is None:
            return history.plan_points(state, self._entry, model, last_mark)
        points, new_state = history.plan_points(state, self._entry, model, LastWritten())
        hold, since = self._holds.get(model.key), -1 if state is None else state.step
        if hold is not None and points and since < hold.step < self._entry.step:
            points = (hold, *points)
        return points, new_state

    def _is_late(self, state: HistoryState | None) -> bool:
        return state is not None and state.step > self._entry.step

    def _state(self, run: StoredRun) -> HistoryState | None:
        """What is the newest in a history; its points say so where its tag is that of another writer."""
        state = history.read(run.data.tags)
        if state is None or not run.data.metrics or state.agrees(run.data.metrics):
            return state
        step, metrics = self._store.newest(run)
        return HistoryState(step, 0, "", metrics)

    def _upload(self, model: ModelRecord, run: StoredRun) -> None:
        if self._entry.totals is not None and not self._summaries.has(model):
            files = artifacts.latest_elsewhere(model.tags.get(COMMIT, ""))
        else:
            files = artifacts.latest_files(self._summaries.of(model))
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                writing.write(Path(folder) / name, text)
            self._store.upload(run, Path(folder), _LATEST)

    def _touch(self, model: ModelRecord, run: StoredRun) -> None:
        """A model that is as it was may have come out differently: its snapshot was accepted, say."""
        if run.data.tags.get(OUTCOME) != model.tags[OUTCOME] or run.info.status != model.status:
            self._store.log(run.info.run_id, tags={name: model.tags[name] for name in (OUTCOME, NOTE)})
            self._store.end(run.info.run_id, model.status, self._entry.created_ms)

    @cached_property
    def _summaries(self) -> _Summaries:
        return _Summaries(self._path / "job")


class _Summaries:
    """The summaries in the artifacts of a run: each in files of its own, or in the archive."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._archive = self._opened(folder / artifacts.ARCHIVE)  # one index for thousands of models

    def _opened(self, path: Path) -> zipfile.ZipFile | None:
        try:
            return zipfile.ZipFile(path) if path.exists() else None
        except (zipfile.BadZipFile, OSError) as error:
            raise self._damaged(path.name, error) from None

    def has(self, model: ModelRecord) -> bool:
        """Whether a model has files of its own."""
        return self._result_file(model).exists()

    def _result_file(self, model: ModelRecord) -> Path:
        return self._folder / "models" / model.slug / artifacts.RESULT

    def of(self, model: ModelRecord) -> Summary:
        """The summary of a model.

        Raises:
            NotReadable: the entry does not have it, or has something else there.
        """
        result_file = self._result_file(model)
        try:
            if result_file.exists() or self._archive is None:
                return artifacts.summary_in(read_text(result_file, _MOST_BYTES))
            return artifacts.summary_in(decode_text(self._unpacked(self._archive, f"{model.slug}/{artifacts.RESULT}")))
        except (zipfile.BadZipFile, KeyError, OSError, NotImplementedError, RuntimeError, ModelBudgetError) as error:
            raise self._damaged(f"the result of {model.slug}", error) from None

    def _unpacked(self, archive: zipfile.ZipFile, name: str) -> bytes:
        with archive.open(name) as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise UnreadableFile(f"is too large: more than {_MOST_BYTES:,} bytes")
        return data

    def _damaged(self, subject: str, error: Exception) -> outbox.UnreadableEntry:
        return outbox.UnreadableEntry(f"{self._folder.parent.name} is damaged ({subject}: {error})")
