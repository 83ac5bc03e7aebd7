"""Results as JSON data and back: what travels from a worker to the controller, and into reports and trackers."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from datetime import date
from fractions import Fraction
from typing import Any

from pytest_modelbudget.budget import Budget, Finding, Violation
from pytest_modelbudget.diff import Change, Changes
from pytest_modelbudget.errors import Place
from pytest_modelbudget.results import BaseComparison, Result, Snapshot, SnapshotState, State
from pytest_modelbudget.results.groups import GroupSum, ModelGroup
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.summary.metrics import Number
from pytest_modelbudget.summary.totals import Totals
from pytest_modelbudget.system.intact import originals_restored

SCHEMA = 1
"""Version of the shape of `result_dict`."""


@originals_restored()
def pack(result: Result) -> bytes:
    """One compressed value; layer tables are so repetitive that this is 20 to 50 times smaller than the JSON."""
    earlier = {name: before.to_dict() for name, before in _earlier_summaries(result) if isinstance(before, Summary)}
    return zlib.compress(json.dumps({**result_dict(result), "earlier": earlier}).encode())


def _earlier_summaries(result: Result) -> Iterator[tuple[str, Summary | Totals | None]]:
    """What the model was where it changed, for reports that draw its rows; the JSON report does without."""
    yield "snapshot", result.snapshot.before
    yield "since", None if result.since is None else result.since.before


@originals_restored()
def unpack(data: bytes) -> Result:
    """Read back what `pack` gave."""
    return whole_result(json.loads(zlib.decompress(data)))


def packed_line(data: bytes) -> bytes:
    """What `pack` gave as JSON in one line, of which `whole_result` makes a result again."""
    return zlib.decompress(data)


def one_line(content: Any) -> bytes:
    """Plain data as JSON in one line."""
    return json.dumps(content).encode()


def whole_result(content: Mapping[str, Any]) -> Result:
    """A result with its earlier summaries, of the data that `pack` compresses."""
    result = result_from(content)
    earlier = {name: Summary.from_dict(summary) for name, summary in content["earlier"].items()}
    since = None if result.since is None else replace(result.since, before=earlier.get("since"))
    return replace(result, since=since, snapshot=replace(result.snapshot, before=earlier.get("snapshot")))


def summary_of(data: bytes) -> Summary:
    """The summary of what `pack` gave, which has one, without all the rest."""
    return Summary.from_dict(json.loads(zlib.decompress(data))["summary"])


def snapshot_text(data: bytes) -> str:
    """The text of the snapshot of what `pack` gave, without all the rest."""
    return str(json.loads(zlib.decompress(data))["snapshot"]["text"])


def result_dict(result: Result) -> dict[str, Any]:
    """One model's outcome as plain JSON data."""
    return {
        "id": result.id,
        "nodeid": result.nodeid,
        "state": result.state.value,
        "place": _place_dict(result.place),
        "tags": list(result.tags),
        "error": result.error,
        "seconds": round(result.seconds, 4),
        "accepted": result.accepted,
        "violations": [
            {
                "budget": _budget_dict(item.budget),
                "actual": number_text(item.actual),
                "severity": item.severity,
                "layer": item.layer,
                "reason": item.reason,
                "base": number_text(item.base),
                "against": item.against,
                "text": str(item),
            }
            for item in result.violations
        ],
        "changes": list(map(_change_dict, result.changes)),
        "snapshot": {
            "stored": result.snapshot.stored.value,
            "path": result.snapshot.path,
            "text": result.snapshot.text,
            "problem": result.snapshot.problem,
            "note": result.snapshot.note,
        },
        "files": list(result.files),
        "findings": [finding_dict(item) for item in result.findings],
        "since": None if result.since is None else _comparison_dict(result.since),
        "limits": [_budget_dict(item) for item in result.limits],
        "summary": None if result.summary is None else result.summary.to_dict(),
    }


def result_from(data: Mapping[str, Any]) -> Result:
    """Read back what `result_dict` gave; earlier summaries stay behind, the changes since them travel."""
    return Result(
        id=data["id"],
        nodeid=data["nodeid"],
        state=State(data["state"]),
        place=_place_from(data["place"]),
        tags=tuple(data["tags"]),
        error=data["error"],
        seconds=data["seconds"],
        accepted=data["accepted"],
        violations=tuple(
            Violation(
                _budget_from(item["budget"]),
                _number_from(item["actual"]),
                item["severity"],
                item["layer"],
                item["reason"],
                _number_from(item["base"]),
                item["against"],
            )
            for item in data["violations"]
        ),
        changes=_changes_from(data["changes"]),
        snapshot=Snapshot(**{**data["snapshot"], "stored": SnapshotState(data["snapshot"]["stored"])}),
        files=tuple(data["files"]),
        findings=tuple(map(finding_from, data["findings"])),
        since=None if data["since"] is None else _comparison_from(data["since"]),
        limits=tuple(map(_budget_from, data["limits"])),
        summary=None if data["summary"] is None else Summary.from_dict(data["summary"]),
    )


