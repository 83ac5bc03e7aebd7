"""Plans of a model's runs: a copy on the meta device is run by each recipe, and its memory trace becomes a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.distributed.rank import ShardedStep, record_sharded
from pytest_modelbudget.backends.torch.kernels.rnn import CUDNN, CUDNN_NOTE
from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy
from pytest_modelbudget.backends.torch.model.meta_tensors import MetaTensors, model_to_meta
from pytest_modelbudget.backends.torch.model.modules import unwrap
from pytest_modelbudget.backends.torch.serving.planning import serving_plan
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel, build_keras_layers
from pytest_modelbudget.backends.torch.training.step import record_step
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import Inputs
from pytest_modelbudget.planner import Recipe, Serving, Training
from pytest_modelbudget.planner.memory import memory_plan
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
) -> tuple[Plan, ...]:
    """See `pytest_modelbudget.backends.Backend.plan`; `recording` are options of `record_step`.

    Raises:
        ModelBudgetError: a recipe that cannot be run.
    """
    runnable = subject_of(unwrap(model), name, inputs, built_here=built_here)
    build_keras_layers(runnable, sizes)
    return tuple(_plan(runnable, sizes, recipe, devices, recording) for recipe in recipes)


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


def _plan(
    runnable: RunnableModel,
    sizes: Mapping[str, int],
    recipe: Recipe,
    devices: Sequence[str],
    recording: Mapping[str, Any],
) -> Plan:
    kind: Kind = "training" if isinstance(recipe, Training) else "inference"
    sharded: ShardedStep | None = None
    if isinstance(recipe, Training) and recipe.sharding is not None:
        sharded = record_sharded(runnable, sizes, recipe)
    memory_trace = record_step(runnable, sizes, recipe, **recording) if sharded is None else sharded.memory_trace
    if recipe.kernels != "cuda":
        plan = plan_of(memory_trace, kind, describe(recipe))
    else:
        plan = memory_plan(memory_trace, kind, describe(recipe), torch=torch.__version__, devices=devices)
    plan = replace(plan, notes=(*plan.notes, *memory_trace.notes))
    if any(event.op.startswith(CUDNN) for event in memory_trace.events):
        plan = replace(plan, notes=(*plan.notes, CUDNN_NOTE))
    if sharded is None:
        return plan
    return replace(plan, ranks=sharded.ranks, communication_bytes=sum(sharded.communication.values()))
