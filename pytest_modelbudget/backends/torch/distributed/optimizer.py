"""The step of an optimizer on the parts of parameters that this rank holds.

DTensor asks for every operator on a list how each of its tensors is sharded, which takes two thirds of the time of a
step of a large model. Optimizers that work element by element do the same on the parts themselves, as long as each
gradient is sharded as its parameter is; where one is not, the optimizer runs on the whole, and what torch redistributes
is on the memory trace.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.model.dtensors import is_sharded, local_part
from pytest_modelbudget.backends.torch.trace.hints import needs_values
from pytest_modelbudget.backends.torch.training.optimizers import optimizer_of
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Training
from pytest_modelbudget.planner.recipe import BITSANDBYTES_OPTIMIZERS

_ELEMENTWISE = frozenset(
    ("adamw", "adam", "sgd", "adagrad", "rmsprop", *BITSANDBYTES_OPTIMIZERS, "adamw-4bit", "lion", "adopt", "sophia")
)
UNSHARDED = frozenset({"adam-mini", "galore", "apollo", "apollo-mini", "lomo"})
"""Optimizers that look at whole matrices, whose published code has no plan for parts of them."""


def optimizer_on_shards(recipe: Training, params: list[nn.Parameter], model: nn.Module) -> Any:
    """The optimizer of `recipe` for `params` of `model`, some of which are sharded; see `optimizers.optimizer_of`.

    Raises:
        ModelBudgetError: the optimizer's published code does not run on parts of matrices. So does a step that torch
            does not run on sharded parameters.
    """
    if recipe.optimizer in UNSHARDED and (any(map(is_sharded, params)) or _is_flat(model)):
        raise ModelBudgetError(f"training.optimizer: {recipe.optimizer} with sharded parameters is not planned")
    if recipe.optimizer == "none" or not any(map(is_sharded, params)):
        return optimizer_of(recipe, params, model)
    return _ShardedOptimizer(recipe, params, model)


def _is_flat(model: nn.Module) -> bool:
    """Whether its parameters are parts of flat ones, as FSDP1 makes them."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    return isinstance(model, FullyShardedDataParallel)


class _ShardedOptimizer:
    """Works on the whole, or on parts; which of them shows in its first step, when gradients are there."""

    def __init__(self, recipe: Training, params: list[nn.Parameter], model: nn.Module) -> None:
        self._recipe, self._params, self._model = recipe, params, model
        self._parts: list[nn.Parameter] = []
        self._optimizer: Any = None if recipe.optimizer in _ELEMENTWISE else optimizer_of(recipe, params, model)

    @property
    def state(self) -> Any:
        """What it keeps for each parameter."""
        return self._optimizer.state

    @property
    def parts(self) -> list[Any]:
        """What does the work."""
        return [self._optimizer]

    def step(self) -> None:
        """One step."""
        if self._optimizer is None:
            if all(map(_is_gradient_sharded_alike, self._params)):
                self._parts = [_local_parameter(parameter) for parameter in self._params]
            self._optimizer = optimizer_of(self._recipe, self._parts or self._params, self._model)
        if not self._parts:
            self._step_on_whole()
            return
        for part, parameter in zip(self._parts, self._params, strict=True):
            part.grad = None if parameter.grad is None else local_part(parameter.grad)
        self._optimizer.step()
        for part in self._parts:
            part.grad = None

    def _step_on_whole(self) -> None:
        try:
            self._optimizer.step()
        except RuntimeError as error:  # DTensor does not know what the optimizer asks of it
            if needs_values(error):
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ModelBudgetError(
                f"training.optimizer: {self._recipe.optimizer} does not run on sharded parameters: write another, as "
                f"adamw, or shard by zero1 or fsdp1, whose optimizers get plain tensors (torch {torch.__version__}: "
                f"{reason})"
            ) from None


def _is_gradient_sharded_alike(parameter: nn.Parameter) -> bool:
    gradient = parameter.grad
    if gradient is None or not is_sharded(parameter):
        return True
    return is_sharded(gradient) and gradient.placements == parameter.placements


def _local_parameter(parameter: nn.Parameter) -> nn.Parameter:
    part = nn.Parameter(local_part(parameter).detach(), parameter.requires_grad)
    part.device_mesh = getattr(parameter, "device_mesh", None)  # those over the same ranks are updated together
    return part
