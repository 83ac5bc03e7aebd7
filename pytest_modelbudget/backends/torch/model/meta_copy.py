"""A copy of a user's model to run instead of it: the structure is copied, the weights become meta tensors."""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from pytest_modelbudget.backends.torch.model import keras_layers
from pytest_modelbudget.backends.torch.model.dtensors import has_shards, is_sharded, remove_sharding
from pytest_modelbudget.backends.torch.model.meta_tensors import META, MetaTensors, keeps_values
from pytest_modelbudget.backends.torch.model.modules import all_modules, all_tensors
from pytest_modelbudget.backends.torch.model.stored_tensors import is_wrapper

_ORDINARY = (torch.Tensor, nn.Parameter)


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy of `model` on the meta device; `model` is only read, and no memory for its weights is taken.

    The copy of a sharded model is whole.

    Raises:
        NotOnMeta: a weight is of a class that cannot be made there.
    """
    meta_tensors = MetaTensors()
    memo: dict[int, Any] = {}
    modules = all_modules(model)
    tensors = [*all_tensors(modules), *keras_layers.values(modules)]
    for tensor in tensors:
        if id(tensor) not in memo:
            memo[id(tensor)] = _stand_in(tensor, meta_tensors)
    with ReplaceTensorsInCopy(partial(_stand_in, meta_tensors=meta_tensors)), torch.no_grad():
        try:
            copied = _deep_copy(model, dict(memo), tensors)
        except Exception:  # a lock, a generator, a file: share what cannot be copied
            copied = _copy_structure(model, memo)
    if has_shards(model):
        remove_sharding(copied)
    return copied


def meta_copy_without_values(module: nn.Module) -> nn.Module:
    """A copy of `module` of which nothing holds values, for whoever runs it on the meta device alone."""
    copied = meta_copy(module)
    for submodule in all_modules(copied):
        for name, buffer in submodule._buffers.items():
            submodule._buffers[name] = None if buffer is None else buffer.to(META)
    return copied


def _deep_copy(model: nn.Module, memo: dict[int, Any], tensors: list[torch.Tensor]) -> nn.Module:
    """A deep copy; what parameters of classes of their own hold (statistics, their layer) is copied with it."""
    copied = copy.deepcopy(model, memo)
    for tensor in tensors:
        if type(tensor) not in _ORDINARY and not is_wrapper(tensor):
            vars(memo[id(tensor)]).update({name: copy.deepcopy(value, memo) for name, value in vars(tensor).items()})
    return copied


def _stand_in(tensor: torch.Tensor, meta_tensors: MetaTensors) -> torch.Tensor:
    if is_lazy(tensor) or isinstance(tensor, nn.Parameter) or tensor.is_meta or is_sharded(tensor):
        return meta_tensors.of(tensor)
    if keeps_values(tensor) and not meta_tensors.shares(tensor):
        return tensor.detach().cpu().clone()
    return meta_tensors.of(tensor)


class ReplaceTensorsInCopy(TorchFunctionMode):  # type: ignore[misc]
    """Inside, a deep copy has `stand_in(tensor)` for each tensor, as those that modules hold in plain attributes."""

    def __init__(self, stand_in: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._stand_in = stand_in

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is not torch.Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            memo[id(tensor)] = self._stand_in(tensor)
        return memo[id(tensor)]


def _copy_structure(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy the modules and the containers in them; everything else is shared with `model`."""
    modules = all_modules(model)
    for layer in keras_layers.among(modules):
        copy.deepcopy(layer, memo)  # which enters it in `memo`, with all that belongs to it
    modules = [module for module in modules if id(module) not in memo]
    for module in modules:
        memo[id(module)] = object.__new__(type(module))
    for module in modules:
        for name, value in vars(module).items():
            object.__setattr__(memo[id(module)], name, _copy_container(value, memo))
    return memo[id(model)]


def _copy_container(value: Any, memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, MethodType) and id(value.__self__) in memo:
        return MethodType(value.__func__, memo[id(value.__self__)])
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _copy_container(item, memo)) for key, item in value.items())
    if type(value) in (list, tuple, set, deque):
        return type(value)(_copy_container(item, memo) for item in value)
    return value
