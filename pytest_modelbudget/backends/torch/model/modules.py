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


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, DataParallel, and their kind."""
    while (inner := _inner(module)) is not None:
        module = inner
    return module


def _inner(module: nn.Module) -> nn.Module | None:
    inside = module._modules
    if not inside or isinstance(module, torch.jit.ScriptModule):
        return None
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return module.module
    for name in _WRAPPED:
        if (child := inside.get(name)) is not None:
            return child
    return keras_layers.wrapped(module) if isinstance(module, keras_layers.kinds()) else None


def children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules inside `module` that have a row of their own."""
    if isinstance(module, keras_layers.kinds()):
        return keras_layers.children(module)
    if not (inside := module._modules):
        return []
    found = module.named_children() if isinstance(module, torch.jit.ScriptModule) else inside.items()
    return [(name, child) for name, child in found if child is not None and name not in PARTS]


def all_modules(model: nn.Module) -> list[nn.Module]:
    """As `model.modules()`, which takes ten times as long, with the layers that Keras keeps in its own way."""
    found: dict[int, nn.Module] = {}
    keras = keras_layers.kinds()
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if id(module) in found:
            continue
        found[id(module)] = module
        if module._modules:
            inside = module.children() if isinstance(module, torch.jit.ScriptModule) else module._modules.values()
            waiting += [child for child in inside if child is not None][::-1]
        if keras and isinstance(module, keras):
            waiting += keras_layers.sublayers(module)
    return list(found.values())


def all_tensors(modules: Iterable[nn.Module]) -> list[torch.Tensor]:
    """The parameters and buffers that modules hold themselves; those that two of them hold come twice."""
    return [
        tensor
        for module in modules
        for held in (module._parameters, module._buffers)
        for tensor in held.values()
        if tensor is not None
    ]


def nodes(model: nn.Module) -> list[Node]:
    """All modules in the order of `named_modules()`, each object once under its first path."""
    found: list[Node] = []
    names = keras_layers.names(all_modules(model)) if keras_layers.kinds() else {}
    _walk(model, "", set(), found, names)
    return found


def _walk(module: nn.Module, path: str, seen: set[int], found: list[Node], names: Mapping[int, str]) -> None:
    module = unwrapped(module)
    if id(module) in seen:
        return
    seen.add(id(module))
    keras = isinstance(module, keras_layers.kinds())
    if not (keras or module._modules):  # most of them
        found.append(Node(path or ROOT, module, container=False))
        return
    inside = children(module)
    parts = _parts(module)
    seen.update([id(part) for _, part in parts])
    found.append(Node(path or ROOT, module, bool(inside), parts))
    for name, child in inside:
        name = names[id(child)] if keras else name
        _walk(child, f"{path}.{name}" if path else name, seen, found, names)


def _parts(module: nn.Module) -> tuple[tuple[str, nn.Module], ...]:
    if isinstance(module, keras_layers.kinds()):
        return tuple([("", part) for part in keras_layers.parts(module)])
    if not (inside := module._modules) or not any(map(inside.__contains__, PARTS)):
        return ()
    return tuple([part for name, child in module.named_children() if name in PARTS for part in child.named_modules()])


def rolled_up(model: nn.Module) -> frozenset[int]:
    """The modules that are parts of another one, by id."""
    return parts_among(all_modules(model))


def parts_among(modules: Iterable[nn.Module]) -> frozenset[int]:
    """As `rolled_up`, when all modules of a model are known."""
    return frozenset([id(part) for module in modules for _, part in _parts(module)])
