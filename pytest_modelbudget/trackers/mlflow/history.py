"""A model's history: one long-lived run with a point wherever the model changed. Pure; touches no file.

MLflow joins the points of a line, so a change gets two: the old values at the step before it (the hold point), and
the new ones. What has been written is kept in one tag of the run, set only after the points have arrived: whoever
is interrupted finds the same state again and writes the same points, which MLflow stores once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pytest_modelbudget.trackers.mlflow.outbox import Entry, Model

STATE = "modelbudget.point"
"""The tag of a run that holds a `State`."""

MARK = "modelbudget.mark"
"""The tag of an experiment that holds a `Mark`."""


@dataclass(frozen=True, slots=True)
class State:
    """The newest point of a history: its step, when it was measured, what the model was, and its values."""

    step: int
    created_ms: int
    digest: str
    metrics: Mapping[str, float]

    def text(self) -> str:
        """As the text of a tag."""
        return json.dumps(asdict(self), separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Points:
    """Values at one step; `time_ms` is in milliseconds of Unix time."""

    step: int
    time_ms: int
    metrics: Mapping[str, float]


def read(tags: Mapping[str, str]) -> State | None:
    """The state that a run's tags hold; None when it has no point yet, or when the tag cannot be read."""
    try:
        return State(**json.loads(tags.get(STATE, "")))
    except (ValueError, TypeError):
        return None


def plan(state: State | None, entry: Entry, model: Model) -> tuple[tuple[Points, ...], State | None]:
    """The points to write for `model`, and the state afterwards; None leaves the state as it is.

    Nothing at all is to be done for a model that is as it was.
    """
    point = Points(entry.step, entry.point_ms, model.metrics)
    after = State(entry.step, entry.created_ms, model.digest, model.metrics)
    if state is None:
        return (point,), after
    if entry.step < state.step:  # it comes late; the newest point and what is beside it stay
        return (point,), None
    if model.digest == state.digest:
        return (), None
    if entry.step > state.step:
        hold = Points(entry.step - 1, entry.point_ms - 1, state.metrics)
        return ((hold,) if hold.step > state.step else ()) + (point,), after
    if entry.created_ms < state.created_ms:  # the same commit was measured again since
        return (), None
    # A page shows the highest of the values with one step and time, so another value needs a later time.
    moved = {name: value for name, value in model.metrics.items() if state.metrics.get(name) != value}
    return (Points(entry.step, entry.created_ms, moved),), after


@dataclass(frozen=True, slots=True)
class Mark:
    """The newest entry of which all models have been written: an equal one after it changes nothing.

    It is kept beside all histories, since reading those of a thousand models takes longer than a run of pytest may.
    While an entry is being written its fingerprint is empty: nobody may rely on half of it.
    """

    step: int = -1
    created_ms: int = -1
    fingerprint: str = ""

    def text(self) -> str:
        """As the text of a tag."""
        return f"{self.step} {self.created_ms} {self.fingerprint}"

    def is_before(self, entry: Entry) -> bool:
        """Whether `entry` is newer, or the same."""
        return (self.step, self.created_ms) <= (entry.step, entry.created_ms)


def mark_in(text: str) -> Mark:
    """The mark that a tag holds."""
    try:
        step, created, fingerprint = text.split(" ")
        return Mark(int(step), int(created), fingerprint)
    except ValueError:
        return Mark()
