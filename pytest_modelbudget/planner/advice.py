"""What would help: levers ranked by what they save, and the largest batch or sequence that still fits.

Every answer is a plan of its own, measured like the first one; nothing is scaled up from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from pytest_modelbudget.planner.recipe import Recipe, Training
from pytest_modelbudget.summary import Lever, Plan

Measure = Callable[[Recipe], Plan]

WORTH = 0.01
"""Share of the peak that a lever has to save to be told of."""

MOST = 1 << 24
"""Sizes above this are not looked for."""


def at(recipe: Recipe, dim: str, size: int) -> Recipe:
    """`recipe` with a dimension at another size; `B` is the batch."""
    return replace(recipe, batch=size) if dim == "B" else replace(recipe, dims={**recipe.dims, dim: size})


def alternatives(recipe: Recipe, batch: int | None = None) -> Iterator[tuple[str, Recipe, str]]:
    """Single changes of a recipe that save memory: an order, the changed recipe, and what it costs.

    `batch` is the size of B in the run, None where there is none.
    """
    if recipe.precision in ("fp32", "fp16-mixed", "bf16-mixed"):
        yield "precision: bf16", replace(recipe, precision="bf16"), "weights in half precision may train worse"
    if not isinstance(recipe, Training):
        return
    if recipe.precision == "fp32":
        yield "precision: bf16-mixed", replace(recipe, precision="bf16-mixed"), ""
    if recipe.checkpointing == "none":
        yield "checkpointing: blocks", replace(recipe, checkpointing="blocks"), "about a third more compute"
    if recipe.optimizer in ("adamw", "adam"):
        if not recipe.fused:
            yield "fused: true", replace(recipe, fused=True, foreach=None), ""
        for name, note in (("adamw-8bit", "needs bitsandbytes"), ("adafactor", "trains differently")):
            yield f"optimizer: {name}", replace(recipe, optimizer=name, optimizer_options={}), note
    if recipe.sharding is None:
        yield "sharding: {fsdp: 8}", replace(recipe, sharding={"fsdp": 8}), "eight devices, each with this batch"
    if batch and batch > 1 and batch % 2 == 0:
        halved = replace(recipe, batch=batch // 2, gradient_accumulation=recipe.gradient_accumulation * 2)
        yield f"gradient_accumulation: {halved.gradient_accumulation}, batch: {halved.batch}", halved, ""


def levers(recipe: Recipe, plan: Plan, measure: Measure, batch: int | None = None) -> tuple[Lever, ...]:
    """The alternatives that lower the peak of `plan` by at least a hundredth, the one that saves most first.

    An alternative that the model cannot run is left out.
    """
    if plan.peak_bytes is None:
        return ()
    found = []
    for name, changed, note in alternatives(recipe, batch):
        peak = measure(changed).peak_bytes
        if peak is not None and plan.peak_bytes - peak >= WORTH * plan.peak_bytes:
            found.append(Lever(name, peak, note))
    return tuple(sorted(found, key=lambda lever: lever.peak_bytes))


def largest(room: Callable[[int], int | None], start: int) -> int | None:
    """The largest size that fits; 0 when not even 1 does. `room` gives the bytes left at a size (negative: missing).

    Memory grows with the size, so what fits at one size fits below it. Where it grows in proportion, a line through two
    sizes leads to the answer; where that did not help, the steps away from it are doubled, up to half of what is left
    to look at. None when an answer is not known, or when sizes up to 16 million fit.
    """
    low, high, size, step = 0, MOST + 1, start, 0
    left: dict[int, int] = {}
    while high - low > 1:
        if (found := room(size)) is None:
            return None
        left[size] = found
        before = high - low
        low, high = (size, high) if found >= 0 else (low, size)
        step = 0 if high > MOST or 2 * (high - low) <= before else max(1, 2 * step)
        size = _next(left, low, high, step if found >= 0 else -step)
    return None if high > MOST else low


def _next(left: Mapping[int, int], low: int, high: int, step: int) -> int:
    """The size to look at: `step` beyond where memory ends on a line, between `low`, which fits, and `high`."""
    if low and high in left:
        smaller, larger = low, high
    elif len(left) > 1:
        smaller, larger = sorted(left)[-2:] if low else sorted(left)[:2]
    else:
        return min(2 * low, MOST) if low else high // 2
    each = (left[smaller] - left[larger]) / (larger - smaller)
    line = smaller + int(left[smaller] // each) if each > 0 else 16 * larger
    half = (low + high) // 2 if high in left else min(16 * low, MOST)
    guess = min(line + step, max(line, half)) if step >= 0 else max(line + step, min(line, half))
    return max(low + 1, min(guess, high - 1, half if high not in left else high))
