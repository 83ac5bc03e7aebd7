"""A model's history: one long-lived run with a point wherever the model changed. Pure; touches no file.

MLflow joins the points of a line, so a change gets two: the old values at the last commit where they were measured
(the hold point), and the new ones. Every point is thus a measurement, whoever writes it and whenever it arrives: runs
of pytest that send at the same time, or late, need not know of each other. What has been written is kept in tags,
which cannot be compared and set in one request; what they say is checked against the points, and where somebody
else wrote in between, the next run looks at every history anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import isclose

from pytest_modelbudget.trackers.mlflow.outbox import ModelRecord, OutboxEntry

STATE = "modelbudget.point"
"""The tag of a run that holds a `HistoryState`."""

_MARK = "modelbudget.mark"


@dataclass(frozen=True, slots=True)
class HistoryState:
    """The newest point of a history: its step, when it was measured, what the model was, and its values."""

    step: int
    created_ms: int
    digest: str
    metrics: Mapping[str, float]

    def text(self) -> str:
        """As the text of a tag."""
        return json.dumps(asdict(self), separators=(",", ":"))

    def agrees(self, latest: Mapping[str, float]) -> bool:
        """Whether the newest values of a run, which its server keeps by step and time, are the ones said here."""
        return all(isclose(latest.get(name, -1), value, rel_tol=1e-12) for name, value in self.metrics.items())


@dataclass(frozen=True, slots=True)
class MetricPoints:
    """Values at one step; `time_ms` is in milliseconds of Unix time."""

    step: int
    time_ms: int
    metrics: Mapping[str, float]


def read(tags: Mapping[str, str]) -> HistoryState | None:
    """The state that a run's tags hold; None when it has no point yet, or when the tag cannot be read."""
    try:
        return HistoryState(**json.loads(tags.get(STATE, "")))
    except (ValueError, TypeError):
        return None


def plan_points(
    state: HistoryState | None, entry: OutboxEntry, model: ModelRecord, last_mark: LastWritten
) -> tuple[tuple[MetricPoints, ...], HistoryState | None]:
    """The points to write for `model`, and the state afterwards; None leaves the state as it is.

    `last_mark` says where the model was last measured. Nothing at all is to be done for a model that is as it was.
    """
    point = MetricPoints(entry.step, entry.point_ms, model.metrics)
    new_state = HistoryState(entry.step, entry.created_ms, model.digest, model.metrics)
    if state is None:
        return (point,), new_state
    if entry.step < state.step:  # it comes late; the newest point and what is beside it stay
        return (point,), None
    if model.digest == state.digest:
        return (), None
    if entry.step > state.step:
        hold = MetricPoints(last_mark.step, last_mark.point_ms, state.metrics)
        return ((hold,) if state.step < hold.step < entry.step else ()) + (point,), new_state
    if entry.created_ms < state.created_ms:  # the same commit was measured again since
        return (), None
    # A page shows the highest of the values with one step and time, so another value needs a later time.
    changed_metrics = {name: value for name, value in model.metrics.items() if state.metrics.get(name) != value}
    return (MetricPoints(entry.step, entry.created_ms, changed_metrics),), new_state


@dataclass(frozen=True, slots=True)
class LastWritten:
    """The newest entry of which all models have been written: an equal one after it changes nothing.

    It is kept beside all histories, since reading those of a thousand models takes longer than a run of pytest may;
    for each set of models apart, so that each of them was measured at its `step`.
    While an entry is being written, `fingerprint` is empty and `writer` is the key of that entry: nobody may rely on
    half of it, and who does not find the own key at the end was not alone. Of very many models `run` has their table,
    which stays what was measured at its commit, whatever became of the histories.
    """

    step: int = -1
    point_ms: int = -1
    created_ms: int = -1
    fingerprint: str = ""
    writer: str = ""
    run: str = ""
    models: int = 0

    def text(self) -> str:
        """As the text of a tag."""
        data = asdict(self)
        if not self.run:  # as earlier releases write and read it
            del data["run"], data["models"]
        return json.dumps(data, separators=(",", ":"))

    def is_before(self, entry: OutboxEntry) -> bool:
        """Whether `entry` is newer, or the same."""
        return (self.step, self.created_ms) <= (entry.step, entry.created_ms)

    def while_writing(self, entry: OutboxEntry) -> LastWritten:
        """This mark while `entry` is written; one that comes late leaves nothing to rely on."""
        if self.run:
            return replace(self, fingerprint="", writer=entry.job.key)
        mark = self if self.is_before(entry) else LastWritten()
        return LastWritten(mark.step, mark.point_ms, mark.created_ms, writer=entry.job.key)

    def doubted(self, entry: OutboxEntry) -> LastWritten:
        """This mark of another set of models, of which `entry` may have some and change them."""
        return replace(self, fingerprint="") if self.run or self.step < entry.step else LastWritten()

    def settled(self, own: LastWritten, *, trusted: bool) -> LastWritten:
        """This mark after an entry, whose mark is `own`, was written; not `trusted`: it was late, or not alone."""
        if trusted:
            return own
        newest = max(self, own, key=lambda mark: (mark.step, mark.created_ms))
        return replace(newest, fingerprint="", writer="") if own.run else LastWritten()


def mark_of(entry: OutboxEntry, run: str = "") -> LastWritten:
    """The mark of an entry of which all models have been written; `run` is the run of very many."""
    mark = LastWritten(entry.step, entry.point_ms, entry.created_ms, entry.fingerprint)
    return mark if entry.totals is None else replace(mark, run=run, models=entry.totals.models)


def mark_in(text: str) -> LastWritten:
    """The mark that a tag holds; one of nothing where it cannot be read."""
    try:
        return LastWritten(**json.loads(text))
    except (ValueError, TypeError):
        return LastWritten()


def last_written_in(tags: Mapping[str, str]) -> dict[str, LastWritten]:
    """All marks among the tags of an experiment."""
    return {name: mark_in(text) for name, text in tags.items() if name.startswith(f"{_MARK}.")}


def mark_tag(entry: OutboxEntry) -> str:
    """The tag of an experiment that holds the `LastWritten` of a set of models."""
    if entry.totals is not None:
        return f"{_MARK}.{entry.totals.keys}"
    keys = " ".join(sorted(model.key for model in entry.history))
    return f"{_MARK}.{hashlib.sha256(keys.encode()).hexdigest()[:16]}"
