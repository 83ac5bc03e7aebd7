"""Which models a report lists where there are too many for all: what failed, warned or moved, and how many others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pytest_modelbudget.reports import text
from pytest_modelbudget.results import Result, State

MOST_IN_FULL = 200
"""Models up to which a text lists all: as many as a person scrolls through."""

MOST_OF_A_KIND = 50
"""Models of one kind that are listed among more: they are alike, and whoever mends the first ones runs again."""

UNCHANGED = "ok and unchanged"


@dataclass(frozen=True, slots=True)
class Listing:
    """The results that are listed, failures first, and how many of each kind are not, worst first."""

    results: list[Result]
    left_out: tuple[tuple[str, int], ...] = ()

    @property
    def line(self) -> str:
        """`950 more are OVER BUDGET, 98,742 more are ok and unchanged: the JSON report has all`; empty for none."""
        counts = ", ".join(f"{count:,} more {'is' if count == 1 else 'are'} {kind}" for kind, count in self.left_out)
        return f"{counts}: the JSON report (--model-budget-report=json:PATH) has all" if counts else ""


def kind_of(result: Result) -> str:
    """Why a reviewer wants to know of a model, in a word; `UNCHANGED` where there is no reason."""
    if result.state.failed or result.state is State.SKIPPED:
        return result.state.value
    if result.warnings:
        return "above a warning"
    if any(text.comparisons(result)):
        return "changed"
    if any(finding.kind in text.NEW_FINDINGS for finding in result.findings):
        return "limited anew"
    if result.since is not None and result.since.name and result.since.reason:
        return "new"
    if result.to_write:
        return "accepted"
    return "remeasured" if result.snapshot.note else UNCHANGED


def listed(results: Iterable[Result], *, most: int = MOST_IN_FULL, of_a_kind: int = MOST_OF_A_KIND) -> Listing:
    """All of at most `most` results; of more `of_a_kind` of each kind, and none that is ok and unchanged."""
    ordered = text.sorted_results(results)
    if len(ordered) <= most:
        return Listing(ordered)
    by_kind: dict[str, list[Result]] = {}
    for result in ordered:
        by_kind.setdefault(kind_of(result), []).append(result)
    unchanged = by_kind.pop(UNCHANGED, [])
    states = [state.value for state in reversed(State)]
    kinds = sorted(by_kind, key=lambda kind: states.index(kind) if kind in states else len(states))
    left_out = [(kind, len(by_kind[kind]) - of_a_kind) for kind in kinds if len(by_kind[kind]) > of_a_kind]
    shown = [result for alike in by_kind.values() for result in alike[:of_a_kind]]
    return Listing(text.sorted_results(shown), (*left_out, *([(UNCHANGED, len(unchanged))] if unchanged else [])))


def bounded(items: Sequence[tuple[str, str]]) -> Iterator[str]:
    """The lines of (kind, line) pairs; of very many some of each kind, and how many more there are."""
    if len(items) <= MOST_IN_FULL:
        yield from (line for _, line in items)
        return
    by_kind: dict[str, list[str]] = {}
    for kind, line in items:
        by_kind.setdefault(kind, []).append(line)
    for kind, alike in by_kind.items():
        yield from alike[:MOST_OF_A_KIND]
        if (more := len(alike) - MOST_OF_A_KIND) > 0:
            yield f"... and {more:,} more: {kind}"
