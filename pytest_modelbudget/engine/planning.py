"""What is planned of a model after it was counted: its recipes, whether they fit, and what would help."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from pytest_modelbudget.budget import Budget
from pytest_modelbudget.engine.counted import CountedModel, kind_of, with_habits
from pytest_modelbudget.engine.growth_laws import growth_laws
from pytest_modelbudget.engine.tracebacks import reason_line
from pytest_modelbudget.inputs import BATCH
from pytest_modelbudget.planner import AnyRecipe, Recipe, Serving
from pytest_modelbudget.planner.advice import MAX_SIZE, largest_fitting_size, levers, unit_of, with_size
from pytest_modelbudget.planner.devices import has_bfloat16
from pytest_modelbudget.planner.fitting import with_fits
from pytest_modelbudget.planner.known_states import KnownStates
from pytest_modelbudget.planner.recipe import describe
from pytest_modelbudget.planner.ways import cheapest_way
from pytest_modelbudget.summary import Fit, LargestSize, Plan, Summary, Way
from pytest_modelbudget.summary.metrics import PEAK_METRICS


def with_plans(subject: CountedModel, summary: Summary) -> Summary:
    """`summary` with the plans that its entry asks for and the growth that its limits ask for.

    What cannot be planned is a plan without a peak, with the reason; nothing but KeyboardInterrupt escapes.
    """
    plans = plans_of(subject)  # first: what its recipes do not say is told of these alone
    return replace(summary, plans=plans, growth=tuple(growth_laws(subject, summary, subject.entry.parsed_budgets)))


def plans_only(subject: CountedModel) -> Summary:
    """A summary without rows that has what is planned, with all advice; nothing is counted that no plan needs."""
    plans = plans_of(subject, advice=True)
    laws = tuple(growth_laws(subject, None, subject.entry.parsed_budgets))
    return Summary(subject.entry.id, subject.owner.FRAMEWORK, (), plans=plans, growth=laws)


def plans_of(subject: CountedModel, *, advice: bool = False) -> tuple[Plan, ...]:
    """The plans that its entry asks for, with what would help where a limit of memory is broken.

    With `advice` that is told in any case, and the largest sizes that fit the devices are looked for too.
    """
    return tuple(_plan_with_advice(subject, recipe, advice=advice) for recipe in subject.entry.recipes)


def _plan_with_advice(subject: CountedModel, recipe: AnyRecipe, *, advice: bool) -> Plan:
    limits, devices = subject.entry.parsed_budgets, subject.devices
    plan = with_fits(_plan_or_reason(subject, recipe), devices)
    if isinstance(recipe, Serving) or plan.peak_bytes is None or not (advice or _breaks_memory_limit(plan, limits)):
        return plan
    sizes = subject.sizes_of(recipe)
    known = KnownStates()
    known.note(recipe, plan)
    measure, bfloat16 = partial(_measured, subject, known=known), _has_bfloat16(plan)
    helpful = plan.levers or levers(recipe, plan, measure, sizes.get(BATCH), bfloat16=bfloat16)
    ways = tuple(_ways(subject, plan, recipe, sizes.get(BATCH), limits, advice, known))
    plan = replace(plan, levers=helpful, ways=ways)
    return _with_largest_sizes(plan, subject, recipe, sizes) if advice else plan


def _measured(subject: CountedModel, recipe: Recipe, *, known: KnownStates | None = None) -> Plan:
    """The plan of a changed recipe, with whether it fits the devices; it looks at no other habits of a loop."""
    plan = with_fits(_plan_or_reason(subject, with_habits(recipe)), subject.devices)
    if known is not None:
        known.note(recipe, plan)
    return plan


def _measured_fit(subject: CountedModel, recipe: Recipe, device: str, known: KnownStates) -> Fit | None:
    """Whether a changed recipe fits a device; None where that is not known."""
    plan = _measured(subject, recipe, known=known)
    return None if plan.peak_bytes is None else next(fit for fit in plan.fits if fit.device == device)


def _ways(
    subject: CountedModel,
    plan: Plan,
    recipe: Recipe,
    batch: int | None,
    limits: Iterable[Budget],
    advice: bool,
    known: KnownStates,
) -> Iterator[Way]:
    """The cheapest way to fit each device that the run does not fit; with advice, where it is tight, too."""
    strict = {device for limit in limits if limit.strict for device in limit.devices}
    for fit in plan.fits:
        if fit.verdict == "does not fit" or (fit.verdict == "tight" and (advice or fit.device in strict)):
            fit_of = partial(_measured_fit, subject, device=fit.device, known=known)
            bfloat16 = has_bfloat16(fit.device)
            yield cheapest_way(recipe, fit.device, fit_of, batch, known=known, capacity=fit.capacity, bfloat16=bfloat16)


def _has_bfloat16(plan: Plan) -> bool:
    """Whether one of the devices of a plan multiplies in bfloat16; taken to be so where none is named."""
    return not plan.fits or any(has_bfloat16(fit.device) for fit in plan.fits)


def _breaks_memory_limit(plan: Plan, limits: Sequence[Budget]) -> bool:
    """Whether the plan is over a limit of memory."""
    metric = next(name for name, kind in PEAK_METRICS.items() if kind == plan.kind)
    maxima = [budget.limit for budget in limits if (budget.metric, budget.bound) == (metric, "max") and budget.limit]
    strict = {device for limit in limits if limit.strict for device in limit.devices}
    assert plan.peak_bytes is not None
    return any(fit.fits is False or (fit.verdict == "tight" and fit.device in strict) for fit in plan.fits) or any(
        plan.peak_bytes > limit for limit in maxima
    )


def _with_largest_sizes(plan: Plan, subject: CountedModel, recipe: Recipe, sizes: Mapping[str, int]) -> Plan:
    """The plan with the largest size of each dimension on each device, and a note where that cannot be told."""
    largest: list[LargestSize] = []
    unknown: list[str] = []
    for device in subject.devices:
        for dim, size in sizes.items():
            answer = _largest_size(subject, recipe, dim, size, device)
            if isinstance(answer, LargestSize):
                largest.append(answer)
            else:
                unknown.append(f"largest {dim} on {device}: {answer}")
    return replace(plan, largest=tuple(largest), notes=(*plan.notes, *unknown))


def _largest_size(subject: CountedModel, recipe: Recipe, dim: str, size: int, device: str) -> LargestSize | str:
    """The largest size of a dimension on a device, or why it cannot be told."""
    unit = unit_of(recipe, dim)
    failures: list[str] = []

    def room(count: int) -> int | None:
        plan = _measured(subject, with_size(recipe, dim, count * unit))
        if plan.peak_bytes is None:
            failures.append(f"{dim}={count * unit} is {plan.notes[0] if plan.notes else 'not planned'}")
        return next(fit.room for fit in plan.fits if fit.device == device)

    count = largest_fitting_size(room, max(1, size // unit))
    if count is not None:
        return LargestSize(dim, count * unit, device)
    return f"not known, {failures[0]}" if failures else f"more than {MAX_SIZE * unit:,}"


def _plan_or_reason(subject: CountedModel, recipe: AnyRecipe) -> Plan:
    try:
        plan = subject.plan(recipe)
        return replace(plan, recipe=plan.recipe or describe(recipe))
    except (Exception, SystemExit) as error:
        return Plan(kind_of(recipe), describe(recipe), None, notes=(f"not planned: {reason_line(error)}",))
