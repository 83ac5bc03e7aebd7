"""Which part of a model a recipe compiles: all of it, what DistributedDataParallel wraps, or its repeated blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from pytest_modelbudget.backends.torch.compiled.capture import CompiledModel
from pytest_modelbudget.backends.torch.compiled.forwards import forwards_compiled
from pytest_modelbudget.backends.torch.compiled.regions import Recomputation
from pytest_modelbudget.backends.torch.compiled.run import At
from pytest_modelbudget.backends.torch.kernels.device import DeviceKernels
from pytest_modelbudget.backends.torch.model.modules import nodes
from pytest_modelbudget.backends.torch.training.checkpointing import repeated_blocks
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Recipe
from pytest_modelbudget.planner.recipe import BLOCKS_COMPILED


@contextmanager
def compiled(
    model: nn.Module, recipe: Recipe, at: At, kernels: DeviceKernels, recomputation: Recomputation
) -> Iterator[Callable[..., Any]]:
    """Inside, what is given runs `model` as the recipe's `compile: inductor` has it; `at` enters a kernel's place.

    What is recomputed is noted in `recomputation`.

    Replicas wrap the compiled model, `DistributedDataParallel(torch.compile(model))`: all gradients are there when its
    one node of the backward pass is over, and buckets are reduced then.

    Raises:
        ModelBudgetError: blocks are to be compiled, and there are none.
    """
    if recipe.compile == BLOCKS_COMPILED:
        with forwards_compiled(_blocks(model), at, kernels, recomputation):
            yield model
    elif isinstance(model, nn.parallel.DistributedDataParallel):
        with forwards_compiled({"": model.module}, at, kernels, recomputation):
            yield model
    else:
        yield CompiledModel(model, at, kernels, recomputation)


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The repeated blocks by their paths."""
    paths = {id(node.module): node.path for node in nodes(model)}
    blocks = {paths[id(block)]: block for block in repeated_blocks(model)}
    if not blocks:
        raise ModelBudgetError(
            "compile: {inductor: blocks}: the model has no repeated blocks (lists of two or more modules of one "
            "class): write compile: inductor"
        )
    return blocks
