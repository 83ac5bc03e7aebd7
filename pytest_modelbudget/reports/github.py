"""Annotations for GitHub: workflow commands that put failures and warnings beside the lines of the manifest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from fractions import Fraction

from pytest_modelbudget.budget import Violation
from pytest_modelbudget.errors import Place
from pytest_modelbudget.reports import terminal, text
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.system.escape import harmless

MOST_ANNOTATIONS = 10
"""Errors, and warnings, that GitHub shows of one step; it drops the others without a word and without ranking."""

_LONGEST = 4_000
_ORDER = (
    State.BAD_CONFIG, State.BUILD_ERROR, State.NOT_CHECKED, State.CONFLICT, State.OVER_BUDGET, State.CHANGED,
    State.NO_SNAPSHOT, State.OBSOLETE, State.OK, State.SKIPPED,
)  # fmt: skip
"""What a reviewer has to see first."""


def reads_log() -> bool:
    """Whether this is a job of GitHub Actions, whose log is read for commands."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def commands(results: Sequence[Result], setting: text.ReportSetting, *, errors: bool = True) -> Iterator[str]:
    """The workflow commands of a run, one a line: at most ten errors and ten warnings, worst first, then a count.

    `errors=False` leaves out those of failed tests, for runs in which another plugin annotates these.
    """
    failed = [result for result in results if result.state.failed and (errors or not _is_test(result))]
    failed.sort(key=rank)
    yield from (_error(result, setting) for result in failed[:MOST_ANNOTATIONS])
    if len(failed) > MOST_ANNOTATIONS:
        yield _command(
            "notice", None, "Model budget", f"{len(failed) - MOST_ANNOTATIONS} more models failed: see the summary"
        )
    warnings = [*_warnings(results, setting), *_findings(results, setting)]
    yield from warnings[:MOST_ANNOTATIONS]
    if len(warnings) > MOST_ANNOTATIONS:
        yield _command(
            "notice", None, "Model budget", f"{len(warnings) - MOST_ANNOTATIONS} more warnings: see the summary"
        )


def _is_test(result: Result) -> bool:
    """Whether pytest has an item for it; the sum over a group has none."""
    return result.is_model or not result.failures


def rank(result: Result) -> tuple[int, Fraction, str]:
    """What sorts results: by state, then by how far the worst limit is exceeded."""
    return _ORDER.index(result.state), -max(map(overshoot, result.failures), default=Fraction(0)), result.id


def overshoot(violation: Violation) -> Fraction:
    """How far a limit is exceeded, as a share of what it allows; 0 when that cannot be told."""
    budget, actual = violation.budget, violation.actual
    if actual is None:
        return Fraction(0)
    allowed = budget.limit
    if budget.bound == "growth" and violation.base is not None:
        allowed = budget.allowed(violation.base)
    return abs(Fraction(actual) / Fraction(allowed) - 1) if allowed else Fraction(0)


def _error(result: Result, setting: text.ReportSetting) -> str:
    worst = max(result.failures, key=overshoot, default=None)
    place = text.location(result, setting.folder, worst.budget.place if worst else None)
    title, *lines = terminal.failure(result, rows=0).splitlines()
    message = "\n".join(text.cut_lines([line.strip() for line in lines], _LONGEST)) or title
    return _command("error", place, title, message)


def _warnings(results: Sequence[Result], setting: text.ReportSetting) -> Iterator[str]:
    for result in results:
        for violation in () if result.state.failed else result.warnings:  # an error has its warnings in it
            place = text.location(result, setting.folder, violation.budget.place)
            yield _command("warning", place, f"{result.id}: warning", harmless(str(violation)))


def _findings(results: Sequence[Result], setting: text.ReportSetting) -> Iterator[str]:
    for result, finding in text.new_findings(results, setting):
        place = text.location(result, setting.folder, finding.place)
        prefix = f"{finding.model}: " if finding.model else ""
        yield _command("warning", place, f"{prefix}{finding.kind}", harmless(finding.text))


def _command(kind: str, place: Place | None, title: str, message: str) -> str:
    location = "" if place is None else f"file={_escape_property(place.file)},line={place.line},"
    return f"::{kind} {location}title={_escape_property(harmless(title))}::{_escape_message(message)}"


def _escape_message(value: str) -> str:
    """A message, as the runner decodes it."""
    return value.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escape_property(value: str) -> str:
    """A property; a colon or comma would end it."""
    return _escape_message(value).replace(":", "%3A").replace(",", "%2C")
