"""What only all results together can tell: sums over groups of models, and what to say once instead of per model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pytest_modelbudget.budget import Budget, Finding, Violation, limited_numbers, tightened_max
from pytest_modelbudget.budget.values import why_unknown
from pytest_modelbudget.errors import Place
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.summary.metrics import METRICS, Number

_MOST_NAMES = 5


@dataclass(frozen=True, slots=True)
class ModelGroup:
    """Models whose numbers are limited together: `name` is `group edge` or `tag edge`, `members` their node ids."""

    name: str
    file: str
    limits: tuple[Budget, ...]
    members: tuple[str, ...]
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class GroupSum:
    """One limit on the sum over a group.

    `total` is the sum over the members that were counted (None when one of them has no such number), `counted` how
    many these are, and `missing` the names of the others: without them a sum within its limit is `incomplete`.
    """

    group: ModelGroup
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
class RunSummary:
    """What a run says beside its results: which `base` it had, what a reviewer should see, and the sums."""

    base: str = ""
    findings: tuple[Finding, ...] = ()
    sums: tuple[GroupSum, ...] = ()


def names_text(all_names: Iterable[str]) -> str:
    """`a, b, c, d, e and 7 more`."""
    name_list = list(all_names)
    more = len(name_list) - _MOST_NAMES
    return ", ".join(name_list[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def sums(groups: Iterable[ModelGroup], results: Iterable[Result]) -> Iterator[GroupSum]:
    """Yield each limit on a sum; groups of which this run has no model at all are left out."""
    by_node = {result.nodeid: result for result in results}
    for group in groups:
        present = [by_node[node] for node in group.members if node in by_node]
        if present:
            counted = [result for result in present if result.summary is not None]
            counted_nodes = {result.nodeid for result in counted}
            missing = tuple(node.rpartition("::")[2] for node in group.members if node not in counted_nodes)
            for budget in group.limits:
                if budget.bound == "max":
                    yield _sum(group, budget, counted, missing)


def _sum(group: ModelGroup, budget: Budget, counted: Sequence[Result], missing: tuple[str, ...]) -> GroupSum:
    values = [(result.id, _metric_of(result, budget.metric)) for result in counted]
    known_values = [(model, number) for model, number in values if number is not None]
    total = sum(number for _, number in known_values)
    violation = _sum_violation(group, budget, total, known_values, _why_inexact(counted, budget.metric), bool(missing))
    return GroupSum(group, budget, None if len(known_values) < len(values) else total, len(counted), missing, violation)


def _sum_violation(
    group: ModelGroup,
    budget: Budget,
    total: Number,
    known_values: Sequence[tuple[str, Number]],
    unsure: str,
    missing: bool,
) -> Violation | None:
    if total > budget.limit:
        at_least = "at least the " if unsure or missing else ""
        return Violation(budget, total, reason=f"{at_least}sum over {_largest_text(budget, known_values)}")
    if unsure:
        return Violation(budget, None, reason=unsure)
    warn = next((limit for limit in group.limits if limit.bound == "warn" and limit.metric == budget.metric), None)
    if warn is not None and total > warn.limit * budget.limit:
        return Violation(
            warn, total, "warn", reason=f"max {budget.text}, sum over {_largest_text(budget, known_values)}"
        )
    return None


def _why_inexact(counted: Iterable[Result], metric: str) -> str:
    """Why the sum is not exact: the first model whose number is unknown, or known only as at least some value."""
    for result in counted:
        if result.summary is not None and (
            _metric_of(result, metric) is None or (metric == "flops" and result.summary.flops.is_lower_bound)
        ):
            return f"{result.id} is {why_unknown(metric, result.summary)}"
    return ""


def _metric_of(result: Result, metric: str) -> Number | None:
    return None if result.summary is None else METRICS[metric].get(result.summary)


def _largest_text(budget: Budget, known_values: Sequence[tuple[str, Number]]) -> str:
    ranked = sorted(known_values, key=lambda pair: (-pair[1], pair[0]))
    listed = names_text(f"{model} {METRICS[budget.metric].show(number)}" for model, number in ranked)
    return f"{len(known_values)} model{'' if len(known_values) == 1 else 's'}: {listed}"


def group_results(all_sums: Iterable[GroupSum]) -> Iterator[Result]:
    """A failed result for each group with a sum that is over its limit or cannot be told."""
    failed: dict[ModelGroup, list[Violation]] = {}
    for item in all_sums:
        if item.violation is not None and item.state == "over":
            failed.setdefault(item.group, []).append(item.violation)
    for group, violations in failed.items():
        lines = [f"{item}{f'  [{item.budget.place}]' if item.budget.place else ''}" for item in violations]
        yield Result(
            id=group.name,
            nodeid=f"{group.file}::{group.name}",
            state=State.OVER_BUDGET,
            violations=tuple(violations),
            place=group.place,
            error="\n".join(lines),
            limits=group.limits,
        )


def incomplete(all_sums: Iterable[GroupSum]) -> Iterator[Finding]:
    """Say each sum that holds so far, but lacks members."""
    for group_sum in all_sums:
        if group_sum.state == "incomplete":
            total = "?" if group_sum.total is None else METRICS[group_sum.budget.metric].show(group_sum.total)
            text = (
                f"{group_sum.budget.metric} {total} of {group_sum.budget.text} so far: {len(group_sum.missing)} of "
                f"{len(group_sum.group.members)} models were not counted ({names_text(group_sum.missing)})"
            )
            yield Finding("sum incomplete", group_sum.group.name, text, group_sum.budget.place)


def shared_findings(results: Iterable[Result]) -> Iterator[Finding]:
    """The findings of all models, each once: a default that was loosened is one thing to see, and not one a model."""
    models: dict[Finding, list[str]] = {}
    for result in results:
        for finding in result.findings:
            if finding.kind != "growth not enforced":  # `unenforced_growth` has these
                models.setdefault(replace(finding, model=""), []).append(result.id)
    for finding, ids in models.items():
        yield replace(finding, model=names_text(ids))


def unenforced_growth(results: Iterable[Result]) -> Iterator[Finding]:
    """Each reason why growth could not be held against the base, once, with its models."""
    models: dict[str, list[str]] = {}
    for result in results:
        for finding in result.findings:
            if finding.kind == "growth not enforced":
                models.setdefault(finding.text, []).append(result.id)
    for text, ids in models.items():
        yield Finding(
            "growth not enforced", "", f"{len(ids)} model{'' if len(ids) == 1 else 's'}, {text}: {names_text(ids)}"
        )


def ratchet_findings(results: Iterable[Result]) -> Iterator[Finding]:
    """Each max that is looser than its ratchet wants; a limit that several models share follows the largest."""
    pairs_by_max: dict[Budget, list[tuple[str, Number | None]]] = {}
    for result in results:
        rules = {budget.key: budget for budget in result.limits}
        for ratchet in result.limits:
            maximum = rules.get((ratchet.layer, ratchet.metric, "max"))
            if ratchet.bound != "ratchet" or maximum is None or result.summary is None or result.state.failed:
                continue
            maxima = [
                None if number is None else tightened_max(ratchet, number)
                for number in limited_numbers(result.summary, maximum)
            ]
            pairs_by_max.setdefault(maximum, []).extend((result.id, number) for number in maxima)
    for maximum, pairs in pairs_by_max.items():
        known_maxima = [number for _, number in pairs if number is not None]
        if len(known_maxima) == len(pairs) and known_maxima and max(known_maxima) < maximum.limit:
            tight = (
                METRICS[maximum.metric].show(max(known_maxima)) if maximum.layer is None else f"{max(known_maxima):,}"
            )
            text = f"{maximum.title} max {maximum.text} can be {tight}: modelbudget tighten"
            yield Finding("ratchet", names_text(dict.fromkeys(model for model, _ in pairs)), text, maximum.place)
