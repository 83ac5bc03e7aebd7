"""A summary against its limits: what breaks them, and what could not be enforced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime, timezone
from difflib import get_close_matches
from math import floor
from typing import Literal

from pytest_modelbudget import units
from pytest_modelbudget.budget.exported import excess_of_export
from pytest_modelbudget.budget.findings import Baseline, Finding, waiver_text
from pytest_modelbudget.budget.limits import ALL_METRICS, Budget
from pytest_modelbudget.budget.planned import Breach, device_shortfalls, excess_growth, tight_fits
from pytest_modelbudget.budget.values import (
    amount_text,
    distance_text,
    layer_value,
    matching_layers,
    metric_value,
    relative_text,
    why_unknown,
)
from pytest_modelbudget.summary import Kind, Layer, Summary
from pytest_modelbudget.summary.metrics import PLAN_METRICS
from pytest_modelbudget.summary.numbers import Number, show, show_limit
from pytest_modelbudget.summary.totals import Totals, number_of
from pytest_modelbudget.summary.work import WORK_METRICS, run_of

RUN_RULES: dict[str, Callable[[Summary, Budget], Iterator[Breach]]] = {
    "fits": device_shortfalls,
    "law": excess_growth,
    "exponent": excess_growth,
    "export": excess_of_export,
}
"""Bounds of runs and of exported files, and what judges them; the reason of what they find says all of it."""


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
        if self.actual is None or self.budget.bound in RUN_RULES:
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
                return f"{show(kind, actual)} {sign} {show_limit(kind, limit)} ({distance_text(kind, actual, limit)})"

    def _growth(self, actual: Number) -> str:
        """`2,688 is +640 (+31.2%) on 2,048 (HEAD^1 4f1c2d9); +2% is allowed: 600 too many`."""
        assert self.base is not None
        kind, gap = self.budget.kind, actual - self.base
        allowed = self.budget.allowed(self.base)
        if kind == "share":
            growth = f"{units.rounded(gap * 100, '+.4g')} points"
            excess = units.rounded((actual - allowed) * 100, ".4g")
        else:
            share = f" ({relative_text(gap, self.base)})" if self.base else ""
            # Parts of an element do not exist: what is allowed ends at the whole number below.
            whole = kind not in ("ratio", "seconds")
            growth = f"{amount_text(kind, gap)}{share}"
            excess = amount_text(kind, int(actual) - floor(allowed) if whole else actual - allowed).removeprefix("+")
        return (
            f"{show(kind, actual)} is {growth} on {show(kind, self.base)} ({self.against}); "
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
    evaluator = _Evaluator(summary, tuple(budgets), base, day or today())
    breaches: list[Violation] = []
    findings: list[Finding] = []
    for outcome in evaluator.evaluate():
        if isinstance(outcome, Violation):
            breaches.append(outcome)
        elif outcome not in findings:
            findings.append(outcome)
    return tuple(sorted(breaches, key=lambda violation: violation.severity)), tuple(findings)


class _Evaluator:
    """One model before its limits."""

    def __init__(self, summary: Summary, budgets: tuple[Budget, ...], base: Baseline | None, day: date) -> None:
        self.summary, self.budgets, self.base, self.day = summary, budgets, base, day
        self.rules = {budget.key: budget for budget in budgets}
        earlier = base.summary.layers if base is not None and isinstance(base.summary, Summary) else ()
        self.old_layers = {layer.path: layer for layer in earlier}
        self.waived: set[tuple[str | None, str, str]] = set()

    def evaluate(self) -> Iterator[Violation | Finding]:
        for budget in self.budgets:
            if rule := RUN_RULES.get(budget.bound):
                yield from (Violation(budget, number, reason=reason) for number, reason in rule(self.summary, budget))
            if budget.bound == "fits" and not budget.strict:
                tight = tight_fits(self.summary, budget)
                yield from (Violation(budget, needs, "warn", reason=reason) for needs, reason in tight)
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
        matched = matching_layers(self.summary, budget.layer)
        if not matched and budget.bound != "warn":
            close_matches = get_close_matches(
                budget.layer.strip("*"), [layer.path for layer in self.summary.layers], n=1
            )
            hint = f"; the nearest is {close_matches[0]!r}" if close_matches else ""
            yield Violation(budget, None, layer=budget.layer, reason=f"no layer matches {budget.layer!r}{hint}")
        for layer in matched:
            yield from self._judge_value(budget, layer)

    def _rule(self, budget: Budget, bound: str) -> Budget | None:
        return self.rules.get((budget.layer, budget.metric, bound))

    def _judge_value(self, budget: Budget, layer: Layer | None) -> Iterator[Violation | Finding]:
        path = None if layer is None else layer.path
        actual = metric_value(self.summary, budget.metric, layer)
        lower_bound = self.summary.flops.is_lower_bound and budget.metric == "flops"
        if budget.bound == "growth":
            yield from self._growth(budget, layer, actual, lower_bound)
            return
        if actual is None:
            if budget.bound != "warn":
                yield Violation(budget, None, layer=path, reason=why_unknown(budget.metric, self.summary))
            return
        match budget.bound:
            case "max" if actual > budget.limit:
                yield self._over(budget, layer, actual, lower_bound)
            case "max" if lower_bound:
                yield Violation(budget, None, layer=path, reason=why_unknown(budget.metric, self.summary))
            case "min" if actual < budget.limit and lower_bound:
                yield Violation(budget, None, layer=path, reason=why_unknown(budget.metric, self.summary))
            case "min" if actual < budget.limit:
                yield self._inherited(Violation(budget, actual, layer=path), layer)
            case "warn":
                maximum = self._rule(budget, "max")
                assert maximum is not None
                if maximum.limit * budget.limit < actual <= maximum.limit:
                    yield Violation(budget, actual, "warn", path, reason=f"max {maximum.text}")

    def _over(self, budget: Budget, layer: Layer | None, actual: Number, lower_bound: bool) -> Violation:
        """Over a max: waived, inherited, or a failure."""
        path = None if layer is None else layer.path
        over = Violation(budget, actual, layer=path, reason="a lower bound" if lower_bound else "")
        waiver = self._rule(budget, "waive")
        if waiver is None:
            return self._inherited(over, layer)
        self.waived.add(waiver.key)
        if not self._holds(waiver):
            over = Violation(budget, actual, layer=path, reason=f"its waiver ended on {waiver.until}: {waiver.reason}")
            return self._inherited(over, layer)
        if actual > waiver.limit:
            return Violation(waiver, actual, layer=path, reason=f"more than is waived until {waiver.until}")
        if lower_bound:
            return Violation(budget, None, layer=path, reason=why_unknown(budget.metric, self.summary))
        return Violation(budget, actual, "warn", path, f"waived {waiver_text(waiver)}")

    def _holds(self, waiver: Budget) -> bool:
        return waiver.until is not None and self.day <= waiver.until

    def _inherited(self, violation: Violation, layer: Layer | None) -> Violation:
        """The same as a warning, where the base breaks the limit too and this model is no worse."""
        budget = violation.budget
        rule = self._rule(budget, "inherited") or self.rules.get((None, ALL_METRICS, "inherited"))
        base_number, _ = self._before(budget, layer) if rule else (None, "")
        actual = violation.actual
        if base_number is None or actual is None or self.base is None:
            return violation
        sign = 1 if budget.bound == "max" else -1
        if sign * base_number <= sign * budget.limit:
            return violation  # the base kept the limit: nothing is inherited
        base_text = f"{self.base.name} has {show(budget.kind, base_number)}"
        if sign * actual > sign * base_number:
            return replace(violation, reason=f"worse than inherited: {base_text}")
        return replace(violation, severity="warn", reason=f"inherited: {base_text}")

    def _before(self, budget: Budget, layer: Layer | None) -> tuple[Number | None, str]:
        """The base's number, or None with why it has none."""
        if self.base is None:
            return None, ""
        base_summary = self.base.summary
        if base_summary is None:
            return None, self.base.reason
        if budget.metric == "flops" and base_summary.flops.rules != self.summary.flops.rules:
            rules = f"{base_summary.flops.rules}, here by rules {self.summary.flops.rules}"
            return None, f"FLOPs were counted by rules {rules} ({self.base.name})"
        run = _run_measured(budget.metric, self.summary)
        if run is not None and (reason := _why_other_run(base_summary, self.summary, run, budget.metric)):
            return None, f"{reason} ({self.base.name})"
        if layer is not None and isinstance(base_summary, Totals):
            return None, f"of layers: the base has only totals (snapshot: totals) ({self.base.name})"
        if layer is not None and layer.path not in self.old_layers:
            return None, f"{layer.path} is not in the base ({self.base.name})"
        if layer is None or isinstance(base_summary, Totals):
            number = number_of(base_summary, budget.metric, run)
        else:
            number = layer_value(base_summary, self.old_layers[layer.path], budget.metric)
        return number, "" if number is not None else f"{budget.metric} is not known there ({self.base.name})"

    def _growth(
        self, budget: Budget, layer: Layer | None, actual: Number | None, lower_bound: bool
    ) -> Iterator[Violation | Finding]:
        if self.base is None:
            return
        path = None if layer is None else layer.path
        if actual is None:  # whatever the base has: no update would ever make this limit hold
            yield Violation(budget, None, layer=path, reason=why_unknown(budget.metric, self.summary))
            return
        base_number, reason = self._before(budget, layer)
        if base_number is None:
            yield Finding("growth not enforced", self.summary.model, reason)
            return
        if lower_bound and actual <= budget.allowed(base_number):
            yield Violation(budget, None, layer=path, reason=why_unknown(budget.metric, self.summary))
            return
        if actual <= budget.allowed(base_number):
            return
        if budget.metric == "flops" and self.base.summary is not None and self.base.summary.flops.is_lower_bound:
            reason = f"flops are known only as at least {units.count(int(base_number))} there ({self.base.name})"
            yield Finding("growth not enforced", self.summary.model, reason)
            return
        over = Violation(
            budget, actual, "fail", path, "a lower bound" if lower_bound else "", base_number, self.base.name
        )
        waiver = self._rule(budget, "waive")
        if waiver is None or lower_bound or not self._holds(waiver) or actual > waiver.limit:
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


def _run_measured(metric: str, summary: Summary) -> Kind | None:
    """The run that a metric is of; None for one of the model itself, and where no run is planned."""
    if metric in WORK_METRICS:
        run = run_of(summary)
        return None if run is None else run.kind
    return PLAN_METRICS.get(metric)


def _why_other_run(old: Summary | Totals, new: Summary, run: Kind, metric: str) -> str:
    """Why a metric of a run cannot be compared; empty when both summaries are of the same run, on the same device."""
    old_plan, new_plan = old.plan(run), new.plan(run)
    if old_plan is None or new_plan is None:
        return ""
    if old_plan.recipe != new_plan.recipe:
        return f"{run} there was {old_plan.recipe}, here {new_plan.recipe}"
    if metric != "min_step_seconds":
        return ""
    devices = [next((bound.device for bound in plan.time_bounds), "no device") for plan in (old_plan, new_plan)]
    return "" if devices[0] == devices[1] else f"the least time there was on {devices[0]}, here on {devices[1]}"
