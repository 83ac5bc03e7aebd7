"""Tensors that are stored otherwise than they are shaped: in which plain tensors, and how they are made on meta.

Wrapper subclasses (`__tensor_flatten__`) hold others, sparse layouts indices and values, nested tensors one buffer; a
parameter of a class of its own may keep statistics in its attributes, or in objects there.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from math import prod
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pytest_modelbudget.backends.torch.model.dtensors import is_sharded
from pytest_modelbudget.backends.torch.model.pytree import dtype_name, storage_key
from pytest_modelbudget.errors import ModelBudgetError

_ORDINARY = frozenset({torch.Tensor, nn.Parameter})
_DEFAULT_DISPATCH = torch.Tensor.__torch_dispatch__
_MAX_DEPTH = 3
"""Objects inside objects that are looked through for tensors, from an attribute on."""
_NOT_SEARCHED = (nn.Module, type, FunctionType, MethodType, str, bytes, torch.dtype, torch.device, torch.Size)

_ROW_LAYOUTS = frozenset({torch.sparse_csr, torch.sparse_bsr})
_SPARSE_FACTORIES: dict[torch.layout, Callable[..., torch.Tensor]] = {
    torch.sparse_csr: torch.sparse_csr_tensor,
    torch.sparse_csc: torch.sparse_csc_tensor,
    torch.sparse_bsr: torch.sparse_bsr_tensor,
    torch.sparse_bsc: torch.sparse_bsc_tensor,
}
_SPARSE = frozenset({torch.sparse_coo, *_SPARSE_FACTORIES})


class NotOnMeta(ModelBudgetError):
    """A tensor of this class cannot be made on the meta device."""


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is one region of memory, of an ordinary class."""
    return type(tensor) in _ORDINARY and tensor.layout == torch.strided and not tensor.is_nested


_is_nested: Callable[[torch.Tensor], bool] = torch._C.TensorBase.is_nested.__get__


