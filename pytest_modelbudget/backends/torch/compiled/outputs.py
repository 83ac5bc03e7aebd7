"""What a model returns, taken apart: its tensors, which a graph gives back, and what they were in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.compat import tree_flatten, tree_unflatten

Rebuild = Callable[[Sequence[torch.Tensor]], Any]
"""Puts other tensors where those of an output were."""

DEEPEST = 16
"""Deeper is a structure that holds itself."""


def taken_apart(output: Any, depth: int = 0) -> tuple[list[torch.Tensor], Rebuild]:
    """The tensors in `output`, and what puts others in their place.

    They are looked for in what pytrees know and in attributes of other objects, such as a cache of keys and values of
    transformers, as TorchDynamo does; not in modules.
    """
    leaves, spec = tree_flatten(output)
    parts = [_leaf_taken_apart(leaf, depth) for leaf in leaves]
    counts = [len(tensors) for tensors, _ in parts]

    def rebuild(substitutes: Sequence[torch.Tensor]) -> Any:
        remaining = iter(substitutes)
        rebuilt = [put([next(remaining) for _ in range(count)]) for count, (_, put) in zip(counts, parts, strict=True)]
        return tree_unflatten(rebuilt, spec)

    return [tensor for tensors, _ in parts for tensor in tensors], rebuild


def _leaf_taken_apart(leaf: Any, depth: int) -> tuple[list[torch.Tensor], Rebuild]:
    if isinstance(leaf, torch.Tensor):
        return [leaf], lambda substitutes: substitutes[0]
    attributes = getattr(leaf, "__dict__", None)
    if depth > DEEPEST or not isinstance(attributes, dict) or isinstance(leaf, type | nn.Module):
        return [], lambda substitutes: leaf
    tensors, rebuild = taken_apart(attributes, depth + 1)

    def put(substitutes: Sequence[torch.Tensor]) -> Any:
        rebuilt = copy(leaf)
        vars(rebuilt).update(rebuild(substitutes))
        return rebuilt

    return tensors, put if tensors else lambda substitutes: leaf
