"""What only all results together can tell: sums over groups of models, and what to say once instead of per model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pytest_modelbudget.budget import Budget, Finding, Violation, numbers, tightened
from pytest_modelbudget.budget.values import unknown
from pytest_modelbudget.errors import Place
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.summary.metrics import METRICS, Number

_MOST_NAMES = 5


@dataclass(frozen=True, slots=True)
class Group:
    """Models whose numbers are limited together: `name` is `group edge` or `tag edge`, `members` their node ids."""

    name: str
    file: str
    limits: tuple[Budget, ...]
    members: tuple[str, ...]
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Sum:
    """One limit on the sum over a group.

    `total` is the sum over the members that were counted (None when one of them has no such number), `counted` how
    many these are, and `missing` the names of the others: without them a sum within its limit is `incomplete`.
    """

    group: Group
    budget: Budget
    total: Number | None
    counted: int
    missing: tuple[str, ...] = ()
    violation: Violation | None = None

    @property
    def state(self) -> Literal["ok", "warn", "over", "incomplete"]:
        """How it came out."""
        if self.violation is not None:
            return "over" if self.violation.severity == "fail" else "warn"
        return "incomplete" if self.missing else "ok"


@dataclass(frozen=True, slots=True)
class Overall:
    """What a run says beside its results: which `base` it had, what a reviewer should see, and the sums."""

    base: str = ""
    findings: tuple[Finding, ...] = ()
    sums: tuple[Sum, ...] = ()


def names(all_names: Iterable[str]) -> str:
    """`a, b, c, d, e and 7 more`."""
    listed = list(all_names)
    more = len(listed) - _MOST_NAMES
    return ", ".join(listed[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def sums(groups: Iterable[Group], results: Iterable[Result]) -> Iterator[Sum]:
    """Yield each limit on a sum; groups of which this run has no model at all are left out."""
    by_node = {result.nodeid: result for result in results}
    for group in groups:
        present = [by_node[node] for node in group.members if node in by_node]
        if present:
            counted = [result for result in present if result.summary is not None]
            known = {result.nodeid for result in counted}
            missing = tuple(node.rpartition("::")[2] for node in group.members if node not in known)
            for budget in group.limits:
                if budget.bound == "max":
                    yield _sum(group, budget, counted, missing)


def _sum(group: Group, budget: Budget, counted: Sequence[Result], missing: tuple[str, ...]) -> Sum:
    found = [(result.id, _number(result, budget.metric)) for result in counted]
    known = [(model, number) for model, number in found if number is not None]
    total = sum(number for _, number in known)
    violation = _judge(group, budget, total, known, _unsure(counted, budget.metric), bool(missing))
    return Sum(group, budget, None if len(known) < len(found) else total, len(counted), missing, violation)


def _judge(
    group: Group, budget: Budget, total: Number, known: Sequence[tuple[str, Number]], unsure: str, missing: bool
) -> Violation | None:
    if total > budget.limit:
        at_least = "at least the " if unsure or missing else ""
        return Violation(budget, total, reason=f"{at_least}sum over {_largest(budget, known)}")
    if unsure:
        return Violation(budget, None, reason=unsure)
    warn = next((one for one in group.limits if one.bound == "warn" and one.metric == budget.metric), None)
    if warn is not None and total > warn.limit * budget.limit:
        return Violation(warn, total, "warn", reason=f"max {budget.text}, sum over {_largest(budget, known)}")
    return None


def _unsure(counted: Iterable[Result], metric: str) -> str:
    """Why the sum is not exact: the first model whose number is unknown, or known only as at least some value."""
    for result in counted:
        if result.summary is not None and (
            _number(result, metric) is None or (metric == "flops" and result.summary.flops.is_lower_bound)
        ):
            return f"{result.id} is {unknown(metric, result.summary)}"
    return ""


def _number(result: Result, metric: str) -> Number | None:
    return None if result.summary is None else METRICS[metric].get(result.summary)


def _largest(budget: Budget, known: Sequence[tuple[str, Number]]) -> str:
    ranked = sorted(known, key=lambda pair: (-pair[1], pair[0]))
    listed = names(f"{model} {METRICS[budget.metric].show(number)}" for model, number in ranked)
    return f"{len(known)} model{'' if len(known) == 1 else 's'}: {listed}"


def group_results(all_sums: Iterable[Sum]) -> Iterator[Result]:
    """A failed result for each group with a sum that is over its limit or cannot be told."""
    failed: dict[Group, list[Violation]] = {}
    for one in all_sums:
        if one.violation is not None and one.state == "over":
            failed.setdefault(one.group, []).append(one.violation)
    for group, violations in failed.items():
        lines = [f"{one}{f'  [{one.budget.place}]' if one.budget.place else ''}" for one in violations]
        yield Result(
            id=group.name,
            nodeid=f"{group.file}::{group.name}",
            state=State.OVER_BUDGET,
            violations=tuple(violations),
            place=group.place,
            error="\n".join(lines),
            limits=group.limits,
        )


def incomplete(all_sums: Iterable[Sum]) -> Iterator[Finding]:
    """Say each sum that holds so far, but lacks members."""
    for one in all_sums:
        if one.state == "incomplete":
            total = "?" if one.total is None else METRICS[one.budget.metric].show(one.total)
            text = (
                f"{one.budget.metric} {total} of {one.budget.text} so far: {len(one.missing)} of "
                f"{len(one.group.members)} models were not counted ({names(one.missing)})"
            )
            yield Finding("sum incomplete", one.group.name, text, one.budget.place)


def shared(results: Iterable[Result]) -> Iterator[Finding]:
    """The findings of all models, each once: a default that was loosened is one thing to see, and not one a model."""
    models: dict[Finding, list[str]] = {}
    for result in results:
        for finding in result.findings:
            if finding.kind != "growth not enforced":  # `unenforced` has these
                models.setdefault(replace(finding, model=""), []).append(result.id)
    for finding, ids in models.items():
        yield replace(finding, model=names(ids))


def unenforced(results: Iterable[Result]) -> Iterator[Finding]:
    """Each reason why growth could not be held against the base, once, with its models."""
    models: dict[str, list[str]] = {}
    for result in results:
        for finding in result.findings:
            if finding.kind == "growth not enforced":
                models.setdefault(finding.text, []).append(result.id)
    for text, ids in models.items():
        yield Finding(
            "growth not enforced", "", f"{len(ids)} model{'' if len(ids) == 1 else 's'}, {text}: {names(ids)}"
        )


def ratchets(results: Iterable[Result]) -> Iterator[Finding]:
    """Each max that is looser than its ratchet wants; a limit that several models share follows the largest."""
    shared: dict[Budget, list[tuple[str, Number | None]]] = {}
    for result in results:
        rules = {budget.key: budget for budget in result.limits}
        for ratchet in result.limits:
            maximum = rules.get((ratchet.layer, ratchet.metric, "max"))
            if ratchet.bound != "ratchet" or maximum is None or result.summary is None or result.state.failed:
                continue
            wanted = [None if one is None else tightened(ratchet, one) for one in numbers(result.summary, maximum)]
            shared.setdefault(maximum, []).extend((result.id, one) for one in wanted)
    for maximum, pairs in shared.items():
        known = [one for _, one in pairs if one is not None]
        if len(known) == len(pairs) and known and max(known) < maximum.limit:
            tight = METRICS[maximum.metric].show(max(known)) if maximum.layer is None else f"{max(known):,}"
            text = f"{maximum.title} max {maximum.text} can be {tight}: modelbudget tighten"
            yield Finding("ratchet", names(dict.fromkeys(model for model, _ in pairs)), text, maximum.place)
