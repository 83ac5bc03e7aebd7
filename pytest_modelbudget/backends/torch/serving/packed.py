"""Layers whose weights are packed (bitsandbytes, torchao, AWQ, GPTQ), which are not cut over ranks."""

from __future__ import annotations

import torch
from torch import nn

from pytest_modelbudget.errors import ModelBudgetError

_CURE = "which is not cut over ranks: plan the model with tp: 1, or build what one rank has of it"


def refuse_packed_weights(model: nn.Module, name: str) -> None:
    """Refuse parameters of a class of their own: a part of one would be planned as if it were plain numbers.

    Raises:
        ModelBudgetError: a layer of `model` has one.
    """
    for path, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None and type(parameter) not in (nn.Parameter, torch.Tensor):
                kind = type(parameter).__name__
                raise ModelBudgetError(f"{name}: serving.tp: {path} has a weight of {kind}, {_CURE}")


def refuse_other_layers(parent: nn.Module, path: str, name: str) -> None:
    """Refuse layers that take the place of an `nn.Linear` among the children of `parent`, which is at `path`.

    Raises:
        ModelBudgetError: a projection of `parent` is of another class.
    """
    for child_name, layer in parent.named_children():
        if "proj" in child_name and type(layer) is not nn.Linear:
            kind = type(layer).__name__
            raise ModelBudgetError(f"{name}: serving.tp: {path}.{child_name} is {kind} and no nn.Linear, {_CURE}")
