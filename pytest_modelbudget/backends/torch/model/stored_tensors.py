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
_NONE = torch.Tensor.__torch_dispatch__
_DEPTH = 3
"""Objects inside objects that are looked through for tensors, from an attribute on."""
_NO_HOLDERS = (nn.Module, type, FunctionType, MethodType, str, bytes, torch.dtype, torch.device, torch.Size)

_BY_ROWS = frozenset({torch.sparse_csr, torch.sparse_bsr})
_MAKERS: dict[torch.layout, Callable[..., torch.Tensor]] = {
    torch.sparse_csr: torch.sparse_csr_tensor,
    torch.sparse_csc: torch.sparse_csc_tensor,
    torch.sparse_bsr: torch.sparse_bsr_tensor,
    torch.sparse_bsc: torch.sparse_bsc_tensor,
}
_SPARSE = frozenset({torch.sparse_coo, *_MAKERS})


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
    for held in (module._parameters, module._buffers):
        for tensor in held.values():
            if tensor is not None and not is_plain(tensor):
                return False
    return True


def plain_region(tensor: torch.Tensor) -> Hashable:
    """As `region`, for a tensor that is plain."""
    count = tensor.numel()
    return (storage_key(tensor), tensor.storage_offset(), count) if count else id(tensor)


def is_sparse(tensor: torch.Tensor) -> bool:
    """Whether `tensor` has a sparse layout: COO, CSR, CSC, BSR or BSC."""
    return tensor.layout in _SPARSE


def is_wrapper(tensor: torch.Tensor) -> bool:
    """Whether `tensor` has no memory of its own, and holds others that have."""
    kind: Any = type(tensor)
    return kind not in _ORDINARY and wraps(kind)


def has_class_of_its_own(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is memory of its own, with a class that may do more with it than ordinary ones."""
    return type(tensor) not in _ORDINARY and not is_lazy(tensor) and not is_wrapper(tensor)


@cache
def wraps(kind: Any) -> bool:
    """Whether a class of tensors says what operators on it do, by operators on those that it holds."""
    place = str(getattr(kind, "__module__", ""))
    if place.startswith("torch._subclasses."):  # fakes, and what compilers trace with
        return False
    own = getattr(kind, "__torch_dispatch__", _NONE) is not _NONE
    return own or hasattr(kind, "__tensor_flatten__") or place.startswith("torch.distributed.")


def parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors of plain memory that `tensor` is stored in, each once: itself, when it is one."""
    if is_plain(tensor):
        return [tensor]
    if is_lazy(tensor):
        return []
    return list({region(part): part for part in _parts(tensor)}.values())


def _parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    if is_plain(tensor):
        yield tensor
    elif is_wrapper(tensor):
        for held in _inner(tensor).values():
            yield from _parts(held)
    elif is_sparse(tensor):
        yield from (*indices(tensor), values(tensor))
    elif tensor.is_nested:
        yield tensor.detach().values()
    else:
        yield tensor
        for held in tensors_in(vars(tensor)):
            yield from _parts(held)


def _inner(tensor: Any) -> dict[str, torch.Tensor]:
    """What a wrapper holds, by name: as it says itself, or all tensors among its attributes."""
    try:
        return {name: getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]}
    except (AttributeError, NotImplementedError):
        return {name: value for name, value in vars(tensor).items() if isinstance(value, torch.Tensor)}


def tensors_in(held: Any, depth: int = 0) -> Iterator[torch.Tensor]:
    """The tensors in attributes, in containers and plain objects there; not those of modules."""
    if isinstance(held, torch.Tensor):
        yield held
        return
    if depth > _DEPTH or isinstance(held, _NO_HOLDERS):
        return
    inside = held.values() if isinstance(held, Mapping) else held if isinstance(held, (list, tuple)) else None
    for item in vars(held).values() if inside is None and hasattr(held, "__dict__") else inside or ():
        yield from tensors_in(item, depth + 1)


