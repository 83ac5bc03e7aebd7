"""Plans of a model's runs: a copy on the meta device is run by each recipe, and its memory trace becomes a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.compiled.estimate import check_compiled
from pytest_modelbudget.backends.torch.distributed.pipeline import record_pipeline
from pytest_modelbudget.backends.torch.distributed.rank import CASTS_NOTE, ShardedStep, casts_unsaid, record_sharded
from pytest_modelbudget.backends.torch.kernels.rnn import CUDNN, CUDNN_NOTE
from pytest_modelbudget.backends.torch.meta.answers import Answers
from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy
from pytest_modelbudget.backends.torch.model.meta_tensors import MetaTensors, model_to_meta
from pytest_modelbudget.backends.torch.model.modules import unwrap
from pytest_modelbudget.backends.torch.model.real_copy import ModelOrigin, Rebuild, with_values
from pytest_modelbudget.backends.torch.serving.planning import serving_plan
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel, build_keras_layers
from pytest_modelbudget.backends.torch.trace.hints import is_for_want_of_values
from pytest_modelbudget.backends.torch.training.decisions import decisions_of
from pytest_modelbudget.backends.torch.training.float8 import FP8_NOTE
from pytest_modelbudget.backends.torch.training.models_step import ModelsStep, has_forward, models_in
from pytest_modelbudget.backends.torch.training.step import record_step, run_sizes
from pytest_modelbudget.entry import RunMode
from pytest_modelbudget.errors import ModelBudgetError, TooLarge
from pytest_modelbudget.inputs import Inputs
from pytest_modelbudget.planner import MemoryTrace, Recipe, Serving, Training
from pytest_modelbudget.planner.assumptions import loop_notes
from pytest_modelbudget.planner.memory import memory_plan
from pytest_modelbudget.planner.models import models_notes
from pytest_modelbudget.planner.recipe import describe
from pytest_modelbudget.planner.timeline import plan_of
from pytest_modelbudget.summary import Kind, Plan


def make_plans(
    model: Any,
    *,
    name: str,
    inputs: Inputs,
    sizes: Mapping[str, int],
    recipes: Sequence[Recipe],
    built_here: bool,
    devices: Sequence[str] = (),
    recording: Mapping[str, Any] = MappingProxyType({}),
    rebuild: Rebuild | None = None,
    run: RunMode | None = None,
) -> tuple[Plan, ...]:
    """See `pytest_modelbudget.backends.Backend.plan`; `recording` are options of `record_step`.

    Raises:
        ModelBudgetError: a recipe that cannot be run.
    """
    runnable = subject_of(unwrap(model), name, inputs, built_here=built_here)
    build_keras_layers(runnable, sizes)
    origin = ModelOrigin(built_here, rebuild, run)
    return tuple(
        _plan_on_values(runnable, unwrap(model), sizes, recipe, devices, recording, origin) for recipe in recipes
    )


VALUES_NOTE = (
    "a copy was run on the CPU, because the model needs values that the meta device does not have; "
    "the plan is of what it decided there"
)


def _plan_on_values(
    runnable: RunnableModel,
    model: nn.Module,
    sizes: Mapping[str, int],
    recipe: Recipe,
    devices: Sequence[str],
    recording: Mapping[str, Any],
    origin: ModelOrigin,
) -> Plan:
    """The plan of a run; of a model that decides by values, with the decisions of a real pass of `model`."""
    try:
        return _plan(runnable, sizes, recipe, devices, recording)
    except ModelBudgetError as error:
        refused = error
    if recording or not is_for_want_of_values(refused.__cause__) or not _may_run(origin, recipe):
        raise refused
    limited, training = origin.run != "real", isinstance(recipe, Training)
    try:
        copy = RunnableModel(
            runnable.name, with_values(model, runnable.name, origin), runnable.inputs, real=True, seed=0
        )
        answers = decisions_of(copy, run_sizes(sizes, recipe), training=training, limited=limited)
    except TooLarge as limit:
        raise ModelBudgetError(f"{refused}, {limit}") from refused
    plan = _plan(runnable, sizes, recipe, devices, {}, answers)
    return replace(plan, notes=(*plan.notes, VALUES_NOTE))


def make_serving_plan(
    model: Any,
    *,
    name: str,
    inputs: Inputs,
    sizes: Mapping[str, int],
    recipe: Serving,
    built_here: bool,
    devices: Sequence[str] = (),
) -> Plan:
    """See `pytest_modelbudget.backends.Server.serve`.

    Raises:
        ModelBudgetError: the model cannot be served so.
    """
    if inputs.example is not None:
        raise ModelBudgetError(
            f'{name}: serving: an example has one size: write inputs with dimensions, such as "int64[B, T]"'
        )
    return serving_plan(subject_of(unwrap(model), name, inputs, built_here=built_here), sizes, recipe, devices)


def subject_of(model: nn.Module, name: str, inputs: Inputs, *, built_here: bool) -> RunnableModel:
    """`model` without memory, ready to be run; a user's own is copied."""
    if built_here:
        model_to_meta(model, MetaTensors())
    return RunnableModel(name, model if built_here else meta_copy(model), inputs)


