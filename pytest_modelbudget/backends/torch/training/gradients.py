"""Where a backward pass begins, and the end of what it leaves."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.model.dtensors import wait_for
from pytest_modelbudget.backends.torch.model.pytree import tensors
from pytest_modelbudget.errors import ModelBudgetError


def drop_gradients(params: list[nn.Parameter]) -> None:
    """Let go of the gradients of `params`."""
    for parameter in params:
        parameter.grad = None


def start_backward(loss: Any) -> None:
    """From a number, or from one gradient for each tensor of floats that the model returned."""
    trained = [wait_for(tensor) for tensor in tensors(loss) if tensor.requires_grad]
    if not trained:
        raise ModelBudgetError("nothing that the model returned depends on a trained parameter: give training.loss")
    torch.autograd.backward(trained, [None if output.dim() == 0 else torch.empty_like(output) for output in trained])
