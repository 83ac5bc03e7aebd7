"""A summary against its limits: what breaks them, and what could not be enforced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime, timezone
from difflib import get_close_matches
from math import floor
from typing import Literal

from pytest_modelbudget import units
from pytest_modelbudget.budget.findings import Baseline, Finding, waiver_text
from pytest_modelbudget.budget.limits import EVERY, Budget
from pytest_modelbudget.budget.planned import Found, misfits, overgrown
from pytest_modelbudget.budget.values import distance, matching, relative, unknown, value
from pytest_modelbudget.summary import Kind, Layer, Summary
from pytest_modelbudget.summary.metrics import PEAKS, Number, show

RUNS: dict[str, Callable[[Summary, Budget], Iterator[Found]]] = {
    "fits": misfits,
    "law": overgrown,
    "exponent": overgrown,
}
"""Bounds of runs, and what judges them; the reason of what they find says all of it."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A budget that does not hold: `actual` (None: cannot be told) against its limit; of one layer when `layer` is set.

    `severity` is `warn` in the warn zone below a max, for what is waived or inherited, and `fail` everywhere else.
    `base` is the number in the base, for growth, and `against` names that base.
    """

    budget: Budget
    actual: Number | None
    severity: Literal["fail", "warn"] = "fail"
    layer: str | None = None
    reason: str = ""
    base: Number | None = None
    against: str = ""

    def __str__(self) -> str:
        title = self.budget.title if self.layer is None else f"{self.layer} {self.budget.metric}"
        if self.budget.bound == "growth":
            title = f"{title} growth"
        if self.actual is None or self.budget.bound in RUNS:
            return f"{title}: {self.reason}"
        return f"{title}: {self._numbers(self.actual, self.budget.limit)}{f'; {self.reason}' if self.reason else ''}"

    def _numbers(self, actual: Number, limit: Number) -> str:
        kind = self.budget.kind
        match self.budget.bound:
            case "warn":
                return f"{show(kind, actual)} is over {units.percent(limit)} of the limit"
            case "growth":
                return self._growth(actual)
            case bound:
                sign = "<" if bound == "min" else ">"
                return f"{show(kind, actual)} {sign} {show(kind, limit)} ({distance(kind, actual, limit)})"

    def _growth(self, actual: Number) -> str:
        """`2,688 is +640 (+31.2%) on 2,048 (HEAD^1 4f1c2d9); +2% is allowed: 600 too many`."""
        assert self.base is not None
        kind, gap = self.budget.kind, actual - self.base
        allowed = self.budget.allowed(self.base)
        if kind == "share":
            grew = f"{units.rounded(gap * 100, '+.4g')} points"
            excess = units.rounded((actual - allowed) * 100, ".4g")
        else:
            share = f" ({relative(gap, self.base)})" if self.base else ""
            # Parts of an element do not exist: what is allowed ends at the whole number below.
            grew, excess = f"{int(gap):+,}{share}", f"{int(actual) - floor(allowed):,}"
        return (
            f"{show(kind, actual)} is {grew} on {show(kind, self.base)} ({self.against}); "
            f"{self.budget.text} is allowed: {excess} too many"
        )


def today() -> date:
    """The day by which waivers end: UTC's, the same on every machine."""
    return datetime.now(timezone.utc).date()


def judge(
    summary: Summary, budgets: Iterable[Budget], base: Baseline | None = None, day: date | None = None
) -> tuple[tuple[Violation, ...], tuple[Finding, ...]]:
    """Return every budget that does not hold, failures first, and what else there is to say of the budgets.

    Growth and inherited limits are held against `base`; without its number growth is not enforced, which is a
    finding. Waivers hold through their last day; `day` is today.
    """
    court = _Court(summary, tuple(budgets), base, day or today())
    found: list[Violation] = []
    said: list[Finding] = []
    for one in court.verdicts():
        if isinstance(one, Violation):
            found.append(one)
        elif one not in said:
            said.append(one)
    return tuple(sorted(found, key=lambda violation: violation.severity)), tuple(said)


