"""A GitLab code quality report: a JSON array with one finding for each limit, model or manifest that needs a look."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_modelbudget.errors import Place
from pytest_modelbudget.reports import terminal, text
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.system.escape import harmless

_SEVERITY = {
    State.BAD_CONFIG: "blocker",
    State.NOT_CHECKED: "blocker",
    State.BUILD_ERROR: "blocker",
    State.CONFLICT: "blocker",
    State.NO_SNAPSHOT: "minor",
    State.OBSOLETE: "minor",
    State.CHANGED: "info",
}


@dataclass(frozen=True, slots=True)
class _QualityIssue:
    """`check` names the rule, `about` what it holds for; both and the model make the fingerprint, no value does."""

    check: str
    about: str
    severity: str
    text: str
    place: Place | None = None


def pieces(results: Sequence[Result], setting: text.ReportSetting = text.DEFAULT_SETTING) -> Iterator[str]:
    """All findings, by model; the same finding has the same fingerprint in every run, whatever its numbers."""
    yield from text.json_list(_entries(results, setting))
    yield "\n"


def _entries(results: Sequence[Result], setting: text.ReportSetting) -> Iterator[dict[str, object]]:
    fingerprints: set[str] = set()
    ordered = sorted(results, key=lambda result: (result.id, result.nodeid))
    for result, name in zip(ordered, text.unique_names(ordered), strict=True):
        for finding in _findings(result):
            place = text.location(result, setting.folder, finding.place)
            yield _entry(_fingerprint(name, finding, fingerprints), f"{result.id}: {finding.text}", finding, place)
    for subject, run_finding in text.new_findings(ordered, setting):
        finding = _QualityIssue(run_finding.kind.replace(" ", "-"), run_finding.text, "minor", run_finding.text)
        place = text.location(subject, setting.folder, run_finding.place)
        yield _entry(_fingerprint(run_finding.model, finding, fingerprints), str(run_finding), finding, place)


def _entry(fingerprint: str, description: str, finding: _QualityIssue, place: Place) -> dict[str, object]:
    return {
        "description": harmless(description),
        "check_name": f"modelbudget/{finding.check}",
        "fingerprint": fingerprint,
        "severity": finding.severity,
        "location": {"path": place.file, "lines": {"begin": place.line}},
    }


def _findings(result: Result) -> Iterator[_QualityIssue]:
    for violation in (*result.failures, *result.warnings):
        budget = violation.budget
        severity = "critical" if violation.severity == "fail" else "minor"
        about = f"{budget.bound}\0{budget.layer}\0{violation.layer}"
        yield _QualityIssue(budget.metric, about, severity, str(violation), budget.place)
    if result.state in _SEVERITY:
        check = result.state.value.lower().replace(" ", "-")
        yield _QualityIssue(
            check, "", _SEVERITY[result.state], f"{result.state.value}: {terminal.short_reason(result)}"
        )


def _fingerprint(name: str, finding: _QualityIssue, fingerprints: set[str]) -> str:
    """GitLab takes findings of equal fingerprints for one, so a repeated one is numbered."""
    number = 0
    while True:
        parts = (name, finding.check, finding.about, *([str(number)] if number else []))
        fingerprint = hashlib.sha256("\0".join(parts).encode("utf-8", "backslashreplace")).hexdigest()
        if fingerprint not in fingerprints:
            fingerprints.add(fingerprint)
            return fingerprint
        number += 1
