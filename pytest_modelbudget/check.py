"""The decision: an entry's summary against its budgets and its snapshot. Pure; touches no file and no framework."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from enum import Enum
from numbers import Integral
from typing import Any, Literal, get_args

from pytest_modelbudget import arguments, resources
from pytest_modelbudget import budget as budget_module
from pytest_modelbudget import inputs as inputs_module
from pytest_modelbudget.budget import GROWS, METRICS, Baseline, Budget, Finding, Number, Violation, judge, loosened
from pytest_modelbudget.diff import Change, changes
from pytest_modelbudget.errors import ModelBudgetError, Place
from pytest_modelbudget.inputs import Example, Inputs
from pytest_modelbudget.planner import written
from pytest_modelbudget.planner.recipe import Recipe
from pytest_modelbudget.summary import Summary

_ID = re.compile(r"[A-Za-z0-9._/:+=-]+")
_FILES = (".keras", ".h5", ".hdf5")

RunMode = Literal["real", "abstract"]
"""How a model may be run: with memory for its weights and activations, or without; see `ModelEntry.run`."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One registered model, the same whichever door it came through.

    `build` is a callable or `"module:callable"`, called with `args` and `kwargs`, or the path of a model's file
    (see `names_file`), relative to `home`. `args` and `kwargs` (with the calls that `arguments` reads), `inputs`,
    `budgets`, `training` and `inference` may be given as they are written in a manifest; they are read, and mistakes
    raised, on construction. `training` and `inference` are what is planned of it (see `recipes`): False for nothing,
    None where nothing is said, so that the manifest's defaults hold.
    `run` is `real` for a run with memory for weights and activations, `abstract` for none whatever happens, and None
    where the model decides: a real run only when it needs values.
    `limits` are what building and counting it may take (see `resources`), and `isolate` whether that happens in a
    process of its own: it does where nothing is said.
    `place` is where it was registered, `home` the folder (relative to the root) whose `__model_budget__`
    holds its snapshot, and `declared` the name that snapshot says it was declared in.

    Raises:
        ModelBudgetError: a bad id, `run`, size or limits, arguments, inputs, budgets or recipes that do not parse.
    """

    id: str
    build: Callable[..., object] | str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    inputs: Inputs | Example | Any = None
    batch: int | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    samples: int | None = None
    budgets: tuple[Budget, ...] | Mapping[str, Any] = ()
    framework: str | None = None
    optional: bool = False
    place: Place | None = None
    home: str = "."
    declared: str = ""
    training: written.Written | Any = None
    inference: written.Written | Any = None
    run: RunMode | None = None
    limits: resources.Limits | Mapping[str, Any] | None = field(default_factory=resources.Limits)
    isolate: bool | None = None

    def __post_init__(self) -> None:
        check_id(self.id)
        if self.run is not None and self.run not in get_args(RunMode):
            raise ModelBudgetError(f"run: {self.run!r} is not known: write {' or '.join(get_args(RunMode))}")
        for name, size in {**({} if self.batch is None else {"batch": self.batch}), **self.dims}.items():
            _check_size(name, size)
        for name, values in (("args", tuple(self.args)), ("kwargs", dict(self.kwargs))):
            object.__setattr__(self, name, arguments.read(values, (name,), lambda _: self.place))
        object.__setattr__(self, "limits", resources.parse(self.limits))
        object.__setattr__(self, "tags", (self.tags,) if isinstance(self.tags, str) else tuple(self.tags))
        object.__setattr__(self, "inputs", inputs_module.parse(self.inputs))
        if isinstance(self.budgets, Mapping):
            object.__setattr__(self, "budgets", tuple(budget_module.parse(self.budgets, lambda _: self.place)))
        for title in written.KINDS:
            object.__setattr__(self, title, written.read(title, getattr(self, title)))

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """What is planned of it."""
        found = (written.recipe(title, getattr(self, title)) for title in written.KINDS)
        return tuple(one for one in found if one is not None)

    @property
    def parsed_budgets(self) -> tuple[Budget, ...]:
        """Its budgets, always parsed."""
        assert isinstance(self.budgets, tuple)
        return self.budgets


def check_id(text: object) -> str:
    """Return a model id when it is a good one: `A-Za-z0-9._/:+=-`, no `..`, no empty part, no `::`.

    Raises:
        ModelBudgetError: it is not, with what is wrong.
    """
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise ModelBudgetError(f"bad model id {text!r}: use letters, digits and . _ / : + = - only")
    parts = text.split("/")
    if "::" in text or any(part in ("", ".", "..") or part.startswith(".") for part in parts):
        raise ModelBudgetError(
            f"bad model id {text!r}: each part between slashes needs a name that does not begin with a dot, "
            "and '::' is pytest's"
        )
    return text


def _check_size(name: str, size: object) -> None:
    """Nothing, for a size of a dimension: a whole number from 1 up.

    Raises:
        ModelBudgetError: it is none.
    """
    if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
        raise ModelBudgetError(f"{name}: {size!r} is not a size: write a whole number from 1 up")


def names_file(build: str) -> bool:
    """Whether `build` is the path of a model's file or folder, rather than `module:callable`.

    A `.keras`, `.h5` or `.hdf5` file, or any path with a slash in it (a SavedModel folder: `./saved`).
    """
    if build.lower().endswith(_FILES):
        return True
    drive_or_none = re.sub(r"^[A-Za-z]:(?=[/\\])", "", build)
    return bool(re.search(r"[/\\]", build)) and ":" not in drive_or_none and not build.endswith(".py")


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


_WITHOUT_SUMMARY = (State.BUILD_ERROR, State.NOT_CHECKED, State.SKIPPED, State.BAD_CONFIG)
"""How a model may come out of which nothing was counted."""


class Stored(str, Enum):
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

    `path` is relative to the root, `text` what the fresh one should be (empty when EQUAL). `before` is the
    committed summary when it differs, `problem` why it could not be read. RESTATED means the same model in
    another text (a newer release counts better): a note, never a failure. An update run rewrites a BROKEN file
    (conflict markers, a wrong digest), never a REFUSED one (a newer format, a folder, a link out of the tree).
    """

    stored: Stored
    path: str = ""
    text: str = ""
    before: Summary | None = None
    problem: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Since:
    """What moved since the base, which `name` names (`HEAD^1 4f1c2d9`).

    `totals` are the base's numbers by metric, None for one that is not known there, and `changes` lead from there to
    here. Where the base says nothing of the model both are empty, and `reason` says why.
    """

    name: str
    reason: str = ""
    totals: Mapping[str, Number | None] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()


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
    snapshot: Snapshot = Snapshot(Stored.OFF)
    place: Place | None = None
    tags: tuple[str, ...] = ()
    error: str = ""
    seconds: float = 0.0
    accepted: bool = False
    nodeid: str = ""
    limits: tuple[Budget, ...] = ()
    files: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    since: Since | None = None

    @property
    def is_model(self) -> bool:
        """Whether it stands for a model, and not for the snapshot files of a manifest."""
        return self.summary is not None or self.state in _WITHOUT_SUMMARY

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
        return self.accepted and self.snapshot.stored not in (Stored.EQUAL, Stored.OFF, Stored.REFUSED)