class _Court:
    """One model before its limits."""

    def __init__(self, summary: Summary, budgets: tuple[Budget, ...], base: Baseline | None, day: date) -> None:
        self.summary, self.budgets, self.base, self.day = summary, budgets, base, day
        self.rules = {budget.key: budget for budget in budgets}
        self.old_layers = {layer.path: layer for layer in base.summary.layers} if base and base.summary else {}
        self.waived: set[tuple[str | None, str, str]] = set()

    def verdicts(self) -> Iterator[Violation | Finding]:
        for budget in self.budgets:
            if judged := RUNS.get(budget.bound):
                yield from (Violation(budget, number, reason=why) for number, why in judged(self.summary, budget))
            if budget.bound in ("max", "min", "warn", "growth"):
                yield from self._judge(budget)
        for budget in self.budgets:
            if budget.bound == "waive":
                yield from self._idle_waiver(budget)

    def _judge(self, budget: Budget) -> Iterator[Violation | Finding]:
        if budget.bound == "warn" and self._rule(budget, "max") is None:
            return  # inherited by a model without a max of this metric: there is nothing to come near to
        if budget.layer is None:
            yield from self._judge_value(budget, None)
            return
        matched = matching(self.summary, budget.layer)
        if not matched and budget.bound != "warn":
            near = get_close_matches(budget.layer.strip("*"), [layer.path for layer in self.summary.layers], n=1)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            yield Violation(budget, None, layer=budget.layer, reason=f"no layer matches {budget.layer!r}{hint}")
        for layer in matched:
            yield from self._judge_value(budget, layer)

    def _rule(self, budget: Budget, bound: str) -> Budget | None:
        return self.rules.get((budget.layer, budget.metric, bound))

    def _judge_value(self, budget: Budget, layer: Layer | None) -> Iterator[Violation | Finding]:
        path = None if layer is None else layer.path
        actual = value(self.summary, budget.metric, layer)
        bound = self.summary.flops.is_lower_bound and budget.metric == "flops"
        if budget.bound == "growth":
            yield from self._growth(budget, layer, actual, bound)
            return
        if actual is None:
            if budget.bound != "warn":
                yield Violation(budget, None, layer=path, reason=unknown(budget.metric, self.summary))
            return
        match budget.bound:
            case "max" if actual > budget.limit:
                yield self._over(budget, layer, actual, bound)
            case "max" if bound:
                yield Violation(budget, None, layer=path, reason=unknown(budget.metric, self.summary))
            case "min" if actual < budget.limit and bound:
                yield Violation(budget, None, layer=path, reason=unknown(budget.metric, self.summary))
            case "min" if actual < budget.limit:
                yield self._inherited(Violation(budget, actual, layer=path), layer)
            case "warn":
                maximum = self._rule(budget, "max")
                assert maximum is not None
                if maximum.limit * budget.limit < actual <= maximum.limit:
                    yield Violation(budget, actual, "warn", path, reason=f"max {maximum.text}")

    def _over(self, budget: Budget, layer: Layer | None, actual: Number, bound: bool) -> Violation:
        """Over a max: waived, inherited, or a failure."""
        path = None if layer is None else layer.path
        over = Violation(budget, actual, layer=path, reason="a lower bound" if bound else "")
        waiver = self._rule(budget, "waive")
        if waiver is None:
            return self._inherited(over, layer)
        self.waived.add(waiver.key)
        if not self._holds(waiver):
            over = Violation(budget, actual, layer=path, reason=f"its waiver ended on {waiver.until}: {waiver.reason}")
            return self._inherited(over, layer)
        if actual > waiver.limit:
            return Violation(waiver, actual, layer=path, reason=f"more than is waived until {waiver.until}")
        if bound:
            return Violation(budget, None, layer=path, reason=unknown(budget.metric, self.summary))
        return Violation(budget, actual, "warn", path, f"waived {waiver_text(waiver)}")

    def _holds(self, waiver: Budget) -> bool:
        return waiver.until is not None and self.day <= waiver.until

    def _inherited(self, violation: Violation, layer: Layer | None) -> Violation:
        """The same as a warning, where the base breaks the limit too and this model is no worse."""
        budget = violation.budget
        wanted = self._rule(budget, "inherited") or self.rules.get((None, EVERY, "inherited"))
        old, _ = self._before(budget, layer) if wanted else (None, "")
        actual = violation.actual
        if old is None or actual is None or self.base is None:
            return violation
        up = 1 if budget.bound == "max" else -1
        if up * old <= up * budget.limit:
            return violation  # the base kept the limit: nothing is inherited
        has = f"{self.base.name} has {show(budget.kind, old)}"
        if up * actual > up * old:
            return replace(violation, reason=f"worse than inherited: {has}")
        return replace(violation, severity="warn", reason=f"inherited: {has}")

    def _before(self, budget: Budget, layer: Layer | None) -> tuple[Number | None, str]:
        """The base's number, or None with why it has none."""
        if self.base is None:
            return None, ""
        old = self.base.summary
        if old is None:
            return None, self.base.reason
        if budget.metric == "flops" and old.flops.rules != self.summary.flops.rules:
            rules = f"{old.flops.rules}, here by rules {self.summary.flops.rules}"
            return None, f"FLOPs were counted by rules {rules} ({self.base.name})"
        if (kind := PEAKS.get(budget.metric)) and (why := _other_run(old, self.summary, kind)):
            return None, f"{why} ({self.base.name})"
        if layer is not None and layer.path not in self.old_layers:
            return None, f"{layer.path} is not in the base ({self.base.name})"
        number = value(old, budget.metric, None if layer is None else self.old_layers[layer.path])
        return number, "" if number is not None else f"{budget.metric} is not known there ({self.base.name})"

    def _growth(
        self, budget: Budget, layer: Layer | None, actual: Number | None, bound: bool
    ) -> Iterator[Violation | Finding]:
        if self.base is None:
            return
        path = None if layer is None else layer.path
        old, why = self._before(budget, layer)
        if old is None:
            yield Finding("growth not enforced", self.summary.model, why)
            return
        if actual is None or (bound and actual <= budget.allowed(old)):
            yield Violation(budget, None, layer=path, reason=unknown(budget.metric, self.summary))
            return
        if actual <= budget.allowed(old):
            return
        if budget.metric == "flops" and self.base.summary is not None and self.base.summary.flops.is_lower_bound:
            why = f"flops are known only as at least {units.count(int(old))} there ({self.base.name})"
            yield Finding("growth not enforced", self.summary.model, why)
            return
        over = Violation(budget, actual, "fail", path, "a lower bound" if bound else "", old, self.base.name)
        waiver = self._rule(budget, "waive")
        if waiver is None or bound or not self._holds(waiver) or actual > waiver.limit:
            yield over
            return
        self.waived.add(waiver.key)
        yield replace(over, severity="warn", reason=f"waived {waiver_text(waiver)}")

    def _idle_waiver(self, waiver: Budget) -> Iterator[Finding]:
        """A waiver is told at every run, also when nothing needs it."""
        if waiver.key in self.waived:
            return
        state = "not needed now" if self._holds(waiver) else "it has ended, and can be removed"
        text = f"{waiver.title} {waiver_text(waiver)} ({state})"
        yield Finding("waiver", self.summary.model, text, waiver.place)


def _other_run(old: Summary, new: Summary, kind: Kind) -> str:
    """Why the peaks of two summaries cannot be compared; empty when they are of the same run."""
    before, after = old.plan(kind), new.plan(kind)
    if before is None or after is None or before.recipe == after.recipe:
        return ""
    return f"{kind} there was {before.recipe}, here {after.recipe}"