def group_dict(group: ModelGroup) -> dict[str, Any]:
    """A group of models with limits on their sum, as plain JSON data."""
    return {
        "name": group.name,
        "file": group.file,
        "limits": [_budget_dict(budget) for budget in group.limits],
        "members": list(group.members),
        "place": _place_dict(group.place),
    }


def group_from(data: Mapping[str, Any]) -> ModelGroup:
    """Read back what `group_dict` gave."""
    limits = tuple(map(_budget_from, data["limits"]))
    return ModelGroup(data["name"], data["file"], limits, tuple(data["members"]), _place_from(data["place"]))


def sum_dict(group_sum: GroupSum) -> dict[str, Any]:
    """How the sum over a group came out, as plain JSON data."""
    return {
        "group": group_sum.group.name,
        "file": group_sum.group.file,
        "state": group_sum.state,
        "budget": _budget_dict(group_sum.budget),
        "total": number_text(group_sum.total),
        "counted": group_sum.counted,
        "members": len(group_sum.group.members),
        "missing": list(group_sum.missing),
        "text": "" if group_sum.violation is None else str(group_sum.violation),
    }


def number_text(value: Number | None) -> str | int | None:
    """A number as plain JSON data: a whole one as it is, a share or ratio as a fraction, `"13/20"`."""
    return str(value) if isinstance(value, Fraction) else value


def _number_from(value: str | int | None) -> Number | None:
    return None if value is None else _known(value)


def _known(value: str | int) -> Number:
    return Fraction(value) if isinstance(value, str) else value


def _budget_dict(budget: Budget) -> dict[str, Any]:
    return {
        "metric": budget.metric,
        "bound": budget.bound,
        "limit": number_text(budget.limit),
        "layer": budget.layer,
        "place": _place_dict(budget.place),
        "relative": budget.relative,
        "until": None if budget.until is None else budget.until.isoformat(),
        "reason": budget.reason,
        "devices": list(budget.devices),
        "dim": budget.dim,
        "strict": budget.strict,
    }


def _budget_from(data: Mapping[str, Any]) -> Budget:
    return Budget(
        data["metric"],
        data["bound"],
        _known(data["limit"]),
        data["layer"],
        _place_from(data["place"]),
        data["relative"],
        None if data["until"] is None else date.fromisoformat(data["until"]),
        data["reason"],
        tuple(data.get("devices", ())),
        data.get("dim", ""),
        data.get("strict", False),
    )


def finding_dict(finding: Finding) -> dict[str, Any]:
    """One finding as plain JSON data."""
    return {
        "kind": finding.kind,
        "model": finding.model,
        "text": finding.text,
        "place": _place_dict(finding.place),
    }


def finding_from(data: Mapping[str, Any]) -> Finding:
    """Read back what `finding_dict` gave."""
    return Finding(data["kind"], data["model"], data["text"], _place_from(data["place"]))


def _comparison_dict(since: BaseComparison) -> dict[str, Any]:
    return {
        "name": since.name,
        "reason": since.reason,
        "totals": {name: number_text(value) for name, value in since.totals.items()},
        "changes": list(map(_change_dict, since.changes)),
    }


def _comparison_from(data: Mapping[str, Any]) -> BaseComparison:
    totals = {name: _number_from(value) for name, value in data["totals"].items()}
    return BaseComparison(data["name"], data["reason"], totals, _changes_from(data["changes"]))


def _change_dict(change: Change) -> dict[str, Any]:
    return {**asdict(change), "parts": list(map(list, change.parts))}


def _changes_from(data: Iterable[Mapping[str, Any]]) -> Changes:
    return Changes(Change(**{**item, "parts": tuple(map(tuple, item.get("parts", ())))}) for item in data)


def _place_dict(place: Place | None) -> dict[str, Any] | None:
    return None if place is None else {"file": place.file, "line": place.line}


def _place_from(data: Mapping[str, Any] | None) -> Place | None:
    return None if data is None else Place(data["file"], data["line"])
