"""Where operands live during a forward pass on the meta device.

Weights and activations have no values; ids, masks and positions keep theirs as long as they come from nothing but
constants, so that code may ask `mask.all()` or `positions.max().item()`. When both meet, the result has no values.
"""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any

import torch

from pytest_modelbudget.backends.torch.compat import OpOverload, tree_map_only
from pytest_modelbudget.backends.torch.meta import sparse
from pytest_modelbudget.backends.torch.meta.cache import Memo
from pytest_modelbudget.backends.torch.meta.readings import Readings
from pytest_modelbudget.backends.torch.model.meta_tensors import CONSTANT, LARGE, META
from pytest_modelbudget.backends.torch.model.pytree import lies_on_meta, storage_key, tensors
from pytest_modelbudget.backends.torch.model.stored_tensors import is_sparse
from pytest_modelbudget.backends.torch.model.unknown_values import marks, wants_more_than_meta

_WATCHED = 1_024  # operands above this could blow up (a mask of T x T): the result's size is asked for first
_MAKERS = {"empty", "zeros", "ones", "full", "arange", "linspace", "logspace", "eye", "scalar_tensor", "rand", "randn",
           "randint", "randperm", "tril_indices", "triu_indices", "empty_strided", "empty_permuted"}  # fmt: skip
# Floats that first states of recurrent layers and noise are made of.
_STATES = {"empty", "zeros", "rand", "randn"}
_CHANCE = {"rand", "randn"}
_PRODUCTS = {torch.ops.aten.mul.Tensor, torch.ops.aten.mm.default, torch.ops.aten.bmm.default}
_CTC_LOSS = torch.ops.aten._ctc_loss.Tensor
_LIKE = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "empty_like", "new_empty"}


_ABOUT_VALUES = {"_local_scalar_dense", "_to_copy"}
_SELECTING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "masked_select"}
_UNKNOWN = "the value of a tensor is not known before the model runs on real data"
_ALL_STRIDED = {torch.strided}


class NeedsValues(RuntimeError):
    """The forward pass asked for a value that only a real run could know."""


