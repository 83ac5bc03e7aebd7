"""What the backward pass of a training begins with: the model's own loss, or one that the recipe or the loop makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

from pytest_modelbudget.backends.torch.model.pytree import tensors
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Training
from pytest_modelbudget.planner.loops import loop_of
from pytest_modelbudget.planner.references import imported


def loss_function(recipe: Training) -> Callable[[Any], Any]:
    """What the backward pass begins with, from what the model returned."""
    if recipe.loss == "cross_entropy":
        return CrossEntropy()
    if recipe.loss == "auto":
        return _OwnLoss(CrossEntropy(float32=True) if loop_of(recipe).float32_loss else lambda out: out)
    return (lambda out: out) if recipe.loss == "none" else imported(recipe.loss, "loss")


def scores_of(out: Any) -> torch.Tensor:
    """The first output of floats with dimensions.

    Raises:
        ModelBudgetError: there is none.
    """
    for tensor in tensors(out):
        if tensor.is_floating_point() and tensor.dim() > 1:
            return tensor
    raise ModelBudgetError("training.loss: the model returned no scores that a cross entropy could be made of")


def own_loss(out: Any) -> torch.Tensor | None:
    """The model's `loss`, one number, also in a list of one, or the only number beside other tensors."""
    if isinstance(out, torch.Tensor):
        return out if out.dim() == 0 else None
    loss = out.get("loss") if isinstance(out, Mapping) else getattr(out, "loss", None)
    if isinstance(loss, torch.Tensor) and loss.numel() == 1:
        return loss
    numbers = [tensor for tensor in tensors(out) if tensor.dim() == 0 and tensor.requires_grad]
    return numbers[0] if len(numbers) == 1 and isinstance(out, (tuple, list)) else None


class _OwnLoss:
    """The loss that the model returned, or else what `otherwise` makes of its result."""

    def __init__(self, otherwise: Callable[[Any], Any]) -> None:
        self.otherwise = otherwise

    def __call__(self, out: Any) -> Any:
        loss = own_loss(out)
        return self.otherwise(out) if loss is None else loss

    @property
    def targets(self) -> torch.Tensor | None:
        """See `CrossEntropy`."""
        return getattr(self.otherwise, "targets", None)


def cross_entropy_of(loss: Any) -> CrossEntropy | None:
    """The cross entropy that a `loss_function` compares targets by, None without one."""
    loss = loss.otherwise if isinstance(loss, _OwnLoss) else loss
    return loss if isinstance(loss, CrossEntropy) else None


class CrossEntropy:
    """Cross entropy against targets that are on the device like the inputs, made when the first output is there.

    Classes are in dimension 1 of `[B, C]` and of four or more dimensions (segmentation), in the last of `[B, T, C]`.
    """

    def __init__(self, *, float32: bool = False) -> None:
        self.targets: torch.Tensor | None = None
        self.dtype = torch.float32 if float32 else None

    def __call__(self, out: Any) -> torch.Tensor:
        scores = scores_of(out)
        if scores.dim() == 3:
            scores = scores.reshape(-1, scores.shape[-1])
        if self.targets is None:
            self.targets = torch.empty((scores.shape[0], *scores.shape[2:]), dtype=torch.int64, device="meta")
        loss: torch.Tensor = functional.cross_entropy(scores.to(self.dtype or scores.dtype), self.targets)
        return loss
