"""Layers of a user's own that are bitsandbytes' `Linear8bitLt`, run as `lora: {base: int8}` runs those of a recipe.

Their own code looks for columns of outliers, which depend on values, and takes a device without memory for a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.backends.torch.training.quantized_base import QuantizedWeight, product_with
from pytest_modelbudget.errors import ModelBudgetError


@contextmanager
def int8_layers_run(model: nn.Module, *, cuda: bool, training: bool) -> Iterator[None]:
    """Inside, the layers of `model` that store int8 run by its kernels, on a GPU or (not `cuda`) on a CPU.

    Raises:
        ModelBudgetError: weights that are not packed yet, or that are trained in half precision and packed in each
            pass; a pass on a CPU that is no `training`, which multiplies copies in float32.
    """
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if any(kind.__name__ == "Linear8bitLt" and _is_of_bitsandbytes(kind) for kind in type(module).__mro__):
                if not cuda and not training:
                    raise ModelBudgetError(
                        f"{name}: inference of a Linear8bitLt with kernels: cpu is not planned: write kernels: cuda"
                    )
                stack.enter_context(patched(module, "forward", product_with(module, _stored(name, module), cuda)))
        yield


def _is_of_bitsandbytes(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "bitsandbytes"


def _stored(name: str, module: Any) -> QuantizedWeight:
    """Its weight, and the scale of each row: beside the weight, or where the layer has put it in its first pass."""
    if module.state.has_fp16_weights:
        raise ModelBudgetError(
            f"{name}: Linear8bitLt(has_fp16_weights=True) packs its weight in each pass, which is not planned: build "
            "it with has_fp16_weights=False, or plan nn.Linear"
        )
    scales = next((scales for scales in (module.weight.SCB, module.state.SCB) if scales is not None), None)
    if module.weight.dtype is not torch.int8 or scales is None:
        raise ModelBudgetError(
            f"{name}: the weight of a Linear8bitLt is packed when it is moved to a device, and this one was not: end "
            'the builder with model.to("cpu")'
        )
    codes = module.weight.data
    return QuantizedWeight(codes, scales, (), tuple(codes.shape), torch.float16)