class Placing:
    """Runs operators on meta; integer and bool constants keep their values."""

    def __init__(self, memo: Memo | None = None, readings: Readings | None = None) -> None:
        self._stale = marks()  # real storages that were written from meta: their values are not known
        self.memo = Memo() if memo is None else memo
        self.operators = self.memo.operators
        self._readings = Readings() if readings is None else readings
        self._alive: list[torch.Tensor] = []  # keeps the addresses in `_stale` from being used again

    def run(self, func: Any, read: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of `func`, with real and meta operands brought together first."""
        if not isinstance(func, OpOverload):
            return func(*args, **kwargs)
        name = _name(func)
        if read and {tensor.layout for tensor in read} != _ALL_STRIDED and any(tensor.is_meta for tensor in read):
            return sparse.run(func, read, args, kwargs)
        if not read:
            if name == "empty" and args[0] == [0]:  # what batch norm reserves for cuDNN: nothing, at every call
                return torch.empty(0, dtype=kwargs.get("dtype"), device=META)
            return func(*args, **(_placed(name, args, kwargs) if name in _MAKERS else kwargs))
        without_values = sum(map(lies_on_meta, read))
        if without_values == len(read) and name not in _ABOUT_VALUES:
            return self._on_meta(func, name, read, args, kwargs)
        self._readings.before(func, read, args)
        out = self._by_values(func, name, read, args, kwargs)
        self._readings.after(func, read, out)
        return out

    def ask(self, asked: list[torch.Tensor]) -> None:
        """Values of these tensors leave torch.

        Raises:
            NeedsValues: they are not known.
        """
        if not all(map(self._has_values, asked)):
            self._readings.refused = True
        if any(self._is_stale(tensor) for tensor in asked):
            raise NeedsValues(_UNKNOWN)
        self._readings.ask(asked)

    def _by_values(self, func: Any, name: str, read: list[torch.Tensor], args: Any, kwargs: dict[str, Any]) -> Any:
        """The result of an operator that has operands with values."""
        on_meta = any(tensor.is_meta or self._is_stale(tensor) for tensor in read)
        if name == "_local_scalar_dense" and on_meta:
            self._readings.refused = True
            raise NeedsValues(_UNKNOWN)
        if name == "_to_copy":
            return self._moved(func, read[0], args, kwargs)
        if name == "_pack_padded_sequence" and self._has_values(args[1]):
            return func(*args, **kwargs)  # its kernel reads the lengths, and only cuts and joins the rest
        if not on_meta:
            return self._constant(func, read, args, kwargs)
        if name == "copy_" and not read[0].is_meta:
            self._mark(read[0])
            return read[0]
        if name == "embedding" and self._has_values(args[1]):
            _refuse_out_of_range(args[1], args[0].shape[0])
        if name in _SELECTING:
            func, args = self._by_places(func, name, args)
            read = tensors((*args, *kwargs.values()))
        return self._mixed(func, read, args, kwargs)

    def _by_places(self, func: Any, name: str, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        """The same with the places of what masks select: their number is known where the values of the masks are."""
        if name == "masked_select":
            if not self._has_values(args[1]):
                return func, args
            tensor, mask = torch.broadcast_tensors(*args[:2])
            return torch.ops.aten.index.Tensor, (tensor, self._places(mask))
        indices = [place for index in args[1] for place in self._places(index)]
        return func, (args[0], indices, *args[2:])

    def _places(self, index: torch.Tensor | None) -> list[torch.Tensor | None]:
        if index is None or index.dtype not in (torch.bool, torch.uint8) or not self._has_values(index):
            return [index]
        return list(index.nonzero().unbind(1))

    def _has_values(self, tensor: torch.Tensor) -> bool:
        return not tensor.is_meta and not self._is_stale(tensor)

    def _on_meta(self, func: Any, name: str, read: list[torch.Tensor], args: Any, kwargs: dict[str, Any]) -> Any:
        if name in _LIKE:
            out = func(*args, **{key: item for key, item in kwargs.items() if key != "device"})
            if _keeps(name, out.dtype, out.numel()):
                return _real_like(name, out, args, kwargs)
            return out
        return self._from_memo(func, read, args, kwargs)

    def _from_memo(self, func: Any, read: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return self.memo.run(func, read, args, kwargs)
        except Exception as mistake:  # which the model may swallow
            self._readings.refused = self._readings.refused or wants_more_than_meta(mistake)
            raise

    def _mixed(self, func: Any, read: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is _CTC_LOSS and not any(tensor.is_meta or self._is_stale(tensor) for tensor in args[2:4]):
            func, args = _with_lengths(args)
        moved = {id(tensor): tensor if tensor.is_meta else tensor.to(META) for tensor in read}

        def swap(tensor: torch.Tensor) -> torch.Tensor:
            return moved.get(id(tensor), tensor)

        on_meta = tree_map_only(torch.Tensor, swap, (args, kwargs))
        out = self._from_memo(func, list(moved.values()), *on_meta)
        back = {id(moved[id(tensor)]): tensor for tensor in read if not tensor.is_meta}
        written = [back[id(tensor)] for tensor in tensors(out) if id(tensor) in back]
        for tensor in written:  # an in-place operator: its target stays the same object, with unknown values
            self._mark(tensor)
        return tree_map_only(torch.Tensor, lambda tensor: back.get(id(tensor), tensor), out) if written else out

    def _constant(self, func: Any, read: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if sum(tensor.numel() for tensor in read) < _WATCHED or func.is_view:
            return func(*args, **kwargs)
        if func._schema.is_mutable or not self._is_too_large(func, read, args, kwargs):
            return func(*args, **kwargs)
        return (
            sparse.run(func, read, args, kwargs) if any(map(is_sparse, read)) else self._mixed(func, read, args, kwargs)
        )

    def _is_too_large(self, func: Any, read: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a result would have too many elements for values of it to be kept."""
        run = sparse.run if any(map(is_sparse, read)) else self.memo.run
        try:
            args, kwargs = tree_map_only(torch.Tensor, sparse.to_meta, (args, kwargs))
            meta = run(func, tensors((args, kwargs)), args, kwargs)
        except (RuntimeError, NotImplementedError):  # it depends on values, so it is no larger than its operands
            return False
        # Nobody asks for the values of a large table of products (positions times frequencies), and they take time.
        most = LARGE if func in _PRODUCTS and len(read) > 1 else CONSTANT
        return any(tensor.numel() > (CONSTANT if _whole(tensor.dtype) else most) for tensor in tensors(meta))

    def _moved(self, func: Any, tensor: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        device = kwargs.get("device")
        kept = {key: item for key, item in kwargs.items() if key not in ("device", "pin_memory", "non_blocking")}
        if tensor.is_meta:
            return func(*args, **kept)
        if self._is_stale(tensor):
            return func(tensor.to(META), *args[1:], **kept)
        if device is None or device.type == "cpu":
            return func(*args, **kwargs)
        whole = _whole(kwargs.get("dtype") or tensor.dtype) and tensor.numel() <= CONSTANT
        return func(*args, **kept) if whole else func(*args, **{**kept, "device": META})

    def _is_stale(self, tensor: torch.Tensor) -> bool:
        return bool(self._stale) and storage_key(tensor) in self._stale

    def _mark(self, tensor: torch.Tensor) -> None:
        self._stale.add(storage_key(tensor))
        self._alive.append(tensor)


class Following(Placing):
    """Runs operators as they are, where everything has values, and follows those that were assumed.

    Floats that layers make are no input's values any more, nor is what is made of them.
    """

    def run(self, func: Any, read: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of `func`."""
        if not isinstance(func, OpOverload):
            return func(*args, **kwargs)
        self._readings.before(func, read, args)
        out = func(*args, **kwargs)
        if all(_whole(tensor.dtype) or tensor.dim() == 0 or self._readings.holds(tensor) for tensor in read):
            self._readings.after(func, read, out)
        return out


@cache
def _name(func: Any) -> str:
    return str(func._schema.name.removeprefix("aten::"))


def _keeps(name: str, dtype: torch.dtype, elements: int) -> bool:
    """Whether a new constant of this many elements keeps its values."""
    return elements <= CONSTANT and (_whole(dtype) or name in ("ones", "ones_like", "new_ones"))


def _placed(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """`kwargs` of a factory with the device its result shall have."""
    device = kwargs.get("device")
    asked_meta = device is not None and torch.device(device).type != "cpu"
    elements, dtype = _made(name, args, kwargs)
    if asked_meta:
        return {**kwargs, "device": torch.device("cpu") if _keeps(name, dtype, elements) else META, "pin_memory": None}
    whole = not (dtype.is_floating_point or dtype.is_complex)
    if elements == 1 and name in _CHANCE:  # `if torch.rand(1) < p`: layers that are dropped by chance
        return kwargs
    if name == "empty" and "pin_memory" not in kwargs and elements <= CONSTANT:
        return kwargs  # asked for by torch's own code, which writes its numbers past the dispatcher
    if not whole and name in _STATES:
        return {**kwargs, "device": META}
    return {**kwargs, "device": META} if elements > (CONSTANT if whole else LARGE) else kwargs


def _made(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, torch.dtype]:
    """Elements and dtype of what a factory makes."""
    dtype = kwargs.get("dtype")
    if name in ("arange", "linspace", "logspace"):
        whole = name == "arange" and all(isinstance(item, int) for item in args)
        return _counted(name, args), dtype or (torch.int64 if whole else torch.get_default_dtype())
    if name in ("randint", "randperm", "tril_indices", "triu_indices"):
        dtype = dtype or torch.int64
    if name == "scalar_tensor":
        return 1, dtype or torch.get_default_dtype()
    sizes = next(
        (item for item in args if isinstance(item, (list, tuple))), [item for item in args[:2] if isinstance(item, int)]
    )
    if name == "eye" and len(sizes) == 1:
        sizes = [sizes[0], sizes[0]]
    if name == "full" and dtype is None:
        dtype = torch.bool if isinstance(args[1], bool) else torch.int64 if isinstance(args[1], int) else None
    return prod(sizes), dtype or torch.get_default_dtype()


def _counted(name: str, args: tuple[Any, ...]) -> int:
    if name != "arange":
        return int(args[2])
    start, end, step = (0, args[0], 1) if len(args) == 1 else (args[0], args[1], args[2] if len(args) > 2 else 1)
    return max(0, -int(-(end - start) // step))


def _with_lengths(args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """A CTC loss with its lengths as numbers: the size of its table follows from the longest."""
    scores, targets, lengths, target_lengths, *rest = args
    return torch.ops.aten._ctc_loss.default, (scores, targets, lengths.tolist(), target_lengths.tolist(), *rest)


def _real_like(name: str, out: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The constant that `zeros_like` and its kind would have made on a real device."""
    value = 1 if "ones" in name else args[-1] if "full" in name else 0
    return torch.full(tuple(out.shape), value, dtype=out.dtype, device="cpu")


def _refuse_out_of_range(ids: torch.Tensor, rows: int) -> None:
    """A table on meta is not looked up in, so it would not notice."""
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < rows:
        raise IndexError(f"index out of range: ids from {ids.min()} to {ids.max()} are looked up in {rows} rows")


def _whole(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex)
