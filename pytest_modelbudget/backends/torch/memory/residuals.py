"""What autograd keeps of one call of any code on the meta device, parameters given beside its arguments."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks

from pytest_modelbudget.backends.residuals import (
    Differentiable,
    FindResiduals,
    Parameter,
    Residuals,
    ResidualsUnknown,
    StorageRef,
    Tensor,
)
from pytest_modelbudget.backends.torch.compat import no_dispatch, no_modes
from pytest_modelbudget.backends.torch.kernels.attention import cpu_attention
from pytest_modelbudget.backends.torch.kernels.layouts import channels_last_kept
from pytest_modelbudget.backends.torch.memory.saved_tensors import SavedHandle, has_storage
from pytest_modelbudget.backends.torch.model.global_state import global_state_restored, seed_everything
from pytest_modelbudget.backends.torch.model.meta_tensors import META
from pytest_modelbudget.backends.torch.model.pytree import dtype_name, storage_key


@contextmanager
def residuals_finder() -> Iterator[FindResiduals]:
    """Give a function that says what a call keeps, with the kernels of `activations`; global state stays as it was."""
    with global_state_restored(), no_modes(), cpu_attention(), channels_last_kept(), torch.enable_grad():
        seed_everything()
        yield _find_residuals


def _find_residuals(
    call: Differentiable, parameters: Sequence[Parameter], arguments_given: Sequence[Tensor]
) -> Residuals:
    values = [_parameter_leaf(parameter) for parameter in parameters]
    arguments = _leaf_tensors_for(arguments_given)
    not_counted = {storage_key(value) for value in values}
    saved: list[tuple[weakref.ref[SavedHandle], int, int]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor | SavedHandle:
        if not has_storage(tensor):
            raise ResidualsUnknown("a tensor without a storage of its own is held")
        key = storage_key(tensor)
        if key in not_counted:
            return tensor
        with no_dispatch():
            handle = SavedHandle(tensor.detach())  # with its graph, a result would keep itself alive
        saved.append((weakref.ref(handle), key, tensor.untyped_storage().nbytes()))
        return handle

    with (
        saved_tensors_hooks(pack, lambda packed: packed.tensor if isinstance(packed, SavedHandle) else packed),
        _cycles_collected(),
    ):
        results = list(call(values, arguments))
    if not all(isinstance(parameter, torch.Tensor) and has_storage(parameter) for parameter in results):
        raise ResidualsUnknown("a result is no ordinary tensor")
    refs = _storage_refs(values, arguments, results)
    nbytes_by_storage = {key: nbytes for handle, key, nbytes in saved if handle() is not None}
    return Residuals(
        tuple((refs.setdefault(key, ("inner", len(refs))), nbytes) for key, nbytes in nbytes_by_storage.items()),
        tuple(_plain_tensor(parameter) for parameter in results),
        tuple(refs[storage_key(parameter)] for parameter in results),
        _reached_arguments(results, arguments),
    )


@contextmanager
def _cycles_collected() -> Iterator[None]:
    """On leaving, what was made inside and is only held by itself, in a cycle, is gone: a step let go of it."""
    was_enabled = gc.isenabled()
    gc.disable()  # so that all of it is in the youngest generation, which is quickly looked through
    try:
        yield
        gc.collect(0)
    finally:
        if was_enabled:
            gc.enable()


def _storage_refs(
    parameters: Sequence[torch.Tensor], arguments: Sequence[torch.Tensor], results: Sequence[torch.Tensor]
) -> dict[int, StorageRef]:
    refs: dict[int, StorageRef] = {
        storage_key(tensor): ("parameter", position) for position, tensor in enumerate(parameters)
    }
    for position, tensor in enumerate(arguments):
        refs.setdefault(storage_key(tensor), ("given", position))
    for position, tensor in enumerate(results):
        refs.setdefault(storage_key(tensor), ("made", position))
    return refs


_DTYPES_OF_KERAS = {"uint16": torch.int32, "uint32": torch.int64, "uint64": torch.int64}
"""What Keras takes for dtypes that torch has not."""


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = _DTYPES_OF_KERAS.get(name) or getattr(torch, name)
    return dtype


def _parameter_leaf(parameter: Parameter) -> torch.Tensor:
    dtype = _dtype(parameter.dtype)
    return torch.empty(
        parameter.shape, dtype=dtype, device=META, requires_grad=parameter.trained and dtype.is_floating_point
    )


def _leaf_tensors_for(arguments: Sequence[Tensor]) -> list[torch.Tensor]:
    """Leaves that lie in their storages as the tensors they stand for."""
    storages: dict[int, torch.Tensor] = {}
    leaves = []
    for argument in arguments:
        if not argument.storage_bytes:  # an input, in a storage of its own
            leaves.append(torch.empty(argument.shape, dtype=_dtype(argument.dtype), device=META))
            continue
        if argument.storage not in storages:
            storages[argument.storage] = torch.empty(argument.storage_bytes, dtype=torch.uint8, device=META)
        tensor = torch.empty(0, dtype=_dtype(argument.dtype), device=META)
        tensor.set_(storages[argument.storage].untyped_storage(), argument.offset, argument.shape, argument.strides)
        leaves.append(tensor.requires_grad_(argument.trained))
    return leaves


def _plain_tensor(tensor: torch.Tensor) -> Tensor:
    return Tensor(
        tuple(tensor.shape),
        dtype_name(tensor.dtype),
        tensor.requires_grad,
        0,
        tensor.untyped_storage().nbytes(),
        tuple(tensor.stride()),
        int(tensor.storage_offset()),
    )


def _reached_arguments(results: Sequence[torch.Tensor], arguments: Sequence[torch.Tensor]) -> tuple[int, ...]:
    """The arguments that the graph of the results leads back to."""
    ends: dict[Any, int] = {
        get_gradient_edge(tensor).node: position for position, tensor in enumerate(arguments) if tensor.requires_grad
    }
    pending = [get_gradient_edge(tensor).node for tensor in results if tensor.requires_grad]
    visited = set(pending)
    positions: set[int] = set()
    while pending:
        node = pending.pop()
        if node in ends:
            positions.add(ends[node])
        for following, _ in node.next_functions:
            if following is not None and following not in visited:
                visited.add(following)
                pending.append(following)
    return tuple(sorted(positions))
