"""Optimizers that run in the backward pass: gradients are let go of as soon as they were used, and never all alive."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.training.optimizers import OptimizerGroup, optimizer_of
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Training

Update = Callable[[Callable[[], object], nn.Parameter], None]
"""Runs the step of an optimizer, the one of a parameter whose gradient is there."""


def runs_in_backward(recipe: Training, *, sharded: bool) -> bool:
    """Whether the optimizer of `recipe` runs in the backward pass, of a model that is `sharded` or not.

    Raises:
        ModelBudgetError: it would, and the recipe has more that does not go together with it.
    """
    key = "optimizer: lomo" if recipe.optimizer == "lomo" else "in_backward" if recipe.in_backward else ""
    if key and recipe.optimizer == "none":
        raise ModelBudgetError("training.in_backward: with optimizer: none there is nothing to run: leave it out")
    if key and recipe.gradient_accumulation > 1:
        raise ModelBudgetError(f"training.{key}: each backward pass updates, so gradients are not accumulated")
    if key and sharded:
        raise ModelBudgetError(f"training.{key} with sharding is not planned")
    if key == "optimizer: lomo" and recipe.precision.startswith("fp16"):
        raise ModelBudgetError("training.optimizer: lomo in fp16 scales its loss and clips, which is not planned")
    return bool(key)


def make_in_backward(recipe: Training, params: list[nn.Parameter], model: nn.Module, update: Update) -> Any:
    """What updates `params` of `model` in the backward pass, until its `hooks` are removed.

    Raises:
        ModelBudgetError: the optimizer cannot be had, or does not take the options.
    """
    if recipe.optimizer != "lomo":
        return OptimizersInBackward(params, lambda group: optimizer_of(recipe, group, model), update)
    try:
        return Lomo(params, update, **recipe.optimizer_options)
    except TypeError as error:
        raise ModelBudgetError(f"training.optimizer: lomo cannot be made: {error}") from error


class OptimizersInBackward(OptimizerGroup):
    """One optimizer for each parameter, run by torch's `register_post_accumulate_grad_hook`, as its tutorial shows.

    `make` gives the optimizer of a parameter, `update` runs its step.
    """

    def __init__(self, params: list[nn.Parameter], make: Callable[[list[nn.Parameter]], Any], update: Update) -> None:
        self._optimizers = {parameter: make([parameter]) for parameter in params}
        super().__init__(list(self._optimizers.values()))
        self._update = update
        self.hooks = [parameter.register_post_accumulate_grad_hook(self._run) for parameter in params]

    def step(self) -> None:
        """Nothing is left to do when the backward pass is over."""

    def _run(self, parameter: nn.Parameter) -> None:
        self._update(self._optimizers[parameter].step, parameter)
        parameter.grad = None


class Lomo:
    """LOMO (Lv et al. 2023, arXiv 2306.09782) as in lomo-optim 0.1: no states; a gradient is used when the next comes.

    Weights and gradient are copied in float32 where they are of another dtype, one parameter at a time.
    """

    def __init__(self, params: list[nn.Parameter], update: Update, lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        self.state: dict[Any, Any] = {}
        self._params, self._update = params, update
        self.hooks = [parameter.register_hook(self._run) for parameter in params]

    def _run(self, gradient: torch.Tensor) -> torch.Tensor:
        self.step()
        return gradient

    def step(self) -> None:
        """Use the gradients that are there; the last one is used when the backward pass is over."""
        for parameter in self._params:
            if parameter.grad is not None:
                self._update(partial(_sgd_in_float32, parameter), parameter)


def _sgd_in_float32(parameter: nn.Parameter) -> None:
    gradient = parameter.grad.to(torch.float32)
    parameter.grad = None
    weights = parameter.detach().to(torch.float32)
    weights.add_(gradient)
