"""What autograd keeps of one call of any code on the meta device, parameters given beside its arguments."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks

from pytest_modelbudget.backends.residuals import Call, Keep, Kept, NotKnown, Parameter, Tensor, Word
from pytest_modelbudget.backends.torch.compat import no_dispatch, no_modes
from pytest_modelbudget.backends.torch.kernels.attention import fused
from pytest_modelbudget.backends.torch.kernels.layouts import laid_out
from pytest_modelbudget.backends.torch.memory.saved_tensors import Handle, has_storage
from pytest_modelbudget.backends.torch.model.global_state import preserved, seed
from pytest_modelbudget.backends.torch.model.meta_tensors import META
from pytest_modelbudget.backends.torch.model.pytree import dtype_name, storage_key


@contextmanager
def keeper() -> Iterator[Keep]:
    """Give a function that says what a call keeps, with the kernels of `activations`; global state stays as it was."""
    with preserved(), no_modes(), fused(), laid_out(), torch.enable_grad():
        seed()
        yield _kept


def _kept(call: Call, parameters: Sequence[Parameter], given: Sequence[Tensor]) -> Kept:
    values = [_leaf(one) for one in parameters]
    arguments = _arguments(given)
    not_counted = {storage_key(value) for value in values}
    saved: list[tuple[weakref.ref[Handle], int, int]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor | Handle:
        if not has_storage(tensor):
            raise NotKnown("a tensor without a storage of its own is held")
        key = storage_key(tensor)
        if key in not_counted:
            return tensor
        with no_dispatch():
            handle = Handle(tensor.detach())  # with its graph, a result would keep itself alive
        saved.append((weakref.ref(handle), key, tensor.untyped_storage().nbytes()))
        return handle

    with saved_tensors_hooks(pack, lambda kept: kept.tensor if isinstance(kept, Handle) else kept), _swept():
        results = list(call(values, arguments))
    if not all(isinstance(one, torch.Tensor) and has_storage(one) for one in results):
        raise NotKnown("a result is no ordinary tensor")
    words = _words(values, arguments, results)
    held = {key: nbytes for handle, key, nbytes in saved if handle() is not None}
    return Kept(
        tuple((words.setdefault(key, ("inner", len(words))), nbytes) for key, nbytes in held.items()),
        tuple(_described(one) for one in results),
        tuple(words[storage_key(one)] for one in results),
        _reached(results, arguments),
    )


@contextmanager
def _swept() -> Iterator[None]:
    """On leaving, what was made inside and is only held by itself, in a cycle, is gone: a step let go of it."""
    before = gc.isenabled()
    gc.disable()  # so that all of it is in the youngest generation, which is quickly looked through
    try:
        yield
        gc.collect(0)
    finally:
        if before:
            gc.enable()


def _words(
    parameters: Sequence[torch.Tensor], arguments: Sequence[torch.Tensor], results: Sequence[torch.Tensor]
) -> dict[int, Word]:
    words: dict[int, Word] = {storage_key(tensor): ("parameter", place) for place, tensor in enumerate(parameters)}
    for place, tensor in enumerate(arguments):
        words.setdefault(storage_key(tensor), ("given", place))
    for place, tensor in enumerate(results):
        words.setdefault(storage_key(tensor), ("made", place))
    return words


_DTYPES = {"uint16": torch.int32, "uint32": torch.int64, "uint64": torch.int64}
"""What Keras takes for dtypes that torch has not."""


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = _DTYPES.get(name) or getattr(torch, name)
    return dtype


def _leaf(one: Parameter) -> torch.Tensor:
    dtype = _dtype(one.dtype)
    return torch.empty(one.shape, dtype=dtype, device=META, requires_grad=one.trained and dtype.is_floating_point)


def _arguments(given: Sequence[Tensor]) -> list[torch.Tensor]:
    """Leaves that lie in their storages as the tensors they stand for."""
    storages: dict[int, torch.Tensor] = {}
    made = []
    for one in given:
        if not one.storage_bytes:  # an input, in a storage of its own
            made.append(torch.empty(one.shape, dtype=_dtype(one.dtype), device=META))
            continue
        if one.storage not in storages:
            storages[one.storage] = torch.empty(one.storage_bytes, dtype=torch.uint8, device=META)
        tensor = torch.empty(0, dtype=_dtype(one.dtype), device=META)
        tensor.set_(storages[one.storage].untyped_storage(), one.offset, one.shape, one.strides)
        made.append(tensor.requires_grad_(one.trained))
    return made


def _described(tensor: torch.Tensor) -> Tensor:
    return Tensor(
        tuple(tensor.shape),
        dtype_name(tensor.dtype),
        tensor.requires_grad,
        0,
        tensor.untyped_storage().nbytes(),
        tuple(tensor.stride()),
        int(tensor.storage_offset()),
    )


def _reached(results: Sequence[torch.Tensor], arguments: Sequence[torch.Tensor]) -> tuple[int, ...]:
    """The arguments that the graph of the results leads back to."""
    ends: dict[Any, int] = {
        get_gradient_edge(one).node: place for place, one in enumerate(arguments) if one.requires_grad
    }
    waiting = [get_gradient_edge(one).node for one in results if one.requires_grad]
    seen = set(waiting)
    found: set[int] = set()
    while waiting:
        node = waiting.pop()
        if node in ends:
            found.add(ends[node])
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return tuple(sorted(found))
