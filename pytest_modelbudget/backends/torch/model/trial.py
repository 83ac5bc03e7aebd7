"""Whether a model that was built without memory runs on some inputs: one forward pass, nothing counted."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from pytest_modelbudget.backends.torch.model.meta_tensors import META
from pytest_modelbudget.backends.torch.model.unknown_values import wants_more_than_meta
from pytest_modelbudget.inputs import Inputs, concrete_shape
from pytest_modelbudget.summary import TensorSpec


def refusal(model: object, *, inputs: Inputs, sizes: Mapping[str, int]) -> Exception | None:
    """What a model raises for these inputs; None when it runs on them, or would with values.

    Called inside of `abstract`; `model` is the caller's own to run.
    """
    assert isinstance(model, nn.Module)

    def tensor(_: str, spec: TensorSpec) -> torch.Tensor:
        return torch.empty(concrete_shape(spec, sizes), dtype=getattr(torch, spec.dtype), device=META)

    args, kwargs = inputs.build(tensor)
    try:
        with torch.no_grad():
            model.eval()(*args, **kwargs)
    except Exception as error:
        return None if wants_more_than_meta(error) else error
    return None
