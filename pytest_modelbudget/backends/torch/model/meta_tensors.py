"""Tensors on the meta device that stand for real ones, one for each, so that what was tied stays tied."""

from __future__ import annotations

import weakref

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import UninitializedBuffer, is_lazy

from pytest_modelbudget.backends.torch.compat import make_subclass
from pytest_modelbudget.backends.torch.model import keras_layers
from pytest_modelbudget.backends.torch.model.dtensors import any_sharded, is_sharded, remove_sharding, whole_on_meta
from pytest_modelbudget.backends.torch.model.modules import all_modules
from pytest_modelbudget.backends.torch.model.pytree import storage_key
from pytest_modelbudget.backends.torch.model.stored_tensors import (
    NotOnMeta,
    is_sparse,
    is_wrapper,
    max_elements,
    meta_sparse,
    meta_wrapper,
)
from pytest_modelbudget.backends.torch.model.unknown_values import is_unknown

META = torch.device("meta")

META_FROM_ELEMENTS = 65_536
"""Elements from which a tensor made while building goes to meta; smaller ones keep their values, which
constructors like to read (schedules of drop rates, widths of stages)."""

MAX_CONSTANT_ELEMENTS = 1_048_576
"""Elements up to which a tensor of constants keeps its values during the forward pass (ids, masks, shapes)."""


def keeps_values(tensor: torch.Tensor) -> bool:
    """Whether a forward pass may need the values of `tensor`: integers and bools, unless they are huge.

    Also where the elements of a sparse tensor are, and of a nested one; what other wrappers hold, they compute with.
    """
    if is_sparse(tensor) or tensor.is_nested:
        return max_elements(tensor) <= MAX_CONSTANT_ELEMENTS
    if is_wrapper(tensor):
        return False
    return not (tensor.is_floating_point() or tensor.is_complex()) and tensor.numel() <= MAX_CONSTANT_ELEMENTS


class MetaTensors:
    """Makes and remembers the meta tensor of each tensor it is asked for; it keeps none of them alive."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}
        self._storages: dict[int, tuple[StorageWeakRef, torch.UntypedStorage]] = {}

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The meta tensor of `tensor`: same class, shape, strides, dtype and `requires_grad`; itself when on meta."""
        if tensor.is_meta and not is_sharded(tensor):
            return tensor
        key = id(tensor)
        entry = self._made.get(key)
        if entry is None or entry[0]() is not tensor:
            reference = weakref.ref(tensor, lambda _: self._made.pop(key, None))
            entry = self._made[key] = reference, self._make(tensor)
        return entry[1]

    def if_possible(self, tensor: torch.Tensor) -> torch.Tensor:
        """The meta tensor of `tensor`; itself when there can be none: it goes to meta where it meets what is there."""
        try:
            return self.of(tensor)
        except NotOnMeta:
            return tensor

    def shares(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` has the memory of one that has a meta tensor."""
        return storage_key(tensor) in self._storages

    def _make(self, tensor: torch.Tensor) -> torch.Tensor:
        kind = type(tensor)
        if kind is torch.Tensor and not tensor.requires_grad:  # most buffers
            return _with_attributes(self._data(tensor), tensor)
        if is_lazy(tensor):
            data = torch.empty(0, dtype=tensor.dtype, device=META)
            lazy = make_subclass(type(tensor), data, tensor.requires_grad)
            return _with_attributes(lazy, tensor)
        if is_sharded(tensor):
            return whole_on_meta(tensor)
        if is_wrapper(tensor):
            return _with_attributes(meta_wrapper(tensor, self.of), tensor)
        data = self._data(tensor)
        if kind is not torch.Tensor and isinstance(tensor, nn.Parameter):
            data = make_subclass(kind, data, tensor.requires_grad)
        elif tensor.requires_grad and tensor.is_leaf:
            data.requires_grad_()
        return _with_attributes(data, tensor)

    def _data(self, tensor: torch.Tensor) -> torch.Tensor:
        if is_sparse(tensor):
            return meta_sparse(tensor.detach(), self.of)
        if tensor.is_nested:
            return tensor.detach().clone()  # torch has none on meta
        if tensor.layout != torch.strided or tensor.is_quantized:
            return tensor.detach().to(META)
        storage_of_real = tensor.untyped_storage()
        reference = StorageWeakRef(
            storage_of_real
        )  # holds the address, not the memory, so that the key is never used twice
        entry = self._storages.get(reference.cdata)
        if entry is None:
            if (
                tensor.nbytes == storage_of_real.nbytes() and tensor.is_contiguous()
            ):  # the common case, with a storage of its own
                meta_tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device=META)
                self._storages[reference.cdata] = reference, meta_tensor.untyped_storage()
                return meta_tensor
            storage = torch.UntypedStorage(storage_of_real.nbytes(), device=META)
            entry = self._storages[reference.cdata] = reference, storage
        meta_tensor = torch.empty(0, dtype=tensor.dtype, device=META)
        return meta_tensor.set_(entry[1], tensor.storage_offset(), tensor.size(), tensor.stride())


def _with_attributes(meta_tensor: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    for name, value in vars(tensor).items():  # marks that libraries leave on parameters, as `_no_weight_decay`
        if name not in vars(meta_tensor):
            setattr(meta_tensor, name, value)
    return meta_tensor


def _buffer_keeps_values(buffer: torch.Tensor) -> bool:
    return not isinstance(buffer, UninitializedBuffer) and keeps_values(buffer) and not is_unknown(buffer)


def model_to_meta(model: nn.Module, meta_tensors: MetaTensors) -> None:
    """Replace every real parameter of `model`, and every buffer whose values no forward pass needs, by its meta tensor.

    A sharded model becomes whole.
    """
    modules = all_modules(model)
    if sharded := any_sharded(modules):
        remove_sharding(model)
    keras_layers.settle(modules, meta_tensors.of)
    for module in modules:
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name, parameter in module._parameters.items():
            if parameter is not None and (not parameter.is_meta or (sharded and is_sharded(parameter))):
                module._parameters[name] = meta_tensors.if_possible(parameter)
        for name, buffer in module._buffers.items():
            if buffer is not None and (is_sharded(buffer) or not (buffer.is_meta or _buffer_keeps_values(buffer))):
                module._buffers[name] = meta_tensors.if_possible(buffer)