def _may_run(origin: ModelOrigin, recipe: Recipe) -> bool:
    """Whether one real pass of the model may be made, and decides as all passes of the recipe do."""
    if origin.run == "abstract" or recipe.steps != "none" or (origin.built_here and origin.rebuild is None):
        return False
    return not _over_ranks(recipe) if isinstance(recipe, Training) else not recipe.kv_cache


def _over_ranks(recipe: Training) -> bool:
    """Whether the plan is one of many ranks'."""
    return recipe.sharding is not None or bool(recipe.pipeline)


def _plan(
    runnable: RunnableModel,
    sizes: Mapping[str, int],
    recipe: Recipe,
    devices: Sequence[str],
    recording: Mapping[str, Any],
    answers: Answers | None = None,
) -> Plan:
    options = {**recording, "answers": answers}
    plan, memory_trace = _recorded(runnable, sizes, recipe, devices, options)
    if recording or not isinstance(recipe, Training):
        return plan
    notes = loop_notes(  # the step of many ranks takes long to record
        recipe,
        plan,
        memory_trace,
        record=None if _over_ranks(recipe) else lambda other: _recorded(runnable, sizes, other, devices, options)[0],
        plan_trace=lambda other: _plan_of(other, recipe, devices),
    )
    return replace(plan, notes=(*plan.notes, *notes))


def _recorded(
    runnable: RunnableModel,
    sizes: Mapping[str, int],
    recipe: Recipe,
    devices: Sequence[str],
    recording: Mapping[str, Any],
) -> tuple[Plan, MemoryTrace]:
    """The plan of a run, and the memory trace that was recorded of it."""
    sharded: ShardedStep | None = None
    check_compiled(runnable.name, recipe, runnable.model)
    if recipe.steps != "none":
        recording = {"recording": ModelsStep, **recording}
    elif not has_forward(runnable.model):
        raise ModelBudgetError(f"{runnable.name}: several models: name the function of a step, steps: module:callable")
    if isinstance(recipe, Training) and recipe.pipeline:
        sharded = record_pipeline(runnable, sizes, recipe)
    elif isinstance(recipe, Training) and recipe.sharding is not None:
        if recipe.steps != "none":
            raise ModelBudgetError("training.steps with sharding is not planned")
        sharded = record_sharded(runnable, sizes, recipe)
    memory_trace = record_step(runnable, sizes, recipe, **recording) if sharded is None else sharded.memory_trace
    plan = _plan_of(memory_trace, recipe, devices)
    notes = [
        *plan.notes,
        *models_notes(plan, models_in(runnable.model) if recipe.steps != "none" else ()),
        *memory_trace.notes,
        *([CUDNN_NOTE] if any(event.op.startswith(CUDNN) for event in memory_trace.events) else []),
        *([CASTS_NOTE] if casts_unsaid(recipe) else []),
        *([FP8_NOTE] if isinstance(recipe, Training) and recipe.fp8 != "none" else []),
    ]
    if sharded is not None:
        plan = replace(plan, ranks=sharded.ranks, communication_bytes=sum(sharded.communication.values()))
    return replace(plan, notes=tuple(notes)), memory_trace


def _plan_of(memory_trace: MemoryTrace, recipe: Recipe, devices: Sequence[str]) -> Plan:
    kind: Kind = "training" if isinstance(recipe, Training) else "inference"
    if recipe.kernels != "cuda":
        return plan_of(memory_trace, kind, describe(recipe))
    return memory_plan(memory_trace, kind, describe(recipe), torch=torch.__version__, devices=devices)
