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
    return sum(tensor.numel() * tensor.element_size() for tensor in weights.values()) <= REAL_LIMIT


def copy_of(model: nn.Module, name: str) -> nn.Module:
    """A copy of a user's model on the CPU, with its weights.

    Raises:
        ModelBudgetError: the model is larger than 1 GiB, or holds something that cannot be copied.
    """
    if not fits(model):
        raise ModelBudgetError(f"{name}: the model has to be run on the CPU, and its weights are larger than 1 GiB")
    try:
        return copy.deepcopy(model).cpu()
    except Exception as mistake:
        raise ModelBudgetError(f"{name}: the model has to be run on a copy, and cannot be copied: {mistake}") from mistake


def filled(model: nn.Module, *, seed: int | None) -> nn.Module:
    """A copy of a model on meta, its weights zeros, or small random numbers when there is a `seed`."""
    dice = torch.Generator().manual_seed(seed) if seed is not None else None
    memo: dict[int, object] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.is_meta:
            continue
        real = torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")
        trained = isinstance(tensor, nn.Parameter)
        if dice is not None and real.is_floating_point():  # a variance among the buffers must not be negative
            real.uniform_(-0.05 if trained else 0.5, 0.05 if trained else 1.0, generator=dice)
        memo[id(tensor)] = nn.Parameter(real, tensor.requires_grad) if trained else real
    return copy.deepcopy(model, memo)