def indices(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | tuple[torch.Tensor]:
    """Where the elements of a sparse tensor are."""
    if tensor.layout == torch.sparse_coo:
        return (tensor._indices(),)
    if tensor.layout in _BY_ROWS:
        return tensor.crow_indices(), tensor.col_indices()
    return tensor.ccol_indices(), tensor.row_indices()


def places(tensor: torch.Tensor) -> torch.Tensor:
    """Row and column of each element that a sparse matrix with values stores."""
    return tensor.to_sparse(layout=torch.sparse_coo).coalesce().indices()


def values(tensor: torch.Tensor) -> torch.Tensor:
    """The elements that a sparse tensor stores."""
    return tensor._values() if tensor.layout == torch.sparse_coo else tensor.values()


def like(tensor: torch.Tensor, where: tuple[torch.Tensor, ...], what: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A sparse tensor of the layout of `tensor` with these indices and values."""
    if tensor.layout == torch.sparse_coo:
        coalesced = tensor.is_coalesced()
        return torch.sparse_coo_tensor(*where, what, shape, is_coalesced=coalesced, check_invariants=False)
    return _MAKERS[tensor.layout](*where, what, shape, check_invariants=False)


def region(tensor: torch.Tensor) -> Hashable:
    """The same for two tensors that are the same memory: one object, or one region of one storage (also transposed)."""
    if is_wrapper(tensor) or is_sparse(tensor):
        return tuple(map(region, parts(tensor)))
    if tensor.layout != torch.strided or tensor.numel() == 0:
        return id(tensor)
    return storage_key(tensor), tensor.storage_offset(), tensor.numel()


def size(tensor: torch.Tensor) -> int:
    """Bytes of one tensor of plain memory."""
    return int(tensor.numel() * tensor.element_size())


def stored_bytes(tensor: torch.Tensor) -> int | None:
    """Bytes that `tensor` is stored in, when its shape and dtype do not say it."""
    return None if is_plain(tensor) else sum(map(size, parts(tensor)))


def elements(tensor: torch.Tensor) -> int:
    """The most elements that any of the parts of `tensor` has."""
    return tensor.numel() if is_plain(tensor) else max((part.numel() for part in parts(tensor)), default=0)


def shape_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape of what `tensor` stands for: a packed one says it in its attributes; ragged ones are one long row."""
    if tensor.is_nested:
        return tuple(max(parts(tensor), key=size).shape)
    if is_plain(tensor) or is_wrapper(tensor) or is_sparse(tensor):
        return tuple(tensor.shape)
    shapes = (getattr(held, "shape", None) for held in vars(tensor).values() if not isinstance(held, torch.Tensor))
    whole = (tuple(shape) for shape in shapes if isinstance(shape, (tuple, list)) and shape)
    return next((shape for shape in whole if prod(shape) > tensor.numel()), tuple(tensor.shape))


def dtype_of(tensor: torch.Tensor, count: int) -> str:
    """What each of the `count` elements that `tensor` stands for is stored as: `int8`, `int4`, `nf4`, ...

    A tensor that holds more bytes for an element than its dtype, or less of another kind, is named by its own dtype.
    """
    if is_plain(tensor) or is_sparse(tensor) or count == 0:
        return dtype_name(tensor.dtype)
    main = max(parts(tensor), key=size, default=tensor)
    if main.numel() == count:
        return dtype_name(main.dtype)
    bits = 8 * size(main) // count
    if not 0 < bits < 8:
        return dtype_name(tensor.dtype)
    named = getattr(tensor, "quant_type", None)
    if isinstance(named, str) and named.isidentifier() and named.islower():
        return named
    return dtype_name(tensor.dtype) if main.is_floating_point() else f"int{bits}"


def goes_to_meta(tensor: torch.Tensor) -> bool:
    """Whether `tensor` can be made on meta."""
    if type(tensor) not in _ORDINARY and (is_lazy(tensor) or is_sharded(tensor)):
        return True
    try:
        return tensor.is_meta or not is_wrapper(tensor) or meta_wrapper(tensor, _empty_like).is_meta
    except NotOnMeta:
        return False


def _empty_like(tensor: torch.Tensor) -> torch.Tensor:
    return meta_wrapper(tensor, _empty_like) if is_wrapper(tensor) else torch.empty_like(tensor, device="meta")


def meta_sparse(tensor: torch.Tensor, of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """`tensor` with the same number of stored elements on meta; `of` gives its parts there."""
    return like(tensor, tuple(map(of, indices(tensor))), of(values(tensor)), tensor.shape)


def _on_meta(context: Any) -> Any:
    """What a wrapper says of itself, with each device in it replaced by meta."""
    if isinstance(context, torch.device):
        return torch.device("meta")
    if type(context) is dict:
        return {name: _on_meta(item) for name, item in context.items()}
    if type(context) in (list, tuple):
        return type(context)(map(_on_meta, context))
    if is_dataclass(context) and not isinstance(context, type):
        places = {field.name: torch.device("meta") for field in fields(context) if _is_device(context, field.name)}
        return replace(context, **places) if places else context
    return context


def _is_device(holder: Any, name: str) -> bool:
    return isinstance(getattr(holder, name, None), torch.device)


def meta_wrapper(tensor: torch.Tensor, of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """`tensor` of the same class around parts on meta; `of` gives them.

    Raises:
        NotOnMeta: the class cannot be made so.
    """
    kind: Any = type(tensor)
    try:
        names, context = tensor.__tensor_flatten__()
        inner = {name: of(getattr(tensor, name)) for name in names}
        made = kind.__tensor_unflatten__(inner, _on_meta(context), tensor.size(), tensor.stride())
    except Exception as mistake:  # whatever the class raises
        raise NotOnMeta(f"{kind.__name__} cannot be made on meta: {mistake}") from mistake
    if not made.is_meta:
        raise NotOnMeta(f"{kind.__name__} cannot be made on meta")
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
