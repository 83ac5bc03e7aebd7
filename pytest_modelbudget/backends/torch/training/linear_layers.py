"""The linear layers of a model: what adapters are put beside, and what is quantised."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from pytest_modelbudget.backends.torch.model.modules import all_modules


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """A layer with one matrix; `transposed` says that it is stored as (in, out), as GPT-2's `Conv1D` has it."""

    name: str
    module: Any
    in_features: int
    out_features: int
    transposed: bool


def linear_layers(model: nn.Module) -> list[LinearLayer]:
    """Those of `model`, each object once."""
    named = ((name, module, _features(module)) for name, module in model.named_modules())
    return [LinearLayer(name, module, *features) for name, module, features in named if features]


def _features(module: nn.Module) -> tuple[int, int, bool] | None:
    """In and out features, and whether the matrix is (in, out)."""
    if isinstance(module, nn.Linear):
        return int(module.in_features), int(module.out_features), False
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 2 or getattr(module, "nf", None) != weight.shape[1] or module._modules:
        return None
    return int(weight.shape[0]), int(weight.shape[1]), True


def heads(model: nn.Module, layers: Collection[LinearLayer]) -> list[LinearLayer]:
    """The layers that give an output of the model: tied to a table or as large as one, and the last one of all.

    transformers leaves the same ones unquantised: output embeddings, what is tied, and the last module with weights.
    """
    modules = all_modules(model)
    tables = [module.weight for module in modules if isinstance(module, (nn.Embedding, nn.EmbeddingBag))]
    shapes = {tuple(table.shape) for table in tables}
    last = next(
        (module for module in reversed(modules) if any(p is not None for p in module._parameters.values())), None
    )
    return [layer for layer in layers if tuple(layer.module.weight.shape) in shapes or layer.module is last]


def quantizable(model: nn.Module, layers: Collection[LinearLayer]) -> list[LinearLayer]:
    """The layers that bitsandbytes takes the place of, as transformers lets it.

    Not the heads, not subclasses (the projection inside `nn.MultiheadAttention`, whose weight is read without a call),
    and not what the model names in `_keep_in_fp32_modules`: transformers' `should_convert_module`.
    """
    kept = {id(head.module) for head in heads(model, layers)}
    patterns = getattr(model, "_keep_in_fp32_modules", None) or ()
    return [
        layer
        for layer in layers
        if id(layer.module) not in kept
        and (layer.transposed or type(layer.module) is nn.Linear)
        and not any(_is_named(layer.name, pattern) for pattern in patterns)
    ]


def _is_named(name: str, pattern: str) -> bool:
    """Whether a module's name ends with `pattern`, or begins with it up to a dot."""
    return name.endswith(pattern) or re.match(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))", name) is not None
