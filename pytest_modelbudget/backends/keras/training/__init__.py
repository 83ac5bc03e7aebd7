"""Steps of Keras models: what a recipe means for Keras, and the step on each of its backends that can be recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras

from pytest_modelbudget.backends import NotRecorded
from pytest_modelbudget.backends.keras.ports import CallArguments
from pytest_modelbudget.backends.keras.training.recipe import (
    compiled_optimizer,
    notes_of,
    refuse_half_on_cpu,
    refuse_own_step,
    refuse_unplanned,
    uses_xla,
)
from pytest_modelbudget.inputs import Inputs, PlainValue
from pytest_modelbudget.planner import Recipe
from pytest_modelbudget.planner.recipe import describe
from pytest_modelbudget.summary import Plan, Summary, TensorSpec


def plans(
    model: Any,
    arguments: CallArguments,
    *,
    name: str,
    sizes: Mapping[str, int],
    recipes: Sequence[Recipe],
    built_here: bool,
    devices: Sequence[str],
    summarize: Callable[[], Summary],
) -> tuple[Plan, ...]:
    """The plans of a built model by its backend's own step; see `pytest_modelbudget.backends.Planner.plan`.

    `summarize` counts the model as it is when it is called.

    Raises:
        ModelBudgetError: a recipe that has no meaning for Keras models, or a step that does not run.
        NotRecorded: the backend's steps are not recorded.
    """
    backend = keras.backend.backend()
    if backend not in ("torch", "tensorflow", "jax"):
        raise NotRecorded
    for recipe in recipes:
        refuse_unplanned(recipe)
        refuse_own_step(model, recipe)
        arguments.refuse_other_batch(recipe)
        if backend == "torch":
            refuse_half_on_cpu(model, recipe)
    planned = []
    for recipe in recipes:
        compiled = compiled_optimizer(model, recipe)
        if backend == "torch":
            from pytest_modelbudget.backends.keras.training import torch_step

            [plan] = torch_step.plans(
                model,
                name=name,
                inputs=_inputs(arguments),
                sizes=sizes,
                recipes=[recipe],
                built_here=built_here,
                devices=devices,
                compiled=compiled,
            )
        elif backend == "jax":
            from pytest_modelbudget.backends.keras.training import jax_step

            plan = jax_step.plan_step(
                model,
                arguments,
                name=name,
                sizes=sizes,
                recipe=recipe,
                compiled=compiled,
                summarize=summarize,
                devices=devices,
            )
        else:
            from pytest_modelbudget.backends.keras.training.tf_step import plan_step

            xla = uses_xla(model, recipe)
            plan = plan_step(model, arguments, name=name, sizes=sizes, recipe=recipe, compiled=compiled, xla=xla)
        words = describe(recipe, own_optimizer=compiled is not None)
        planned.append(replace(plan, recipe=words, notes=(*plan.notes, *notes_of(model, recipe))))
    return tuple(planned)


def _inputs(arguments: CallArguments) -> Inputs:
    """The arguments of a call as they are declared for any framework."""
    args, kwargs = arguments.build(lambda name, spec: spec)
    return Inputs(tuple(map(_tree, args)), {name: _tree(value) for name, value in kwargs.items()})


def _tree(value: Any) -> Any:
    if isinstance(value, TensorSpec):
        return value
    if isinstance(value, dict):
        return {key: _tree(item) for key, item in value.items()}
    return type(value)(map(_tree, value)) if isinstance(value, (list, tuple)) else PlainValue(value)
