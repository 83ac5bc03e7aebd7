"""Linear layers that multiply in 8 bits: torchao's own, which take the place of the model's for one run.

They keep their input and weight as these are, and cast both (and the gradient) anew for each product, forward and
backward. Uncompiled, each cast is an absolute copy for its scale, then float32 copies on the way to 8 bits; compiled
they are fused, so that their temporaries are less.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.training.linear_layers import LinearLayer, heads, linear_layers
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Training
from pytest_modelbudget.planner.fp8 import Fp8

FP8_NOTE = "fp8: torchao's layers as they run uncompiled; with torch.compile their casts are fused and take less"
"""What is said of a plan with such layers."""

_MULTIPLE = 16
"""What rows and columns of a matrix are a multiple of, so that a GPU multiplies it in 8 bits (`torch._scaled_mm`)."""

_WEIGHT_GRADIENTS_AS_BEFORE = "rowwise_with_gw_hp"
"""The recipe that has no products in 8 bits that sum over rows."""


def check_fp8(recipe: Training, *, sharded: bool) -> None:
    """Refuse what does not go together with `fp8`.

    Raises:
        ModelBudgetError: with the keys.
    """
    fp8 = Fp8.of(recipe.fp8)
    if fp8 and recipe.lora:
        raise ModelBudgetError("training.fp8: is not planned with lora, whose layers multiply as before: leave one out")
    if fp8 and fp8.all_gather and not sharded:
        raise ModelBudgetError("training.fp8: all_gather is for sharding: {fsdp: 8}, which gathers weights")


@contextmanager
def multiplied_in_fp8(model: nn.Module, fp8: Fp8, *, cuda: bool) -> Iterator[None]:
    """Inside, linear layers of `model` are torchao's, with the same parameters; hooks of theirs are not run.

    Without `cuda` their products are emulated in float32, as torchao's `emulate` does it.

    Left as they are: what `skip` names (by default the head), what is no `nn.Linear` (GPT-2's `Conv1D`), and matrices
    whose sides are no multiples of 16, which a GPU does not multiply so.

    Raises:
        ModelBudgetError: no torchao, a glob of `skip` that matches no layer, or no layer that is left; inside, from a
            layer whose rows a GPU does not multiply so.
    """
    layers = _converted(model, fp8.skip)
    convert = _converter(fp8, emulate=not cuda)
    with ExitStack() as stack:
        for layer in layers:
            parent, _, name = layer.name.rpartition(".")
            owner = model.get_submodule(parent)
            stack.callback(setattr, owner, name, layer.module)
            converted = convert(layer.module)
            if cuda and fp8.recipe != _WEIGHT_GRADIENTS_AS_BEFORE:
                converted.register_forward_pre_hook(partial(_check_rows, layer.name))
            setattr(owner, name, converted)
        yield


def _check_rows(layer: str, module: nn.Linear, args: tuple[torch.Tensor, ...]) -> None:
    """Refuse what torch refuses of a product without naming the layer: the weight's gradient sums over the rows."""
    rows = args[0].numel() // module.in_features
    if rows % _MULTIPLE and torch.is_grad_enabled() and (args[0].requires_grad or module.weight.requires_grad):
        raise ModelBudgetError(
            f"training.fp8: {layer} gets {rows:,} rows, and a GPU takes multiples of {_MULTIPLE} for a gradient of "
            f"weights in 8 bits: change batch or dims, write recipe: {_WEIGHT_GRADIENTS_AS_BEFORE}, or name it in skip"
        )


def _converter(fp8: Fp8, *, emulate: bool) -> Any:
    try:
        with _quiet_import():
            from torchao.float8 import Float8LinearConfig
            from torchao.float8.float8_linear import Float8Linear
    except ImportError as error:
        raise ModelBudgetError("training.fp8: torchao's own layers are run: pip install torchao") from error
    config = Float8LinearConfig.from_recipe_name(fp8.recipe)
    config = replace(config, enable_fsdp_float8_all_gather=fp8.all_gather, emulate=emulate)
    return lambda module: Float8Linear.from_float(module, config=config)


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Inside, torch does not log that an enum of torchao is registered in a deprecated way; all else it does."""
    log = logging.getLogger("torch.utils._pytree")
    log.addFilter(_is_news)
    try:
        yield
    finally:
        log.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return "is an Enum subclass and is now natively supported" not in str(record.msg)


def _converted(model: nn.Module, skip: Sequence[str] | None) -> list[LinearLayer]:
    layers = [layer for layer in linear_layers(model) if type(layer.module) is nn.Linear and layer.name]
    for glob in skip or ():
        if not any(fnmatchcase(layer.name, glob) for layer in layers):
            raise ModelBudgetError(f"training.fp8: skip: no linear layer's name matches {glob!r}")
    kept = {id(head.module) for head in heads(model, layers)} if skip is None else set()
    converted = [
        layer
        for layer in layers
        if id(layer.module) not in kept
        and not any(fnmatchcase(layer.name, glob) for glob in skip or ())
        and layer.in_features % _MULTIPLE == layer.out_features % _MULTIPLE == 0
    ]
    if not converted:
        raise ModelBudgetError(
            "training.fp8: the model has no linear layer to be converted: one inside another module, whose sides are "
            "multiples of 16; the head alone is converted with skip: []"
        )
    return converted
