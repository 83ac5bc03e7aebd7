"""Pairs of low rank beside linear layers, computed in the order and the dtypes of peft, so that memory is the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.backends.torch.kernels.device import autocast_dtype
from pytest_modelbudget.backends.torch.training.linear_layers import LinearLayer, heads, linear_layers, quantizable
from pytest_modelbudget.backends.torch.training.quantized_base import QuantizedWeight, base_quantized
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner.lora import ALL_LINEAR, Lora

SCALE = 2.0
"""What a pair's result is multiplied with; which number it is changes no memory."""


@contextmanager
def lora_added(model: nn.Module, lora: Lora, compute: torch.dtype | None, cuda: bool) -> Iterator[None]:
    """Inside, `model` has pairs beside the targets of `lora`, and all else is frozen and stored as its `base` says.

    The pairs are float32 whatever the weights are, as peft makes them unless told otherwise. `compute` is the dtype
    of products with quantised weights (None: that of the weights before), `cuda` says whose kernels run.

    Raises:
        ModelBudgetError: a target that no linear layer has, or nothing to quantise.
    """
    layers = linear_layers(model)
    targeted = _targeted(model, layers, lora.targets)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(lora.bias == "all" and "bias" in name)
    with ExitStack() as stack:
        weights: dict[int, QuantizedWeight] = {}
        if lora.base is not None:
            weights = stack.enter_context(base_quantized(quantizable(model, layers), lora.base, compute, cuda))
        for layer in targeted:
            stack.enter_context(_pair_added(layer, lora, weights.get(id(layer.module))))
        yield


def _targeted(model: nn.Module, layers: Sequence[LinearLayer], targets: Sequence[str]) -> list[LinearLayer]:
    if targets == (ALL_LINEAR,):
        output_layers = {id(head.module) for head in heads(model, layers)}
        if targeted := [layer for layer in layers if id(layer.module) not in output_layers]:
            return targeted
        raise ModelBudgetError(
            "training.lora.targets: the model has no Linear layer but its head: name what is adapted"
        )
    targeted = [layer for layer in layers if any(_is_target(layer.name, target) for target in targets)]
    if not targeted:
        raise ModelBudgetError(f"training.lora.targets: no Linear layer is called {' or '.join(map(repr, targets))}")
    return targeted


def _is_target(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}") or fnmatchcase(name, target)


@contextmanager
def _pair_added(layer: LinearLayer, lora: Lora, weight: QuantizedWeight | None) -> Iterator[None]:
    module, device = layer.module, layer.module.weight.device
    module.lora_A = nn.Linear(layer.in_features, lora.rank, bias=False, device=device, dtype=torch.float32)
    module.lora_B = nn.Linear(lora.rank, layer.out_features, bias=False, device=device, dtype=torch.float32)
    if lora.dora:
        module.lora_magnitude = nn.Parameter(torch.empty(layer.out_features, device=device, dtype=torch.float32))
    if lora.bias == "lora_only" and module.bias is not None:
        module.bias.requires_grad_(True)
    try:
        with patched(module, "forward", _with_pair(layer, module.forward, lora, weight)):
            yield
    finally:
        for name in ("lora_A", "lora_B", *(("lora_magnitude",) if lora.dora else ())):
            delattr(module, name)


def _with_pair(
    layer: LinearLayer, original: Callable[..., torch.Tensor], lora: Lora, weight: QuantizedWeight | None
) -> Callable[..., torch.Tensor]:
    """The layer's `original` forward with its pair; over a quantised `weight` casts are left to autocast."""
    module = layer.module
    add = _added_dora if lora.dora else _added_pair

    def forward(input: torch.Tensor) -> torch.Tensor:
        result = original(input)
        if weight is not None and not weight.is_int8:
            result = result.clone()
        dtype, casts = result.dtype, weight is None or autocast_dtype() is None
        if casts:
            input = input.to(module.lora_A.weight.dtype)
        result = add(layer, input, result, lora.dropout, weight, dtype if casts and weight is not None else None)
        return result.to(dtype) if casts else result

    return forward


def _added_pair(
    layer: LinearLayer, input: torch.Tensor, result: torch.Tensor, dropout: float, weight: Any, dtype: Any
) -> torch.Tensor:
    module = layer.module
    low_rank: torch.Tensor = module.lora_B(module.lora_A(_dropped(module, input, dropout))) * SCALE
    if dtype is not None:
        low_rank = low_rank.to(dtype)
    return result + low_rank


def _added_dora(
    layer: LinearLayer, input: torch.Tensor, result: torch.Tensor, dropout: float, weight: Any, dtype: Any
) -> torch.Tensor:
    """With directions and magnitudes apart (Liu et al. 2024): the norm of the whole weight is a constant."""
    module = layer.module
    base_result = None if dropout and module.training else result
    return result + _dora(layer, _dropped(module, input, dropout), base_result, weight)


def _dora(layer: LinearLayer, input: torch.Tensor, base_result: torch.Tensor | None, quantized: Any) -> torch.Tensor:
    module = layer.module
    delta = _product_of_pair(layer).to(input.dtype)
    weight = (module.weight if quantized is None else quantized.dequantized(quantized.compute)).to(input.dtype)
    weight = weight.T if layer.transposed and quantized is None else weight
    scale = (module.lora_magnitude / _norm(weight, delta.detach()).detach()).view(1, -1)
    low_rank = module.lora_B(module.lora_A(input))
    if base_result is None:
        base_result = functional.linear(input, weight)
    elif module.bias is not None:
        base_result = base_result - module.bias
    out: torch.Tensor = (scale - 1) * base_result + scale * low_rank * SCALE
    return out


def _product_of_pair(layer: LinearLayer) -> torch.Tensor:
    """The pair as one matrix (out, in), made as the layers themselves make it."""
    first = layer.module.lora_A
    size = layer.in_features, layer.in_features
    identity = torch.empty(size, device=first.weight.device, dtype=first.weight.dtype)  # torch.eye, which is slow here
    product: torch.Tensor = layer.module.lora_B(first(identity)).T
    return product


def _norm(weight: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    whole = weight + SCALE * delta
    norm: torch.Tensor = torch.linalg.norm(whole, dim=1).to(whole.dtype)
    return norm


def _dropped(module: nn.Module, input: torch.Tensor, dropout: float) -> torch.Tensor:
    return functional.dropout(input, dropout, module.training) if dropout else input
