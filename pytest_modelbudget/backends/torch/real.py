"""A copy with memory, for models that cannot be run without: packed weights, decisions by the values of activations."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pytest_modelbudget.errors import ModelBudgetError

REAL_LIMIT = 2**30
"""Bytes of weights up to which a model is copied and run for real, when it cannot be run on meta."""


def fits(model: nn.Module) -> bool:
    """Whether `model` is small enough to be run for real."""
    weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return bool(sum(tensor.numel() * tensor.element_size() for tensor in weights.values()) <= REAL_LIMIT)


def copy_of(model: nn.Module, name: str) -> nn.Module:
    """A copy of a user's model on the CPU, with its weights.

    Raises:
        ModelBudgetError: the model is larger than 1 GiB, or holds something that cannot be copied.
    """
    if not fits(model):
        raise ModelBudgetError(f"{name}: the model has to be run on the CPU, and its weights are larger than 1 GiB")
    try:
        same = copy.deepcopy(model)
        return same if all(tensor.device.type == "cpu" for tensor in same.parameters()) else same.cpu()
    except Exception as mistake:
        raise ModelBudgetError(
            f"{name}: the model has to be run on a copy, and cannot be copied: {mistake}"
        ) from mistake


def filled(model: nn.Module) -> nn.Module:
    """A copy of a model on meta, with memory: all its weights are zeros, its float buffers ones, as variances."""
    memo: dict[int, object] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_meta:
            trained = isinstance(tensor, nn.Parameter)
            make = torch.zeros if trained or not tensor.is_floating_point() else torch.ones
            filling = make(tensor.shape, dtype=tensor.dtype, device="cpu")
            memo[id(tensor)] = nn.Parameter(filling, tensor.requires_grad) if trained else filling
    return copy.deepcopy(model, memo)


def fill_again(model: nn.Module, seed: int) -> None:
    """Other weights for a copy, as new layers have them: scales 1, biases 0, the rest random.

    Random ones keep the size of what goes through; with small ones a decision deep in the model would be as with zeros.
    """
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.ndim < 2:
                parameter.fill_(0 if "bias" in name else 1)
            else:
                bound = (6 / max(1, parameter[0].numel())) ** 0.5
                parameter.uniform_(-bound, bound, generator=dice)
        for buffer in model.buffers():  # a variance among them must not be negative
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.0, generator=dice)
