"""PyTorch: models are built and run on the meta device, so that neither weights nor activations take memory.

The rooms, from below; each one's head says what its modules do, and none imports one above it:

- `compat`: what older versions of torch lack.
- `model`: the modules, weights and attributes of a model, and copies of it without memory, or with.
- `kernels`: attention, layouts and recurrent layers as the CPU or a GPU runs them.
- `costs`: the FLOPs of an operator.
- `meta`: where each operator of a pass runs, and what is known of its result without asking torch.
- `replay`: blocks that repeat are not run again.
- `trace`: one forward pass, watched.
- `memory`: what a pass saves, holds and allocates.
- `compiled`: a model as torch.compile runs it, as an estimate.
- `training`, `distributed`: whole steps by a recipe, on one device and as rank 0 of many.
- `serving`: what an engine takes that serves a model.

`counting` makes a summary of all that (with `rows`, and with `structure` where there are no inputs), `planning` makes
plans.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from pytest_modelbudget.backends.patching import gc_paused
from pytest_modelbudget.backends.torch import counting, structure
from pytest_modelbudget.backends.torch.model import keras_layers
from pytest_modelbudget.backends.torch.model.build import abstract
from pytest_modelbudget.backends.torch.model.global_state import global_state_restored
from pytest_modelbudget.backends.torch.model.modules import all_modules
from pytest_modelbudget.backends.torch.model.programs import are_models, is_program, module_of
from pytest_modelbudget.backends.torch.model.real_copy import ModelOrigin, Rebuild, with_memory
from pytest_modelbudget.backends.torch.model.trial import refusal
from pytest_modelbudget.entry import RunMode
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import Inputs
from pytest_modelbudget.planner import Recipe, Serving
from pytest_modelbudget.summary import Plan, Summary

FRAMEWORK = counting.FRAMEWORK

__all__ = [
    "FRAMEWORK", "abstract", "global_state_restored", "is_class", "owns", "plan", "refusal", "serve", "summarize",
    "with_memory",
]  # fmt: skip


def owns(model: object) -> bool:
    """Whether `model` is a `torch.nn.Module`, a program that `torch.export` made of one, or a dict of modules."""
    return isinstance(model, nn.Module) or is_program(model) or are_models(model)


def is_class(model: object) -> bool:
    """Whether `model` is `torch.nn.Module` itself, or a class derived from it."""
    return isinstance(model, type) and issubclass(model, nn.Module)


def summarize(
    model: object,
    *,
    name: str,
    inputs: Inputs | None,
    sizes: Mapping[str, int],
    built_here: bool,
    rebuild: Rebuild | None = None,
    run: RunMode | None = None,
) -> Summary:
    """Count a `torch.nn.Module` at `inputs`: one forward pass on the meta device and a few at other sizes.

    Without inputs nothing is run: params and bytes are counted, shapes and FLOPs are unknown; see `structure`, and
    `Memory` for `rebuild` and `run`.

    Raises:
        ModelBudgetError: inputs do not fit, or a lazy layer never saw an input.
    """
    model = module_of(model)
    if not isinstance(model, nn.Module):
        raise ModelBudgetError(f"{name}: {type(model).__name__} is not a torch.nn.Module")
    if inputs is None:
        if run == "real":
            raise ModelBudgetError(f"{name}: `run: real` needs inputs: write e.g. {structure.EXAMPLE}")
        return structure.summarize(model, name=name, framework=FRAMEWORK)
    with _guarded(built_here), gc_paused(), keras_layers.at_hand(all_modules(model)):
        origin = ModelOrigin(built_here, rebuild, run)
        return counting.summarize(model, name=name, inputs=inputs, sizes=sizes, origin=origin)


def _guarded(built_here: bool) -> AbstractContextManager[None]:
    """Who built the model has entered `global_state_restored` before, and counts in it."""
    return nullcontext() if built_here else global_state_restored()


def plan(
    model: object,
    *,
    name: str,
    inputs: Inputs | None,
    sizes: Mapping[str, int],
    recipes: tuple[Recipe, ...],
    built_here: bool,
    devices: tuple[str, ...] = (),
    rebuild: Rebuild | None = None,
    run: RunMode | None = None,
    **recording: Any,
) -> tuple[Plan, ...]:
    """Plan runs of a `torch.nn.Module` that was summarized: whole steps on the meta device.

    What a model decides by values is as in a pass on values, where it may have one: see `Memory` for `rebuild` and
    `run`. `recording` is how `training.step.record_step` is to run another loop than the common one.

    Raises:
        ModelBudgetError: inputs are missing.
    """
    from pytest_modelbudget.backends.torch import planning  # most runs plan nothing

    if inputs is None:
        raise ModelBudgetError(f"{name}: a torch model does not know its inputs: write e.g. {structure.EXAMPLE}")
    model = module_of(model)
    with _guarded(built_here), gc_paused(), keras_layers.at_hand(all_modules(model)):
        return planning.make_plans(
            model,
            name=name,
            inputs=inputs,
            sizes=sizes,
            recipes=recipes,
            built_here=built_here,
            devices=devices,
            recording=recording,
            rebuild=rebuild,
            run=run,
        )


def serve(
    model: object,
    *,
    name: str,
    inputs: Inputs | None,
    sizes: Mapping[str, int],
    recipe: Serving,
    built_here: bool,
    devices: tuple[str, ...] = (),
) -> Plan:
    """Plan an engine that serves a `torch.nn.Module`; see `serving.planning`.

    Raises:
        ModelBudgetError: inputs are missing, or the model does not run so.
    """
    from pytest_modelbudget.backends.torch import planning  # most runs plan nothing

    if inputs is None:
        raise ModelBudgetError(f"{name}: a torch model does not know its inputs: write e.g. {structure.EXAMPLE}")
    model = module_of(model)
    with _guarded(built_here), gc_paused(), keras_layers.at_hand(all_modules(model)):
        return planning.make_serving_plan(
            model, name=name, inputs=inputs, sizes=sizes, recipe=recipe, built_here=built_here, devices=devices
        )
