"""What a module does when it is called, operator by operator: modules that do the same have the same graphs.

Attributes say nothing here: a block that knows its index is like its neighbours where it does nothing with it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_modelbudget.backends.torch.compat import no_modes, tree_flatten
from pytest_modelbudget.backends.torch.model.pytree import storage_key


def what_it_does(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
    """A key that is equal for modules on meta which do the same with arguments that are alike.

    It is the module itself where that cannot be told: where it asks for values, say.
    """
    weights = [*module.parameters(), *module.buffers()]
    leaves, spec = tree_flatten((args, dict(kwargs)))
    log = _OperatorLog()
    there = tuple(map(log.operand, (*weights, *leaves)))
    needs_gradient = tuple(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in (*weights, *leaves))
    key: Hashable
    try:
        with torch.no_grad(), no_modes(), log:
            module(*args, **kwargs)
        around = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        key = getattr(module.forward, "__code__", None), spec, there, needs_gradient, around, tuple(log.operators)
        hash(key)
    except Exception:  # whatever the model's code raises
        return id(module)
    return key


class _OperatorLog(TorchDispatchMode):  # type: ignore[misc]
    """Notes which operators run, what they read, and how what they give lies in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Hashable] = []
        self._numbers: dict[int, int] = {}
        self._alive: list[torch.Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        leaves, spec = tree_flatten((args, kwargs, out))
        self.operators.append((func, spec, tuple(map(self.operand, leaves))))
        return out

    def operand(self, leaf: Any) -> Hashable:
        """A tensor by the number of its storage and how it lies there, all else by itself."""
        if not isinstance(leaf, torch.Tensor):
            return type(leaf), repr(leaf) if isinstance(leaf, float) else leaf  # nan is not nan
        key = storage_key(leaf)
        if key not in self._numbers:
            self._numbers[key] = len(self._numbers)
            self._alive.append(leaf)
        return self._numbers[key], leaf.shape, leaf.stride(), leaf.storage_offset(), leaf.dtype
