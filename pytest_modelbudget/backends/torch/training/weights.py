"""The weights of a run: without gradients of the user's, and in the precision of the recipe; as before on leaving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pytest_modelbudget.backends.torch.model import keras_layers
from pytest_modelbudget.backends.torch.model.modules import all_modules
from pytest_modelbudget.errors import ModelBudgetError

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions that weights and inputs are cast to, and their dtypes."""

MIXED = {"bf16-mixed": torch.bfloat16, "fp16-mixed": torch.float16}
"""Precisions of autocast, and its dtypes."""


@contextmanager
def without_gradients(model: nn.Module) -> Iterator[None]:
    """Inside, no parameter has a gradient yet; on leaving they are those from before."""
    saved = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in saved:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in saved:
            parameter.grad = gradient


@contextmanager
def weights_cast(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, weights and buffers of floats are of `dtype`; tied ones stay tied."""
    if dtype is None:
        yield
        return
    if keras_layers.among(all_modules(model)):
        raise ModelBudgetError(
            "precision: Keras layers compute in the precision of their own dtype policy: leave it out, or plan with "
            "bf16-mixed or fp16-mixed, and set the policy where the model is built"
        )
    cast: dict[int, torch.Tensor] = {}

    def half(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        if id(tensor) not in cast:
            converted = tensor.detach().to(dtype)
            replacement = (
                nn.Parameter(converted, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else converted
            )
            cast[id(tensor)] = replacement
        return cast[id(tensor)]

    saved = []
    for module in model.modules():
        for tensors_by_name in (module._parameters, module._buffers):
            saved.append((tensors_by_name, dict(tensors_by_name)))
            for name, tensor in tensors_by_name.items():
                if tensor is not None:
                    tensors_by_name[name] = half(tensor)
    try:
        yield
    finally:
        for tensors_by_name, content in saved:
            tensors_by_name.update(content)
