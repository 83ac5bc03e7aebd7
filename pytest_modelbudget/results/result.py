"""How a model came out, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from pytest_modelbudget.budget import Budget, Finding, Violation
from pytest_modelbudget.diff import Change
from pytest_modelbudget.errors import Place
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.summary.metrics import Number
from pytest_modelbudget.summary.totals import Totals


class State(str, Enum):
    """How a model came out; the value is the word that users see."""

    OK = "ok"
    CHANGED = "CHANGED"
    NO_SNAPSHOT = "NO SNAPSHOT"
    OVER_BUDGET = "OVER BUDGET"
    CONFLICT = "CONFLICT"
    BUILD_ERROR = "BUILD ERROR"
    NOT_CHECKED = "NOT CHECKED"
    OBSOLETE = "OBSOLETE"
    BAD_CONFIG = "BAD CONFIG"
    SKIPPED = "skipped"

    @property
    def failed(self) -> bool:
        """Whether it fails the run."""
        return self not in (State.OK, State.SKIPPED)


ITEM_NAMES = ("manifest", "sources", "snapshot-files")
"""Names of items that stand for parts of a manifest, which no model of it can have."""

_WITHOUT_SUMMARY = (State.BUILD_ERROR, State.NOT_CHECKED, State.SKIPPED, State.BAD_CONFIG)
"""How a model may come out of which nothing was counted."""


class SnapshotState(str, Enum):
    """What is known of the committed snapshot."""

    EQUAL = "equal"
    DIFFERENT = "different"
    RESTATED = "restated"
    MISSING = "missing"
    BROKEN = "broken"
    REFUSED = "refused"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The committed snapshot beside the fresh one.

    `path` is relative to the root (a file of totals has a line of each of its models), `text` what the fresh one should
    be (empty when EQUAL). `before` is the committed summary when it differs, or its totals where no more is committed,
    `problem` why it could not be read. RESTATED means the same model in another text (a newer release counts better) or
    in another place: a note, never a failure. An update run rewrites a BROKEN file (conflict markers, a wrong digest),
    never a REFUSED one (a newer format, a folder, a link out of the tree).
    """

    stored: SnapshotState
    path: str = ""
    text: str = ""
    before: Summary | Totals | None = None
    problem: str = ""
    note: str = ""

    @property
    def is_line(self) -> bool:
        """Whether what it should be is a line among the totals of other models, and no file."""
        return self.text.startswith("- {")


@dataclass(frozen=True, slots=True)
class BaseComparison:
    """What moved since the base, which `name` names (`HEAD^1 4f1c2d9`).

    `totals` are the base's numbers by metric, None for one that is not known there, and `changes` lead from there to
    here. Where the base says nothing of the model both are empty, and `reason` says why. `before` is the base's
    summary, or its totals, where there are changes.
    """

    name: str
    reason: str = ""
    totals: Mapping[str, Number | None] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    before: Summary | Totals | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """One model's outcome, plain data; `accepted` says that an update run takes the change.

    An OBSOLETE or BAD CONFIG result stands for a manifest, not a model; `files` are the obsolete snapshots. A result
    without a summary also stands for the sum over a group of models, and one named `base` for what the base says of
    no model that is left. `since` is None in runs without a base; `findings` are for the reviewer, and fail nothing.
    """

    id: str
    state: State
    summary: Summary | None = None
    violations: tuple[Violation, ...] = ()
    changes: tuple[Change, ...] = ()
    snapshot: Snapshot = Snapshot(SnapshotState.OFF)
    place: Place | None = None
    tags: tuple[str, ...] = ()
    error: str = ""
    seconds: float = 0.0
    accepted: bool = False
    nodeid: str = ""
    limits: tuple[Budget, ...] = ()
    files: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    since: BaseComparison | None = None

    @property
    def is_model(self) -> bool:
        """Whether it stands for a model, and not for a manifest, its sources or its snapshot files."""
        if self.state is State.BAD_CONFIG and self.id in ITEM_NAMES:
            return False
        return self.summary is not None or self.state in _WITHOUT_SUMMARY

    @property
    def holds_models(self) -> bool:
        """Whether it stands for a model, or for models of a manifest that has mistakes."""
        return self.is_model or self.state is State.BAD_CONFIG

    @property
    def failures(self) -> tuple[Violation, ...]:
        """The violations that fail the run."""
        return tuple(violation for violation in self.violations if violation.severity == "fail")

    @property
    def warnings(self) -> tuple[Violation, ...]:
        """The violations that only warn."""
        return tuple(violation for violation in self.violations if violation.severity == "warn")

    @property
    def to_write(self) -> bool:
        """Whether an update run writes its snapshot."""
        return self.accepted and self.snapshot.stored not in (
            SnapshotState.EQUAL,
            SnapshotState.OFF,
            SnapshotState.REFUSED,
        )