def are_plain(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether all of many tensors are plain, quicker than one by one."""
    return (
        _ORDINARY.issuperset(map(type, tensors))
        and {tensor.layout for tensor in tensors} <= {torch.strided}
        and not any(map(_is_nested, tensors))
    )


def has_plain_tensors(module: nn.Module) -> bool:
    """Whether all parameters and buffers of a module, itself, are plain."""
    for tensors_by_name in (module._parameters, module._buffers):
        for tensor in tensors_by_name.values():
            if tensor is not None and not is_plain(tensor):
                return False
    return True


def plain_memory_region(tensor: torch.Tensor) -> Hashable:
    """As `memory_region`, for a tensor that is plain."""
    count = tensor.numel()
    return (storage_key(tensor), tensor.storage_offset(), count) if count else id(tensor)


def is_sparse(tensor: torch.Tensor) -> bool:
    """Whether `tensor` has a sparse layout: COO, CSR, CSC, BSR or BSC."""
    return tensor.layout in _SPARSE


def is_wrapper(tensor: torch.Tensor) -> bool:
    """Whether `tensor` has no memory of its own, and holds others that have."""
    kind: Any = type(tensor)
    return kind not in _ORDINARY and is_wrapper_class(kind)


def has_class_of_its_own(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is memory of its own, with a class that may do more with it than ordinary ones."""
    return type(tensor) not in _ORDINARY and not is_lazy(tensor) and not is_wrapper(tensor)


@cache
def is_wrapper_class(kind: Any) -> bool:
    """Whether a class of tensors says what operators on it do, by operators on those that it holds."""
    module_name = str(getattr(kind, "__module__", ""))
    if module_name.startswith("torch._subclasses."):  # fakes, and what compilers trace with
        return False
    has_dispatch = getattr(kind, "__torch_dispatch__", _DEFAULT_DISPATCH) is not _DEFAULT_DISPATCH
    return has_dispatch or hasattr(kind, "__tensor_flatten__") or module_name.startswith("torch.distributed.")


def plain_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors of plain memory that `tensor` is stored in, each once: itself, when it is one."""
    if is_plain(tensor):
        return [tensor]
    if is_lazy(tensor):
        return []
    return list({memory_region(part): part for part in _plain_parts(tensor)}.values())


def _plain_parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    if is_plain(tensor):
        yield tensor
    elif is_wrapper(tensor):
        for inner_tensor in _wrapped_tensors(tensor).values():
            yield from _plain_parts(inner_tensor)
    elif is_sparse(tensor):
        yield from (*sparse_indices(tensor), stored_values(tensor))
    elif tensor.is_nested:
        yield tensor.detach().values()
    else:
        yield tensor
        for inner_tensor in held_tensors(vars(tensor)):
            yield from _plain_parts(inner_tensor)


def _wrapped_tensors(tensor: Any) -> dict[str, torch.Tensor]:
    """What a wrapper holds, by name: as it says itself, or all tensors among its attributes."""
    try:
        return {name: getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]}
    except (AttributeError, NotImplementedError):
        return {name: value for name, value in vars(tensor).items() if isinstance(value, torch.Tensor)}


def held_tensors(holder: Any, depth: int = 0) -> Iterator[torch.Tensor]:
    """The tensors in attributes, in containers and plain objects there; not those of modules."""
    if isinstance(holder, torch.Tensor):
        yield holder
        return
    if depth > _MAX_DEPTH or isinstance(holder, _NOT_SEARCHED):
        return
    items = holder.values() if isinstance(holder, Mapping) else holder if isinstance(holder, (list, tuple)) else None
    for item in vars(holder).values() if items is None and hasattr(holder, "__dict__") else items or ():
        yield from held_tensors(item, depth + 1)


def sparse_indices(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | tuple[torch.Tensor]:
    """Where the elements of a sparse tensor are."""
    if tensor.layout == torch.sparse_coo:
        return (tensor._indices(),)
    if tensor.layout in _ROW_LAYOUTS:
        return tensor.crow_indices(), tensor.col_indices()
    return tensor.ccol_indices(), tensor.row_indices()


def sparse_positions(tensor: torch.Tensor) -> torch.Tensor:
    """Row and column of each element that a sparse matrix with values stores."""
    return tensor.to_sparse(layout=torch.sparse_coo).coalesce().indices()


def stored_values(tensor: torch.Tensor) -> torch.Tensor:
    """The elements that a sparse tensor stores."""
    return tensor._values() if tensor.layout == torch.sparse_coo else tensor.values()


def sparse_like(
    tensor: torch.Tensor, positions: tuple[torch.Tensor, ...], elements: torch.Tensor, shape: torch.Size
) -> torch.Tensor:
    """A sparse tensor of the layout of `tensor` with these indices and values."""
    if tensor.layout == torch.sparse_coo:
        coalesced = tensor.is_coalesced()
        return torch.sparse_coo_tensor(*positions, elements, shape, is_coalesced=coalesced, check_invariants=False)
    return _SPARSE_FACTORIES[tensor.layout](*positions, elements, shape, check_invariants=False)


def memory_region(tensor: torch.Tensor) -> Hashable:
    """The same for two tensors that are the same memory: one object, or one region of one storage (also transposed)."""
    if is_wrapper(tensor) or is_sparse(tensor):
        return tuple(map(memory_region, plain_parts(tensor)))
    if tensor.layout != torch.strided or tensor.numel() == 0:
        return id(tensor)
    return storage_key(tensor), tensor.storage_offset(), tensor.numel()


def plain_bytes(tensor: torch.Tensor) -> int:
    """Bytes of one tensor of plain memory."""
    return int(tensor.numel() * tensor.element_size())


def stored_bytes(tensor: torch.Tensor) -> int | None:
    """Bytes that `tensor` is stored in, when its shape and dtype do not say it."""
    return None if is_plain(tensor) else sum(map(plain_bytes, plain_parts(tensor)))


def max_elements(tensor: torch.Tensor) -> int:
    """The most elements that any of the parts of `tensor` has."""
    return tensor.numel() if is_plain(tensor) else max((part.numel() for part in plain_parts(tensor)), default=0)


def represented_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape of what `tensor` stands for: a packed one says it in its attributes; ragged ones are one long row."""
    if tensor.is_nested:
        return tuple(max(plain_parts(tensor), key=plain_bytes).shape)
    if is_plain(tensor) or is_wrapper(tensor) or is_sparse(tensor):
        return tuple(tensor.shape)
    shapes = (
        getattr(attribute, "shape", None)
        for attribute in vars(tensor).values()
        if not isinstance(attribute, torch.Tensor)
    )
    candidates = (tuple(shape) for shape in shapes if isinstance(shape, (tuple, list)) and shape)
    return next((shape for shape in candidates if prod(shape) > tensor.numel()), tuple(tensor.shape))


def represented_dtype(tensor: torch.Tensor, count: int) -> str:
    """What each of the `count` elements that `tensor` stands for is stored as: `int8`, `int4`, `nf4`, ...

    A tensor that holds more bytes for an element than its dtype, or less of another kind, is named by its own dtype.
    """
    if is_plain(tensor) or is_sparse(tensor) or count == 0:
        return dtype_name(tensor.dtype)
    largest = max(plain_parts(tensor), key=plain_bytes, default=tensor)
    if largest.numel() == count:
        return dtype_name(largest.dtype)
    bits = 8 * plain_bytes(largest) // count
    if not 0 < bits < 8:
        return dtype_name(tensor.dtype)
    quant_type = getattr(tensor, "quant_type", None)
    if isinstance(quant_type, str) and quant_type.isidentifier() and quant_type.islower():
        return quant_type
    return dtype_name(tensor.dtype) if largest.is_floating_point() else f"int{bits}"


def can_be_on_meta(tensor: torch.Tensor) -> bool:
    """Whether `tensor` can be made on meta."""
    if type(tensor) not in _ORDINARY and (is_lazy(tensor) or is_sharded(tensor)):
        return True
    try:
        return tensor.is_meta or not is_wrapper(tensor) or meta_wrapper(tensor, _empty_like).is_meta
    except NotOnMeta:
        return False


def _empty_like(tensor: torch.Tensor) -> torch.Tensor:
    return meta_wrapper(tensor, _empty_like) if is_wrapper(tensor) else torch.empty_like(tensor, device="meta")


def meta_sparse(tensor: torch.Tensor, to_meta: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """`tensor` with the same number of stored elements on meta; `to_meta` gives its parts there."""
    return sparse_like(
        tensor, tuple(map(to_meta, sparse_indices(tensor))), to_meta(stored_values(tensor)), tensor.shape
    )


def _with_meta_devices(context: Any) -> Any:
    """What a wrapper says of itself, with each device in it replaced by meta."""
    if isinstance(context, torch.device):
        return torch.device("meta")
    if type(context) is dict:
        return {name: _with_meta_devices(item) for name, item in context.items()}
    if type(context) in (list, tuple):
        return type(context)(map(_with_meta_devices, context))
    if is_dataclass(context) and not isinstance(context, type):
        devices = {field.name: torch.device("meta") for field in fields(context) if _is_device(context, field.name)}
        return replace(context, **devices) if devices else context
    return context


def _is_device(holder: Any, name: str) -> bool:
    return isinstance(getattr(holder, name, None), torch.device)


def meta_wrapper(tensor: torch.Tensor, to_meta: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """`tensor` of the same class around parts on meta; `to_meta` gives them.

    Raises:
        NotOnMeta: the class cannot be made so.
    """
    kind: Any = type(tensor)
    try:
        names, context = tensor.__tensor_flatten__()
        inner = {name: to_meta(getattr(tensor, name)) for name in names}
        wrapper = kind.__tensor_unflatten__(inner, _with_meta_devices(context), tensor.size(), tensor.stride())
    except Exception as error:  # whatever the class raises
        raise NotOnMeta(f"{kind.__name__} cannot be made on meta: {error}") from error
    if not wrapper.is_meta:
        raise NotOnMeta(f"{kind.__name__} cannot be made on meta")
    return nn.Parameter(wrapper, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else wrapper
