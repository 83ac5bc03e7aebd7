"""The modules of a model as rows: every module object once, wrappers looked through, parametrizations rolled up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from pytest_modelbudget.backends.torch.model import keras_layers

ROOT = "(root)"
"""The path of the model itself, when it needs a row."""

_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
PARTS = ("parametrizations", "_packed_params", "_all_weight_values", "_guards_fn")
"""Children that are a part of their parent: they have no row and no calls of their own.

The last one is where an exported program checks its inputs.
"""


class Node(NamedTuple):  # of which there are very many: these are made fastest
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
        if self.module._modules and parametrize.is_parametrized(self.module):
            return str(parametrize.type_before_parametrizations(self.module).__name__)
        return type(self.module).__name__


def is_of_torch(module: nn.Module) -> bool:
    """Whether the class of `module` is one of torch's own layers, and none derived from it."""
    return type(module).__module__.startswith("torch.nn.modules.")


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, DataParallel, and their kind."""
    while (inner := _wrapped_module(module)) is not None:
        module = inner
    return module


def _wrapped_module(module: nn.Module) -> nn.Module | None:
    submodules = module._modules
    if not submodules or isinstance(module, torch.jit.ScriptModule):
        return None
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return module.module
    for name in _WRAPPED:
        if (child := submodules.get(name)) is not None:
            return child
    return keras_layers.wrapped(module) if isinstance(module, keras_layers.layer_classes()) else None


def children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules inside `module` that have a row of their own."""
    if isinstance(module, keras_layers.layer_classes()):
        return keras_layers.children(module)
    if not (submodules := module._modules):
        return []
    named = module.named_children() if isinstance(module, torch.jit.ScriptModule) else submodules.items()
    return [(name, child) for name, child in named if child is not None and name not in PARTS]


def all_modules(model: nn.Module) -> list[nn.Module]:
    """As `model.modules()`, which takes ten times as long, with the layers that Keras keeps in its own way."""
    by_id: dict[int, nn.Module] = {}
    keras_classes = keras_layers.layer_classes()
    pending = [model]
    while pending:
        module = pending.pop()
        if id(module) in by_id:
            continue
        by_id[id(module)] = module
        if module._modules:
            submodules = module.children() if isinstance(module, torch.jit.ScriptModule) else module._modules.values()
            pending += [child for child in submodules if child is not None][::-1]
        if keras_classes and isinstance(module, keras_classes):
            pending += keras_layers.sublayers(module)
    return list(by_id.values())


def all_tensors(modules: Iterable[nn.Module]) -> list[torch.Tensor]:
    """The parameters and buffers that modules hold themselves; those that two of them hold come twice."""
    return [
        tensor
        for module in modules
        for tensors_by_name in (module._parameters, module._buffers)
        for tensor in tensors_by_name.values()
        if tensor is not None
    ]


def nodes(model: nn.Module) -> list[Node]:
    """All modules in the order of `named_modules()`, each object once under its first path."""
    listed: list[Node] = []
    names = keras_layers.names(all_modules(model)) if keras_layers.layer_classes() else {}
    _walk(model, "", set(), listed, names)
    return listed


def _walk(module: nn.Module, path: str, visited: set[int], listed: list[Node], names: Mapping[int, str]) -> None:
    module = unwrap(module)
    if id(module) in visited:
        return
    visited.add(id(module))
    is_keras = isinstance(module, keras_layers.layer_classes())
    if not (is_keras or module._modules):  # most of them
        listed.append(Node(path or ROOT, module, container=False))
        return
    below = children(module)
    parts = _parts(module)
    visited.update([id(part) for _, part in parts])
    listed.append(Node(path or ROOT, module, bool(below), parts))
    for name, child in below:
        name = names[id(child)] if is_keras else name
        _walk(child, f"{path}.{name}" if path else name, visited, listed, names)


def _parts(module: nn.Module) -> tuple[tuple[str, nn.Module], ...]:
    if isinstance(module, keras_layers.layer_classes()):
        return tuple([("", part) for part in keras_layers.parts(module)])
    if not (submodules := module._modules) or not any(map(submodules.__contains__, PARTS)):
        return ()
    return tuple([part for name, child in module.named_children() if name in PARTS for part in child.named_modules()])


def part_ids(model: nn.Module) -> frozenset[int]:
    """The modules that are parts of another one, by id."""
    return part_ids_among(all_modules(model))


def part_ids_among(modules: Iterable[nn.Module]) -> frozenset[int]:
    """As `part_ids`, when all modules of a model are known."""
    return frozenset([id(part) for module in modules for _, part in _parts(module)])