def check(
    entry: ModelEntry,
    summary: Summary,
    snapshot: Snapshot,
    *,
    accept: bool = False,
    base: Baseline | None = None,
    day: date | None = None,
) -> Result:
    """Decide how a model that was counted came out; `accept` is an update run.

    `base` is what growth and inherited limits are held against, and `day` the day that waivers are: today, in UTC.
    """
    found, said = judge(summary, entry.parsed_budgets, base, day)
    moved = () if snapshot.before is None else changes(snapshot.before, summary)
    if base is not None and base.limits is not None:
        said = (*loosened(entry.id, entry.parsed_budgets, base.limits, entry.place), *said)
    return Result(
        id=entry.id,
        state=_state(any(one.severity == "fail" for one in found), snapshot.stored, accept),
        summary=summary,
        violations=found,
        changes=moved,
        snapshot=snapshot,
        place=entry.place,
        tags=entry.tags,
        accepted=accept,
        limits=entry.parsed_budgets,
        findings=said,
        since=None if base is None else _since(base, summary),
    )


def _since(base: Baseline, summary: Summary) -> Since:
    if base.summary is None:
        return Since(base.name, base.reason)
    totals = {name: METRICS[name].get(base.summary) for name in METRICS if name in GROWS}
    same = base.summary is summary
    return Since(base.name, totals=totals, changes=() if same else changes(base.summary, summary))


def _state(over: bool, stored: Stored, accept: bool) -> State:
    if stored is Stored.REFUSED or (stored is Stored.BROKEN and not accept):
        return State.CONFLICT
    if over:
        return State.OVER_BUDGET
    if accept or stored in (Stored.EQUAL, Stored.RESTATED, Stored.OFF):
        return State.OK
    return State.NO_SNAPSHOT if stored is Stored.MISSING else State.CHANGED


def duplicates(entries: tuple[ModelEntry, ...], path_of: Callable[[ModelEntry], str]) -> dict[str, list[ModelEntry]]:
    """Entries whose snapshot would be the same file, also on file systems that ignore case."""
    by_path: dict[str, list[ModelEntry]] = {}
    for entry in entries:
        by_path.setdefault(path_of(entry).casefold(), []).append(entry)
    return {path: same for path, same in by_path.items() if len(same) > 1}
