"""Plans of runs of a JAX model: its traced step, with what is known of it by module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from pytest_modelbudget.backends.jax.abstract_model import ROOT, AbstractModel, Value
from pytest_modelbudget.backends.jax.activations import measure_activations
from pytest_modelbudget.backends.jax.arguments import CallArguments
from pytest_modelbudget.backends.jax.memory.plans import plan_of_step
from pytest_modelbudget.backends.jax.memory.recipe import RecipeModel, arguments_as_run, as_run, refuse_unplanned
from pytest_modelbudget.backends.jax.memory.step import Step, array_bytes, step_of
from pytest_modelbudget.planner import Recipe, Training
from pytest_modelbudget.summary import Part, Plan, Role

BY_ARGUMENT = "the step calls the model with its inputs as they are written (train, deterministic)"


def plan_run(model: AbstractModel, arguments: CallArguments, recipe: Recipe, devices: Sequence[str]) -> Plan:
    """The plan of one run of `model`.

    Raises:
        ModelBudgetError: the recipe does not fit the model; whatever the model's own code raises comes through.
    """
    refuse_unplanned(recipe)
    run_model, run_arguments = as_run(model, recipe), arguments_as_run(arguments, recipe)
    step = step_of(run_model, run_arguments, recipe)
    made, held = _made_parts(run_model, run_arguments, recipe), _held_parts(run_model, step)
    notes = (BY_ARGUMENT,) if isinstance(recipe, Training) and model.trains_by_argument else ()
    return plan_of_step(step, recipe, held=list(held), made=list(made), devices=devices, notes=notes)


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
