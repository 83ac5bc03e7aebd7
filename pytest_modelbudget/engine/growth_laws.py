"""How the numbers of a model grow with the sizes of its dimensions, as its limits ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from pytest_modelbudget.budget import Budget
from pytest_modelbudget.engine.counted import CountedModel, kind_of, with_habits
from pytest_modelbudget.engine.tracebacks import reason_line
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Serving, growth
from pytest_modelbudget.planner.advice import with_size
from pytest_modelbudget.summary import Growth, Plan, Summary
from pytest_modelbudget.summary.metrics import METRICS, PEAK_METRICS
from pytest_modelbudget.summary.work import WORK_METRICS, work_number

_MOST_SIZES = 6
"""Sizes at which a dimension is looked at, at most."""


def growth_laws(subject: CountedModel, summary: Summary | None, limits: tuple[Budget, ...]) -> Iterator[Growth]:
    """How the metrics of the limits on growth grow; what cannot be told is a law with the reason alone."""
    requested = dict.fromkeys((budget.dim, budget.metric) for budget in limits if budget.dim)
    for dim, metric in requested:
        try:
            yield _growth_law(subject, dim, metric, small=summary is not None and summary.real_run)
        except (Exception, SystemExit) as error:
            yield Growth(dim, metric, subject.sizes.get(dim, 1), reason=reason_line(error))


def _growth_law(subject: CountedModel, dim: str, metric: str, *, small: bool) -> Growth:
    """The law of one number, looked at in larger sizes, and where these do not go, in smaller ones.

    With `small` only in smaller ones, since every look at the model takes its memory.
    """
    if dim not in subject.sizes:
        raise ModelBudgetError(f"the inputs have no dimension {dim}; they have {', '.join(subject.sizes) or 'none'}")
    declared, number = _metric_at_size(subject, dim, metric)
    smaller_sizes = growth.sizes(declared, downwards=True, count=_MOST_SIZES)[::-1]
    if small:
        return _fit_law(dim, metric, declared, number, smaller_sizes)
    try:
        return _fit_law(dim, metric, declared, number, growth.sizes(declared, count=_MOST_SIZES))
    except (Exception, SystemExit) as error:
        with suppress(Exception, SystemExit):
            return _fit_law(dim, metric, declared, number, smaller_sizes)
        raise error


def _fit_law(dim: str, metric: str, declared: int, number: Callable[[int], int], sizes: tuple[int, ...]) -> Growth:
    """The law through the numbers at the first three of `sizes`, and at more while that is not enough to tell."""
    if len(sizes) < 3:
        raise ModelBudgetError(f"{dim}={declared} is too small to be halved twice")
    points = [(size, number(size)) for size in sizes[:3]]
    law = growth.law(dim, metric, declared, points)
    for size in sizes[3:]:
        if growth.is_settled(law):
            break
        try:
            points.append((size, number(size)))
        except (Exception, SystemExit):  # as far as it goes
            break
        law = growth.law(dim, metric, declared, points)
    return law


def _metric_at_size(subject: CountedModel, dim: str, metric: str) -> tuple[int, Callable[[int], int]]:
    """The declared size of a dimension, and what gives the metric at a size of it."""
    if metric in PEAK_METRICS:
        recipe = next(
            (
                candidate
                for candidate in subject.entry.recipes
                if not isinstance(candidate, Serving) and kind_of(candidate) == PEAK_METRICS[metric]
            ),
            None,
        )
        if recipe is None:
            raise ModelBudgetError(
                f"no {PEAK_METRICS[metric]} is planned: write {PEAK_METRICS[metric]}: {{}} for this model"
            )
        declared = subject.sizes_of(recipe)[dim]
        return declared, lambda size: _known_peak(subject.plan(with_habits(with_size(recipe, dim, size))))

    if metric in WORK_METRICS:
        return _work_at_size(subject, dim, metric)

    def count(size: int) -> int:
        summary = subject.summary({**subject.sizes, dim: size})
        value = METRICS[metric].get(summary)
        if value is None or (metric == "flops" and summary.flops.is_lower_bound):
            raise ModelBudgetError(f"{metric} is not known at {dim}={size}")
        return int(value)

    return subject.sizes[dim], count


def _work_at_size(subject: CountedModel, dim: str, metric: str) -> tuple[int, Callable[[int], int]]:
    """As `_metric_at_size`, of the work of the training, else of the inference."""
    recorded = [recipe for recipe in subject.entry.recipes if not isinstance(recipe, Serving)]
    recipe = next(iter(sorted(recorded, key=lambda recipe: kind_of(recipe) != "training")), None)
    if recipe is None:
        raise ModelBudgetError(f"{metric} is of a planned run: write training: {{}} or inference: {{}} for this model")

    def count(size: int) -> int:
        if (number := work_number(metric, subject.plan(with_habits(with_size(recipe, dim, size))))) is None:
            raise ModelBudgetError(f"{metric} is not known at {dim}={size}")
        return int(number)

    return subject.sizes_of(recipe)[dim], count


def _known_peak(plan: Plan) -> int:
    if plan.peak_bytes is None:
        raise ModelBudgetError(plan.notes[0] if plan.notes else "the peak is not known")
    return plan.peak_bytes
