"""What would help: levers ranked by what they save, and the largest batch or sequence that still fits.

Every answer is a plan of its own, measured like the first one; nothing is scaled up from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


def largest(fits: Callable[[int], bool | None], start: int) -> int | None:
    """The largest size that fits, found by doubling and halving from `start`; 0 when not even 1 does.

    Memory grows with the size, so what fits at one size fits below it. None when an answer is not known, or when
    sizes up to 16 million fit.
    """
    answer = fits(start)
    if answer is None:
        return None
    low, high = (start, None) if answer else (0, start)
    while high is None:
        if low >= MOST:
            return None
        if (answer := fits(low * 2)) is None:
            return None
        low, high = (low * 2, None) if answer else (low, low * 2)
    while high - low > 1:
        middle = (low + high) // 2
        if (answer := fits(middle)) is None:
            return None
        low, high = (middle, high) if answer else (low, middle)
    return low
