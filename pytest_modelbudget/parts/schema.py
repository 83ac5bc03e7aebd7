"""What the lines of a part hold, as pydantic checks it before anything is made of data that somebody else wrote."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pytest_modelbudget.budget.findings import FindingKind
from pytest_modelbudget.budget.limits import ALL_METRICS, FITS, Bound
from pytest_modelbudget.diff.change import ChangeKind
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.parts.dealing import parse_shard
from pytest_modelbudget.parts.part import Kind
from pytest_modelbudget.results import SnapshotState, State
from pytest_modelbudget.summary.metrics import LAYER_METRICS, METRICS

_Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
_Commit = Annotated[str, Field(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})?$")]
_Share = Annotated[str, Field(pattern=r"^-?[0-9]{1,60}(/[1-9][0-9]{0,59})?$")]
_Number = int | _Share
_Line = Annotated[int, Field(ge=1, lt=10**12)] | None
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


_METRIC_NAMES = frozenset((*METRICS, *LAYER_METRICS, FITS, ALL_METRICS))


def _known_metric(name: str) -> str:
    if name not in _METRIC_NAMES:
        raise ValueError(f"there is no metric {name[:100]!r}")
    return name


def _possible_shard(text: str) -> str:
    try:
        return text and str(parse_shard(text))
    except ModelBudgetError as mistake:
        raise ValueError(str(mistake)) from None


_Metric = Annotated[str, AfterValidator(_known_metric)]
_Shard = Annotated[str, AfterValidator(_possible_shard)]


class _Strict(BaseModel):
    """Exactly these keys: a part is read by the version that wrote it."""

    model_config = ConfigDict(extra="forbid", strict=True)


class _Place(_Strict):
    file: str
    line: _Line


class _Budget(_Strict):
    metric: _Metric
    bound: Bound
    limit: _Number
    layer: str | None
    place: _Place | None
    relative: bool
    until: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")] | None
    reason: str
    devices: list[str]
    dim: str
    strict: bool


class _Violation(_Strict):
    budget: _Budget
    actual: _Number | None
    severity: Literal["fail", "warn"]
    layer: str | None
    reason: str
    base: _Number | None
    against: str
    text: str


class _Change(_Strict):
    kind: ChangeKind
    path: str
    before: str
    after: str
    delta: int | None
    was: str
    count: int
    why: str
    rows: int
    parts: list[Annotated[tuple[str, int], Field(strict=False)]]


class _Snapshot(_Strict):
    stored: Annotated[SnapshotState, Field(strict=False)]
    path: str
    text: str
    problem: str
    note: str


class _Finding(_Strict):
    kind: FindingKind
    model: str
    text: str
    place: _Place | None


class _Since(_Strict):
    name: str
    reason: str
    totals: dict[_Metric, _Number | None]
    changes: list[_Change]


class ResultLine(_Strict):
    """A result as `codec.pack` holds it; what is in the summaries is checked by `Summary.checked`."""

    id: str
    nodeid: str
    state: Annotated[State, Field(strict=False)]
    place: _Place | None
    tags: list[str]
    error: str
    seconds: _Seconds
    accepted: bool
    violations: list[_Violation]
    changes: list[_Change]
    snapshot: _Snapshot
    files: list[str]
    findings: list[_Finding]
    since: _Since | None
    limits: list[_Budget]
    summary: dict[str, Any] | None
    earlier: dict[Literal["snapshot", "since"], dict[str, Any]]


class _Node(_Strict):
    nodeid: str
    id: str
    kind: Kind
    place: _Place | None
    tags: list[str]


class _Group(_Strict):
    name: str
    file: str
    limits: list[_Budget]
    members: list[str]
    place: _Place | None


class _Obsolete(_Strict):
    nodeid: str
    declared: str
    files: list[str]


class _Base(_Strict):
    commit: _Commit
    name: str
    how: str
    reason: str


class _Checkout(_Strict):
    commit: _Commit
    folder: str
    changes: dict[str, _Digest]


class HeadLine(_Strict):
    """The first line of a part."""

    versions: dict[str, str]
    checkout: _Checkout
    base: _Base
    nodes: list[_Node]
    manifests: dict[str, _Digest]
    groups: list[_Group]
    registry: _Digest
    selected: list[str]
    update: bool
    shard: _Shard
    dealing: _Digest
    findings: list[_Finding]
    obsolete: list[_Obsolete]
    exit_status: Annotated[int, Field(ge=0, lt=1000)]
    failed_tests: list[str]


class EndLine(_Strict):
    """The last line of a part: how many results it has."""

    results: Annotated[int, Field(ge=0)]


def mistake(shape: type[BaseModel], data: Any) -> str:
    """What is wrong with the data of a line, with its place (`limits.3.bound: ...`); empty when nothing is."""
    try:
        shape.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        message = "is missing" if problem["type"] == "missing" else problem["msg"].lower()
        return f"{'.'.join(map(str, problem['loc']))[:200] or 'it'}: {message[:300]}"
    return ""
