"""Results as JSON data and back: what travels from a worker to the controller, and into reports and trackers."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from fractions import Fraction
from typing import Any

from pytest_modelbudget.budget import Budget, Finding, Violation
from pytest_modelbudget.diff import Change
from pytest_modelbudget.errors import Place
from pytest_modelbudget.results import Result, Since, Snapshot, State, Stored
from pytest_modelbudget.results.groups import Group, Sum
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.summary.metrics import Number
from pytest_modelbudget.system.intact import intact

SCHEMA = 1
"""Version of the shape of `result_dict`."""


@intact()
def pack(result: Result) -> bytes:
    """One compressed value; layer tables are so repetitive that this is 20 to 50 times smaller than the JSON."""
    return zlib.compress(json.dumps(result_dict(result)).encode())


@intact()
def unpack(data: bytes) -> Result:
    """Read back what `pack` gave."""
    return result_from(json.loads(zlib.decompress(data)))


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
                "budget": _budget_dict(one.budget),
                "actual": number_text(one.actual),
                "severity": one.severity,
                "layer": one.layer,
                "reason": one.reason,
                "base": number_text(one.base),
                "against": one.against,
                "text": str(one),
            }
            for one in result.violations
        ],
        "changes": [asdict(one) for one in result.changes],
        "snapshot": {
            "stored": result.snapshot.stored.value,
            "path": result.snapshot.path,
            "text": result.snapshot.text,
            "problem": result.snapshot.problem,
            "note": result.snapshot.note,
        },
        "files": list(result.files),
        "findings": [finding_dict(one) for one in result.findings],
        "since": None if result.since is None else _since_dict(result.since),
        "limits": [_budget_dict(one) for one in result.limits],
        "summary": None if result.summary is None else result.summary.to_dict(),
    }


def result_from(data: Mapping[str, Any]) -> Result:
    """Read back what `result_dict` gave; the committed summary (`snapshot.before`) stays behind, its changes travel."""
    return Result(
        id=data["id"],
        nodeid=data["nodeid"],
        state=State(data["state"]),
        place=_place(data["place"]),
        tags=tuple(data["tags"]),
        error=data["error"],
        seconds=data["seconds"],
        accepted=data["accepted"],
        violations=tuple(
            Violation(
                _budget(one["budget"]),
                _number(one["actual"]),
                one["severity"],
                one["layer"],
                one["reason"],
                _number(one["base"]),
                one["against"],
            )
            for one in data["violations"]
        ),
        changes=tuple(Change(**one) for one in data["changes"]),
        snapshot=Snapshot(**{**data["snapshot"], "stored": Stored(data["snapshot"]["stored"])}),
        files=tuple(data["files"]),
        findings=tuple(map(finding_from, data["findings"])),
        since=None if data["since"] is None else _since(data["since"]),
        limits=tuple(map(_budget, data["limits"])),
        summary=None if data["summary"] is None else Summary.from_dict(data["summary"]),
    )


def group_dict(group: Group) -> dict[str, Any]:
    """A group of models with limits on their sum, as plain JSON data."""
    return {
        "name": group.name,
        "file": group.file,
        "limits": [_budget_dict(one) for one in group.limits],
        "members": list(group.members),
        "place": _place_dict(group.place),
    }


def group_from(data: Mapping[str, Any]) -> Group:
    """Read back what `group_dict` gave."""
    limits = tuple(map(_budget, data["limits"]))
    return Group(data["name"], data["file"], limits, tuple(data["members"]), _place(data["place"]))


def sum_dict(one: Sum) -> dict[str, Any]:
    """How the sum over a group came out, as plain JSON data."""
    return {
        "group": one.group.name,
        "file": one.group.file,
        "state": one.state,
        "budget": _budget_dict(one.budget),
        "total": number_text(one.total),
        "counted": one.counted,
        "members": len(one.group.members),
        "missing": list(one.missing),
        "text": "" if one.violation is None else str(one.violation),
    }


def number_text(value: Number | None) -> str | int | None:
    """A number as plain JSON data: a whole one as it is, a share or ratio as a fraction, `"13/20"`."""
    return str(value) if isinstance(value, Fraction) else value


def _number(value: str | int | None) -> Number | None:
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
    }


def _budget(data: Mapping[str, Any]) -> Budget:
    return Budget(
        data["metric"],
        data["bound"],
        _known(data["limit"]),
        data["layer"],
        _place(data["place"]),
        data["relative"],
        None if data["until"] is None else date.fromisoformat(data["until"]),
        data["reason"],
        tuple(data.get("devices", ())),
        data.get("dim", ""),
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
    return Finding(data["kind"], data["model"], data["text"], _place(data["place"]))


def _since_dict(since: Since) -> dict[str, Any]:
    return {
        "name": since.name,
        "reason": since.reason,
        "totals": {name: number_text(value) for name, value in since.totals.items()},
        "changes": [asdict(one) for one in since.changes],
    }


def _since(data: Mapping[str, Any]) -> Since:
    totals = {name: _number(value) for name, value in data["totals"].items()}
    return Since(data["name"], data["reason"], totals, tuple(Change(**one) for one in data["changes"]))


def _place_dict(place: Place | None) -> dict[str, Any] | None:
    return None if place is None else {"file": place.file, "line": place.line}


def _place(data: Mapping[str, Any] | None) -> Place | None:
    return None if data is None else Place(data["file"], data["line"])
