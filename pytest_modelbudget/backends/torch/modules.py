"""The modules of a model as rows: every module object once, wrappers looked through, parametrizations rolled up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

ROOT = "(root)"
"""The path of the model itself, when it needs a row."""

_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
PARTS = ("parametrizations", "_packed_params", "_all_weight_values")
"""Children that are a part of their parent: they have no row and no calls of their own."""


@dataclass(frozen=True, slots=True)
class Node:
    """One module; `parts` are the modules rolled up into it, with the prefix of their weights' names."""

    path: str
    module: nn.Module
    container: bool
    parts: tuple[tuple[str, nn.Module], ...] = ()

    @property
    def type(self) -> str:
        """The class the user wrote: without the one that a parametrization or scripting put in its place."""
        if isinstance(self.module, torch.jit.ScriptModule):
            return str(self.module.original_name)
        if parametrize.is_parametrized(self.module):
            return str(parametrize.type_before_parametrizations(self.module).__name__)
        return type(self.module).__name__


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, DataParallel, and their kind."""
    while (inner := _inner(module)) is not None:
        module = inner
    return module


def _inner(module: nn.Module) -> nn.Module | None:
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return module.module
    if isinstance(module, torch.jit.ScriptModule):
        return None
    return next((child for name in _WRAPPED if (child := module._modules.get(name)) is not None), None)


def children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules inside `module` that have a row of their own."""
    return [(name, child) for name, child in module.named_children() if name not in PARTS]


def nodes(model: nn.Module) -> list[Node]:
    """All modules in the order of `named_modules()`, each object once under its first path."""
    return list(_walk(model, "", set()))


def _walk(module: nn.Module, path: str, seen: set[int]) -> Iterator[Node]:
    module = unwrapped(module)
    if id(module) in seen:
        return
    seen.add(id(module))
    inside = children(module)
    parts = tuple(_parts(module))
    seen.update(id(part) for _, part in parts)
    yield Node(path or ROOT, module, bool(inside), parts)
    for name, child in inside:
        yield from _walk(child, f"{path}.{name}" if path else name, seen)


def _parts(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if name in PARTS:
            yield from child.named_modules()


def rolled_up(model: nn.Module) -> dict[int, nn.Module]:
    """The modules that are parts of another one, by id."""
    return {id(part): node.module for node in nodes(model) for _, part in node.parts}
