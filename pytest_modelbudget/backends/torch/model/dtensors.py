"""Sharded models (`fully_shard`, tensor parallel): each rank holds a part, counted is the whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.model.modules import all_modules
from pytest_modelbudget.errors import ModelBudgetError

_DTENSOR_MODULES = ("torch.distributed.tensor", "torch.distributed._tensor")
_COLLECTIVE_MODULES = ("torch.distributed._functional_collectives",)
_FSDP_MODULES = ("torch.distributed.fsdp", "torch.distributed._composable.fsdp")
_ORDINARY = (torch.Tensor, nn.Parameter)
_HOOKS = (*_DTENSOR_MODULES, *_FSDP_MODULES)  # and none of activation checkpointing, which changes what is held


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is a `DTensor`, of which this rank holds a part (or a copy)."""
    return type(tensor) not in _ORDINARY and isinstance(tensor, _classes(_DTENSOR_MODULES, "DTensor"))


def local_part(tensor: Any) -> Any:
    """The part of `tensor` that this rank holds; of a result that is still on its way, the place where it arrives."""
    while type(tensor) not in _ORDINARY:
        if is_sharded(tensor):
            tensor = tensor._local_tensor
        elif _is_arriving(tensor):
            tensor = tensor.elem
        else:
            break
    return tensor


def wait_for(tensor: Any) -> Any:
    """`tensor`; one that is on its way from other ranks is waited for."""
    return tensor.view_as(tensor) if _is_arriving(tensor) else tensor


def _is_arriving(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, _classes(_COLLECTIVE_MODULES, "AsyncCollectiveTensor"))


def has_shards(model: nn.Module) -> bool:
    """Whether any parameter of `model` is sharded."""
    return any_sharded(all_modules(model))


def any_sharded(modules: Sequence[nn.Module]) -> bool:
    """Whether any parameter that one of `modules` holds itself is sharded."""
    if not (kinds := _classes(_DTENSOR_MODULES, "DTensor")):
        return False
    parameters = chain.from_iterable([module._parameters.values() for module in modules])
    return any(isinstance(tensor, kinds) for tensor in parameters if type(tensor) not in _ORDINARY)


def whole_on_meta(tensor: Any) -> torch.Tensor:
    """A tensor on the meta device with the shape and strides that a `DTensor` has on all ranks together."""
    data = torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device="meta")
    return nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data


def sharding_notes(model: nn.Module) -> tuple[str, ...]:
    """What to say of a model whose parameters are sharded; nothing for others.

    Raises:
        ModelBudgetError: it is inside `FullyShardedDataParallel`, whose flat parameters hide the whole.
    """
    wrappers, modules = _classes(_FSDP_MODULES, "FullyShardedDataParallel"), all_modules(model)
    if wrappers and any(issubclass(kind, wrappers) for kind in set(map(type, modules))):
        raise ModelBudgetError(
            "a model inside FullyShardedDataParallel shows this rank's part of its parameters only: "
            "count it before it is wrapped, or shard it with fully_shard"
        )
    if not any_sharded(modules):
        return ()
    ranks = max(tensor.device_mesh.size() for tensor in model.parameters() if is_sharded(tensor))
    return (f"sharded over {ranks} ranks: all numbers are those of the whole model, not of one rank",)


def remove_sharding(model: nn.Module) -> None:
    """Make a meta copy of a sharded model run on one device: without hooks that gather, scatter or redistribute."""
    wrappers = _classes(_FSDP_MODULES, "FSDPModule")
    for module in model.modules():
        if isinstance(module, wrappers):
            kind = type(module)
            module.__class__ = kind.__mro__[getattr(kind, "_orig_cls_mro_index", 2)]
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if _distributes(hook)]:
                del hooks[key]


def _distributes(hook: Any) -> bool:
    while isinstance(hook, partial):
        hook = hook.func
    return str(getattr(hook, "__module__", "")).startswith(_HOOKS)


def _classes(modules: tuple[str, ...], name: str) -> tuple[type, ...]:
    """The classes of this name that are imported: without them no tensor or module is one."""
    return tuple(_imported(modules, name))


def _imported(modules: tuple[str, ...], name: str) -> Iterator[type]:
    for module in modules:
        if isinstance(cls := getattr(sys.modules.get(module), name, None), type):
            yield cls
