"""The plan of a traced step: bounds of its peak, and the peak where it was compiled, with the parts that are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from pytest_modelbudget import units
from pytest_modelbudget.backends.jax.memory.arrays import bytes_without_reuse
from pytest_modelbudget.backends.jax.memory.compiled import CompiledMemory, compiled_memory
from pytest_modelbudget.backends.jax.memory.step import Step
from pytest_modelbudget.planner import Recipe, Training
from pytest_modelbudget.planner.fitting import fits_of_bound
from pytest_modelbudget.planner.recipe import describe
from pytest_modelbudget.summary import Part, Plan, Role

NO_PEAK = (
    "XLA decides for each device what is alive at once: between what is held all the time and all arrays of the step "
    "with memory of their own; compile: xla gives the peak on a CPU"
)
NOT_OF_GPUS = "a peak on a CPU says nothing of a GPU: whether it fits one is not known"
LEAST_NEED = "what a device needs is here the least that it takes: what is held all the time"
AT_LEAST = (
    "at least: what XLA assigns, without what kernels take inside themselves (measured on a CPU: up to 7 % of a step)"
)
CONVOLUTIONS = (
    "the peak is not known: XLA assigns {size}, and convolutions take more inside themselves, which it does not tell "
    "(measured on a CPU: up to a third of a step, up to nearly all of a pass)"
)
FUSIONS = (
    "the peak is not known: XLA assigns {size}, and up to {hidden} are made inside kernels of a library, which it does "
    "not tell"
)
LEAST_HIDDEN = 0.01
"""Share of XLA's sum from which on it matters what is made inside kernels."""


def plan_of_step(
    step: Step,
    recipe: Recipe,
    *,
    held: list[Part],
    made: list[Part],
    devices: Sequence[str],
    notes: Sequence[str] = (),
) -> Plan:
    """The plan of `step`: `held` are parts that are there from its start to its end, `made` are made in it for sure.

    `notes` are what else has to be said of it. Whatever the model's own code raises while it is traced comes through.
    """
    low, high = step.held_bytes + max(0, step.returned_bytes), bytes_without_reuse(step.traced.jaxpr)
    fits = fits_of_bound(low, devices)
    too_large = any(fit.needs is not None for fit in fits)
    bounds = Plan(
        kind="training" if isinstance(recipe, Training) else "inference",
        recipe=describe(recipe),
        peak_bytes=None,
        low_bytes=low,
        high_bytes=max(low, high),
        parts=tuple(part for part in [*held, *made] if part.bytes),
        fits=fits,
        notes=(NO_PEAK, *notes, *((LEAST_NEED,) if too_large else ())),
    )
    return _compiled(bounds, compiled_memory(step), held, made) if recipe.compile == "xla" else bounds


def _compiled(bounds: Plan, memory: CompiledMemory, held: list[Part], made: list[Part]) -> Plan:
    """The plan with the compiler's sum: as the peak, or as its lower bound where kernels take more inside.

    In a peak that is known, what is not held all the time has no names any more.
    """
    assert bounds.high_bytes is not None
    total, hidden = memory.total, memory.hidden_bytes
    reason = _why_unknown(memory)
    sizes = ", ".join(f"{role}s {units.size(size)}" for role, size in _by_role(made))
    notes = (
        reason,
        NOT_OF_GPUS if bounds.fits else "",
        f"{memory.compiler}: arguments + outputs - aliases + temporaries",
        AT_LEAST if bounds.kind == "training" and not reason else "",
        f"among the temporaries, before the compiler: {sizes}" if sizes and not reason else "",
        *bounds.notes[1:],
    )
    is_pass = bounds.kind == "inference"  # a step takes more inside other kernels, too
    high = total + hidden if is_pass and reason and hidden is not None else bounds.high_bytes
    bounds = replace(bounds, low_bytes=total, high_bytes=max(total, high), notes=tuple(filter(None, notes)))
    if reason:
        return bounds
    beside = Part("temporary", "", total - sum(part.bytes for part in held))
    return replace(bounds, peak_bytes=total, parts=tuple(part for part in [*held, beside] if part.bytes))


def _why_unknown(memory: CompiledMemory) -> str:
    """Why the compiler's sum is not the peak; empty where it is, but for what kernels always take."""
    size, hidden = units.size(memory.total), memory.hidden_bytes
    if hidden is None:
        return CONVOLUTIONS.format(size=size)
    if hidden > LEAST_HIDDEN * memory.total:
        return FUSIONS.format(size=size, hidden=units.size(hidden))
    return ""


def _by_role(parts: Iterable[Part]) -> Iterator[tuple[Role, int]]:
    sizes: Counter[Role] = Counter()
    for part in parts:
        sizes[part.role] += part.bytes
    yield from sizes.items()
