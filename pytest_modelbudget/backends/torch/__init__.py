"""PyTorch: models are built and run on the meta device, so that neither weights nor activations take memory.

The rooms: `build` makes models without memory (`factories` of tensors, what is `unknown` then, and the `appearance` of
tensors to a model's own code), `copying` a ghost of a user's model (`sharded` makes it whole), `real`
one with memory, and `state` puts back what either sets (its `settings`; patches are made by `backends.patching`).
`values` makes the arguments of a call; `forward` runs one pass under `trace` (`calls`, edges, `joins` between them)
with `placing` (which operands keep values), `memo` (repeated operators, some by their own rules of `shapes`),
`sparse` (operators on sparse tensors) and `flops` (what each costs, by `products`, `stored_products`,
`complex_convolutions` and the `aten_names` of what is free); when it fails, `hints` say what to do. `readings` notes
which values that nobody gave were read: `steering` runs such a model again with other ones, and `perturb` a real run
with other choices. `activations` runs one more in training mode, with `attention` as real devices run it and `saved`
for what autograd keeps, and `tape` records a pass as events. Blocks that `repeats` finds alike (by their `prints`) do
not run again: `retelling` and `keeping` note once more what they did. `holding` undoes what a pass stores in a model;
`modules` and `weights` read the structure, weights that are `stored` or `packed` otherwise, `programs` that torch
made of modules and `keras_layers` included; `rows` and `counting` put the summary together, and without inputs
`structure` does.

`step` records whole steps by a recipe, with the `kernels` of a device: `recurrent` layers (`stepwise` on the CPU) and
the `workspaces` that kernels take inside themselves; `alterations` and `optimizers` are what a recipe asks for.

`sharding` records a step of training as rank 0 of many, in a `world` that is all in this process: `tensor_parallel`
cuts layers, `shard_optimizer` trains the parts, `wire` counts what is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from torch import nn

from pytest_modelbudget.backends.patching import gc_paused
from pytest_modelbudget.backends.torch import counting, keras_layers, structure
from pytest_modelbudget.backends.torch.build import abstract
from pytest_modelbudget.backends.torch.modules import all_modules
from pytest_modelbudget.backends.torch.programs import is_program, module_of
from pytest_modelbudget.backends.torch.real import with_memory
from pytest_modelbudget.backends.torch.state import preserved
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import Inputs
from pytest_modelbudget.planner import Recipe
from pytest_modelbudget.summary import Plan, Summary

FRAMEWORK = counting.FRAMEWORK

__all__ = ["FRAMEWORK", "abstract", "is_class", "owns", "plan", "preserved", "summarize", "with_memory"]


def owns(model: object) -> bool:
    """Whether `model` is a `torch.nn.Module`, or a program that `torch.export` made of one."""
    return isinstance(model, nn.Module) or is_program(model)


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
    rebuild: counting.Rebuild | None = None,
    run: counting.Mode | None = None,
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
        origin = counting.Origin(built_here, rebuild, run)
        return counting.summarize(model, name=name, inputs=inputs, sizes=sizes, origin=origin)


def _guarded(built_here: bool) -> AbstractContextManager[None]:
    """Who built the model has entered `preserved` before, and counts in it."""
    return nullcontext() if built_here else preserved()


def plan(
    model: object,
    *,
    name: str,
    inputs: Inputs | None,
    sizes: Mapping[str, int],
    recipes: tuple[Recipe, ...],
    built_here: bool,
    devices: tuple[str, ...] = (),
) -> tuple[Plan, ...]:
    """Plan runs of a `torch.nn.Module` that was summarized: whole steps on the meta device.

    Raises:
        ModelBudgetError: inputs are missing.
    """
    from pytest_modelbudget.backends.torch import planning  # most runs plan nothing

    if inputs is None:
        raise ModelBudgetError(f"{name}: a torch model does not know its inputs: write e.g. {structure.EXAMPLE}")
    model = module_of(model)
    with _guarded(built_here), gc_paused(), keras_layers.at_hand(all_modules(model)):
        return planning.plans(
            model,
            name=name,
            inputs=inputs,
            sizes=sizes,
            recipes=recipes,
            built_here=built_here,
            devices=devices,
        )
