"""What would help: levers ranked by what they save, and the largest batch or sequence that still fits.

Every answer is a plan of its own, measured like the first one; nothing is scaled up from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice

from pytest_modelbudget.planner.changes import changes_of, smaller_passes
from pytest_modelbudget.planner.pipeline import pipeline_of
from pytest_modelbudget.planner.recipe import Recipe, Training
from pytest_modelbudget.summary import Lever, Plan

Measure = Callable[[Recipe], Plan]

LEAST_SAVING = 0.01
"""Share of the peak that a lever has to save to be told of."""

MAX_SIZE = 1 << 24
"""Sizes above this are not looked for."""


def with_size(recipe: Recipe, dim: str, size: int) -> Recipe:
    """`recipe` with a dimension at another size; `B` is the batch."""
    return replace(recipe, batch=size) if dim == "B" else replace(recipe, dims={**recipe.dims, dim: size})


def unit_of(recipe: Recipe, dim: str) -> int:
    """What sizes of a dimension are multiples of: a pipeline's batch is made of microbatches of one size."""
    if dim != "B" or not isinstance(recipe, Training) or not recipe.pipeline:
        return 1
    return pipeline_of(recipe.pipeline).microbatches


def alternatives(
    recipe: Recipe, batch: int | None = None, plan: Plan | None = None, *, bfloat16: bool = True
) -> Iterator[tuple[str, Recipe, str]]:
    """Single changes of a recipe that save memory: an order, the changed recipe, and what it costs.

    `batch` is the size of B in the run, None where there is none; without `bfloat16` the devices only emulate it. Of a
    recorded run, with its `plan`, those are left out that cannot lower the peak by a hundredth.
    """
    least = 0 if plan is None or plan.reserved_bytes is None else LEAST_SAVING * (plan.peak_bytes or 0)
    for change in (*changes_of(recipe, bfloat16=bfloat16), *islice(smaller_passes(recipe, batch), 1)):
        if plan is not None and change.most_saved(plan) < least:
            continue
        yield change.name, change.applied(recipe), change.note


def levers(
    recipe: Recipe, plan: Plan, measure: Measure, batch: int | None = None, *, bfloat16: bool = True
) -> tuple[Lever, ...]:
    """The alternatives that lower the peak of `plan` by at least a hundredth, the one that saves most first.

    An alternative that the model cannot run is left out; see `alternatives`.
    """
    if plan.peak_bytes is None:
        return ()
    helpful = []
    for name, changed, note in alternatives(recipe, batch, plan, bfloat16=bfloat16):
        peak = measure(changed).peak_bytes
        if peak is not None and plan.peak_bytes - peak >= LEAST_SAVING * plan.peak_bytes:
            helpful.append(Lever(name, peak, note))
    return tuple(sorted(helpful, key=lambda lever: lever.peak_bytes))


def largest_fitting_size(free_at: Callable[[int], int | None], start: int) -> int | None:
    """The largest size that fits; 0 when not even 1 does. `free_at` gives the bytes left at a size (negative: missing).

    Memory grows with the size, so what fits at one size fits below it. Where it grows in proportion, a line through two
    sizes leads to the answer; where that did not help, the steps away from it are doubled, up to half of what is left
    to look at. None when an answer is not known, or when sizes up to 16 million fit.
    """
    low, high, size, step = 0, MAX_SIZE + 1, start, 0
    free_by_size: dict[int, int] = {}
    while high - low > 1:
        if (free_bytes := free_at(size)) is None:
            return None
        free_by_size[size] = free_bytes
        span = high - low
        low, high = (size, high) if free_bytes >= 0 else (low, size)
        step = 0 if high > MAX_SIZE or 2 * (high - low) <= span else max(1, 2 * step)
        size = _next_size(free_by_size, low, high, step if free_bytes >= 0 else -step)
    return None if high > MAX_SIZE else low


def _next_size(free_by_size: Mapping[int, int], low: int, high: int, step: int) -> int:
    """The size to look at: `step` beyond where memory ends on a line, between `low`, which fits, and `high`."""
    if low and high in free_by_size:
        smaller, larger = low, high
    elif len(free_by_size) > 1:
        smaller, larger = sorted(free_by_size)[-2:] if low else sorted(free_by_size)[:2]
    else:
        return min(2 * low, MAX_SIZE) if low else high // 2
    bytes_per_unit = (free_by_size[smaller] - free_by_size[larger]) / (larger - smaller)
    estimate = smaller + int(free_by_size[smaller] // bytes_per_unit) if bytes_per_unit > 0 else 16 * larger
    midpoint = (low + high) // 2 if high in free_by_size else min(16 * low, MAX_SIZE)
    guess = (
        min(estimate + step, max(estimate, midpoint)) if step >= 0 else max(estimate + step, min(estimate, midpoint))
    )
    return max(low + 1, min(guess, high - 1, midpoint if high not in free_by_size else high))
