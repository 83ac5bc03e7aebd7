"""Plans of runs of a JAX model: what is known of it always, bounds of its peak, and the peak where it was compiled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from pytest_modelbudget import units
from pytest_modelbudget.backends.jax.abstract_model import ROOT, AbstractModel, Value
from pytest_modelbudget.backends.jax.activations import measure_activations
from pytest_modelbudget.backends.jax.arguments import CallArguments
from pytest_modelbudget.backends.jax.memory.arrays import bytes_without_reuse
from pytest_modelbudget.backends.jax.memory.compiled import CompiledMemory, compiled_memory
from pytest_modelbudget.backends.jax.memory.recipe import RecipeModel, arguments_as_run, as_run, refuse_unplanned
from pytest_modelbudget.backends.jax.memory.step import Step, array_bytes, step_of
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
BY_ARGUMENT = "the step calls the model with its inputs as they are written (train, deterministic)"
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


def plan_run(model: AbstractModel, arguments: CallArguments, recipe: Recipe, devices: Sequence[str]) -> Plan:
    """The plan of one run of `model`.

    Raises:
        ModelBudgetError: the recipe does not fit the model; whatever the model's own code raises comes through.
    """
    refuse_unplanned(recipe)
    run_model, run_arguments = as_run(model, recipe), arguments_as_run(arguments, recipe)
    step = step_of(run_model, run_arguments, recipe)
    low, high = step.held_bytes + max(0, step.returned_bytes), bytes_without_reuse(step.traced.jaxpr)
    made = list(_made_parts(run_model, run_arguments, recipe))
    held = list(_held_parts(run_model, step))
    bounds = Plan(
        kind="training" if isinstance(recipe, Training) else "inference",
        recipe=describe(recipe),
        peak_bytes=None,
        low_bytes=low,
        high_bytes=max(low, high),
        parts=tuple(part for part in [*held, *made] if part.bytes),
        fits=fits_of_bound(low, devices),
        notes=(NO_PEAK,),
    )
    if bounds.kind == "training" and model.trains_by_argument:
        bounds = replace(bounds, notes=(*bounds.notes, BY_ARGUMENT))
    if any(fit.needs is not None for fit in bounds.fits):
        bounds = replace(bounds, notes=(*bounds.notes, LEAST_NEED))
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
    high = total + hidden if reason and hidden is not None else bounds.high_bytes
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


def _held_parts(model: RecipeModel, step: Step) -> Iterator[Part]:
    """What is there from the start of the run to its end."""
    yield from _sums("param", (value for value in model.values if value.is_param))
    yield from _sums("buffer", (value for value in model.values if not value.is_param))
    yield Part("optimizer", "", step.optimizer_bytes)
    yield Part("input", "", step.input_bytes)


def _made_parts(model: RecipeModel, arguments: CallArguments, recipe: Recipe) -> Iterator[Part]:
    """What a training step makes for sure, before the compiler: a gradient of each trained array, and what is kept."""
    if not isinstance(recipe, Training):
        return
    yield from _sums("gradient", (value for value in model.values if value.trained))
    for path, size in measure_activations(model, arguments).by_path.items():
        yield Part("activation", "" if path == ROOT else path, size)


def _sums(role: Role, values: Iterable[Value]) -> Iterator[Part]:
    """The bytes of values by module."""
    sizes: Counter[str] = Counter()
    for value in values:
        sizes[value.path] += array_bytes(value.spec)
    for path, size in sizes.items():
        yield Part(role, "" if path == ROOT else path, size)
