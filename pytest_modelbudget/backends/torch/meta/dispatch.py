"""Where operands live during a forward pass on the meta device.

Weights and activations have no values; ids, masks and positions keep theirs as long as they come from nothing but
constants, so that code may ask `mask.all()` or `positions.max().item()`. When both meet, the result has no values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from math import prod
from typing import Any

import torch

from pytest_modelbudget.backends.torch.compat import OpOverload, tree_map_only
from pytest_modelbudget.backends.torch.meta import sparse
from pytest_modelbudget.backends.torch.meta.cache import MetaCache
from pytest_modelbudget.backends.torch.meta.readings import Readings
from pytest_modelbudget.backends.torch.model.appearance import seems_to_be_on
from pytest_modelbudget.backends.torch.model.meta_tensors import MAX_CONSTANT_ELEMENTS, META, META_FROM_ELEMENTS
from pytest_modelbudget.backends.torch.model.pytree import lies_on_meta, storage_key, tensors
from pytest_modelbudget.backends.torch.model.stored_tensors import is_sparse
from pytest_modelbudget.backends.torch.model.unknown_values import unknown_storages, wants_more_than_meta

_SIZE_CHECK_FROM = 1_024  # operands above this could blow up (a mask of T x T): the result's size is asked for first
_MAKERS = {"empty", "zeros", "ones", "full", "arange", "linspace", "logspace", "eye", "scalar_tensor", "rand", "randn",
           "randint", "randperm", "tril_indices", "triu_indices", "empty_strided", "empty_permuted"}  # fmt: skip
# Floats that first states of recurrent layers and noise are made of.
_FLOAT_FACTORIES = {"empty", "zeros", "rand", "randn"}
_RANDOM_FACTORIES = {"rand", "randn"}
_PRODUCTS = {torch.ops.aten.mul.Tensor, torch.ops.aten.mm.default, torch.ops.aten.bmm.default}
_CTC_LOSS = torch.ops.aten._ctc_loss.Tensor
_RESIZING = {torch.ops.aten.im2col.default, torch.ops.aten.col2im.default}
_LIKE_FACTORIES = {
    "zeros_like",
    "ones_like",
    "full_like",
    "new_zeros",
    "new_ones",
    "new_full",
    "empty_like",
    "new_empty",
}


_READING_VALUES = {"_local_scalar_dense", "_to_copy"}
_SELECTING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "masked_select"}
_UNKNOWN_VALUE = "the value of a tensor is not known before the model runs on real data"
_ALL_STRIDED = {torch.strided}


class NeedsValues(RuntimeError):
    """The forward pass asked for a value that only a real run could know."""


class MetaDispatcher:
    """Runs operators on meta; integer and bool constants keep their values.

    Where `counts_all` says so, only constants of one element do: whole numbers that are made on the device are its
    memory there, as codes of quantised states are, and not what a model decides by.
    """

    layouts: Mapping[Any, Callable[[tuple[Any, ...], Any], Any]] = {}
    """What orders the results of an operator as a device does, from its arguments and what meta made of them."""

    def __init__(
        self,
        meta_cache: MetaCache | None = None,
        readings: Readings | None = None,
        counts_all: Callable[[], bool] = lambda: False,
    ) -> None:
        self._counts_all = counts_all
        self._unknown = unknown_storages()  # real storages that were written from meta: their values are not known
        self.meta_cache = MetaCache() if meta_cache is None else meta_cache
        self.operators = self.meta_cache.operators
        self._readings = Readings() if readings is None else readings
        self._pinned: list[torch.Tensor] = []  # keeps the addresses in `_unknown` from being used again

    def run(self, func: Any, operands: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of `func`, with real and meta operands brought together first."""
        if not isinstance(func, OpOverload):
            return func(*args, **kwargs)
        name = _name(func)
        if (
            operands
            and {tensor.layout for tensor in operands} != _ALL_STRIDED
            and any(tensor.is_meta for tensor in operands)
        ):
            return sparse.run(func, operands, args, kwargs)
        if not operands:
            if name == "empty" and args[0] == [0]:  # what batch norm reserves for cuDNN: nothing, at every call
                return torch.empty(0, dtype=kwargs.get("dtype"), device=META)
            return func(
                *args, **(_factory_kwargs(name, args, kwargs, self._most_elements()) if name in _MAKERS else kwargs)
            )
        without_values = sum(map(lies_on_meta, operands))
        if without_values == len(operands) and name not in _READING_VALUES:
            return self._run_on_meta(func, name, operands, args, kwargs)
        self._readings.before_operator(func, operands, args)
        out = self._run_by_values(func, name, operands, args, kwargs)
        self._readings.after_operator(func, operands, out)
        return out

    def note_read(self, tensors: list[torch.Tensor]) -> None:
        """Values of these tensors leave torch.

        Raises:
            NeedsValues: they are not known.
        """
        if not all(map(self._has_values, tensors)):
            self._readings.refused = True
        if any(self._is_unknown(tensor) for tensor in tensors):
            raise NeedsValues(_UNKNOWN_VALUE)
        self._readings.note_read(tensors)

    def _run_by_values(
        self, func: Any, name: str, operands: list[torch.Tensor], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """The result of an operator that has operands with values."""
        on_meta = any(tensor.is_meta or self._is_unknown(tensor) for tensor in operands)
        if name == "_local_scalar_dense" and on_meta:
            self._readings.refused = True
            raise NeedsValues(_UNKNOWN_VALUE)
        if name == "_to_copy":
            return self._move(func, operands[0], args, kwargs)
        if name == "_pack_padded_sequence" and self._has_values(args[1]):
            return func(*args, **kwargs)  # its kernel reads the lengths, and only cuts and joins the rest
        if not on_meta:
            return self._run_constant(func, operands, args, kwargs)
        if name == "copy_" and not operands[0].is_meta:
            self._mark_unknown(operands[0])
            return operands[0]
        if name == "embedding" and self._has_values(args[1]):
            _refuse_out_of_range(args[1], args[0].shape[0])
        if name in _SELECTING:
            func, args = self._with_indices(func, name, args)
            operands = tensors((*args, *kwargs.values()))
        return self._run_mixed(func, operands, args, kwargs)

    def _with_indices(self, func: Any, name: str, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        """The same with the places of what masks select: their number is known where the values of the masks are."""
        if name == "masked_select":
            if not self._has_values(args[1]):
                return func, args
            tensor, mask = torch.broadcast_tensors(*args[:2])
            return torch.ops.aten.index.Tensor, (tensor, self._indices(mask))
        indices = [position for index in args[1] for position in self._indices(index)]
        return func, (args[0], indices, *args[2:])

    def _indices(self, index: torch.Tensor | None) -> list[torch.Tensor | None]:
        if index is None or index.dtype not in (torch.bool, torch.uint8) or not self._has_values(index):
            return [index]
        return list(index.nonzero().unbind(1))

    def _has_values(self, tensor: torch.Tensor) -> bool:
        return not tensor.is_meta and not self._is_unknown(tensor)

    def _run_on_meta(
        self, func: Any, name: str, operands: list[torch.Tensor], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        if name in _LIKE_FACTORIES:
            out = func(*args, **{key: item for key, item in kwargs.items() if key != "device"})
            if _keeps_values(name, out.dtype, out.numel(), self._most_elements()):
                return _real_like(name, out, args, kwargs)
            return out
        return self._run_cached(func, operands, args, kwargs)

    def _most_elements(self) -> int:
        """Elements up to which a constant keeps its values."""
        return 1 if self._counts_all() else MAX_CONSTANT_ELEMENTS

    def _run_cached(
        self, func: Any, operands: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            out = self.meta_cache.run(func, operands, args, kwargs)
        except Exception as error:  # which the model may swallow
            self._readings.refused = self._readings.refused or wants_more_than_meta(error)
            raise
        if func in self.layouts:
            out = self.layouts[func](args, out)
        if func in _RESIZING:  # made in the memory of a tensor like their operand, which never shrinks: Col2Im.cu
            out.untyped_storage().resize_(max(out.nbytes, args[0].nbytes))
        return out

    def _run_mixed(self, func: Any, operands: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is _CTC_LOSS and not any(tensor.is_meta or self._is_unknown(tensor) for tensor in args[2:4]):
            func, args = _ctc_loss_with_lengths(args)
        on_meta_by_id = {id(tensor): tensor if tensor.is_meta else tensor.to(META) for tensor in operands}

        def swap(tensor: torch.Tensor) -> torch.Tensor:
            return on_meta_by_id.get(id(tensor), tensor)

        on_meta = tree_map_only(torch.Tensor, swap, (args, kwargs))
        out = self._run_cached(func, list(on_meta_by_id.values()), *on_meta)
        originals = {id(on_meta_by_id[id(tensor)]): tensor for tensor in operands if not tensor.is_meta}
        written = [originals[id(tensor)] for tensor in tensors(out) if id(tensor) in originals]
        for tensor in written:  # an in-place operator: its target stays the same object, with unknown values
            self._mark_unknown(tensor)
        return tree_map_only(torch.Tensor, lambda tensor: originals.get(id(tensor), tensor), out) if written else out

    def _run_constant(
        self, func: Any, operands: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if sum(tensor.numel() for tensor in operands) < _SIZE_CHECK_FROM or func.is_view:
            return func(*args, **kwargs)
        if func._schema.is_mutable or not self._is_too_large(func, operands, args, kwargs):
            return func(*args, **kwargs)
        return (
            sparse.run(func, operands, args, kwargs)
            if any(map(is_sparse, operands))
            else self._run_mixed(func, operands, args, kwargs)
        )

    def _is_too_large(
        self, func: Any, operands: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        """Whether a result would have too many elements for values of it to be kept."""
        run = sparse.run if any(map(is_sparse, operands)) else self.meta_cache.run
        try:
            args, kwargs = tree_map_only(torch.Tensor, sparse.to_meta, (args, kwargs))
            results = run(func, tensors((args, kwargs)), args, kwargs)
        except (RuntimeError, NotImplementedError):  # it depends on values, so it is no larger than its operands
            return False
        # Nobody asks for the values of a large table of products (positions times frequencies), and they take time.
        float_limit = META_FROM_ELEMENTS if func in _PRODUCTS and len(operands) > 1 else MAX_CONSTANT_ELEMENTS
        return any(
            tensor.numel() > (MAX_CONSTANT_ELEMENTS if _is_integral(tensor.dtype) else float_limit)
            for tensor in tensors(results)
        )

    def _move(self, func: Any, tensor: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        device = kwargs.get("device")
        kwargs_kept = {key: item for key, item in kwargs.items() if key not in ("device", "pin_memory", "non_blocking")}
        if tensor.is_meta:
            return tensor.detach() if _stays(tensor, kwargs) else func(*args, **kwargs_kept)
        if self._is_unknown(tensor):
            return func(tensor.to(META), *args[1:], **kwargs_kept)
        if device is None or device.type == "cpu":
            return func(*args, **kwargs)
        keeps_values = _is_integral(kwargs.get("dtype") or tensor.dtype) and tensor.numel() <= MAX_CONSTANT_ELEMENTS
        return func(*args, **kwargs_kept) if keeps_values else func(*args, **{**kwargs_kept, "device": META})

    def _is_unknown(self, tensor: torch.Tensor) -> bool:
        return bool(self._unknown) and storage_key(tensor) in self._unknown

    def _mark_unknown(self, tensor: torch.Tensor) -> None:
        self._unknown.add(storage_key(tensor))
        self._pinned.append(tensor)


def _stays(tensor: torch.Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether a tensor on meta is only sent to where it seems to lie already, which copies nothing."""
    device, dtype, layout = kwargs.get("device"), kwargs.get("dtype"), kwargs.get("memory_format")
    is_as_it_was = dtype in (None, tensor.dtype) and layout in (None, torch.preserve_format)
    return is_as_it_was and device is not None and seems_to_be_on(device)


class RealDispatcher(MetaDispatcher):
    """Runs operators as they are, where everything has values, and follows those that were assumed.

    Floats that layers make are no input's values any more, nor is what is made of them.
    """

    def run(self, func: Any, operands: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of `func`."""
        if not isinstance(func, OpOverload):
            return func(*args, **kwargs)
        self._readings.before_operator(func, operands, args)
        out = func(*args, **kwargs)
        if all(
            _is_integral(tensor.dtype) or tensor.dim() == 0 or self._readings.is_assumed(tensor) for tensor in operands
        ):
            self._readings.after_operator(func, operands, out)
        return out


@cache
def _name(func: Any) -> str:
    return str(func._schema.name.removeprefix("aten::"))


def _keeps_values(name: str, dtype: torch.dtype, elements: int, most: int) -> bool:
    """Whether a new constant of this many elements keeps its values, which those of `most` elements may."""
    return elements <= most and (_is_integral(dtype) or name in ("ones", "ones_like", "new_ones"))


def _factory_kwargs(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], most: int) -> dict[str, Any]:
    """`kwargs` of a factory with the device its result shall have; see `_keeps_values` for `most`."""
    device = kwargs.get("device")
    wants_device = device is not None and torch.device(device).type != "cpu"
    elements, dtype = _factory_result(name, args, kwargs)
    if wants_device:
        return {
            **kwargs,
            "device": torch.device("cpu") if _keeps_values(name, dtype, elements, most) else META,
            "pin_memory": None,
        }
    is_integral = not (dtype.is_floating_point or dtype.is_complex)
    if elements == 1 and name in _RANDOM_FACTORIES:  # `if torch.rand(1) < p`: layers that are dropped by chance
        return kwargs
    if name == "empty" and "pin_memory" not in kwargs and elements <= MAX_CONSTANT_ELEMENTS:
        return kwargs  # asked for by torch's own code, which writes its numbers past the dispatcher
    if not is_integral and name in _FLOAT_FACTORIES:
        return {**kwargs, "device": META}
    return (
        {**kwargs, "device": META}
        if elements > (MAX_CONSTANT_ELEMENTS if is_integral else META_FROM_ELEMENTS)
        else kwargs
    )


def _factory_result(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, torch.dtype]:
    """Elements and dtype of what a factory makes."""
    dtype = kwargs.get("dtype")
    if name in ("arange", "linspace", "logspace"):
        all_ints = name == "arange" and all(isinstance(item, int) for item in args)
        return _range_size(name, args), dtype or (torch.int64 if all_ints else torch.get_default_dtype())
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


def _range_size(name: str, args: tuple[Any, ...]) -> int:
    if name != "arange":
        return int(args[2])
    start, end, step = (0, args[0], 1) if len(args) == 1 else (args[0], args[1], args[2] if len(args) > 2 else 1)
    return max(0, -int(-(end - start) // step))


def _ctc_loss_with_lengths(args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """A CTC loss with its lengths as numbers: the size of its table follows from the longest."""
    scores, targets, lengths, target_lengths, *rest = args
    return torch.ops.aten._ctc_loss.default, (scores, targets, lengths.tolist(), target_lengths.tolist(), *rest)


def _real_like(name: str, out: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The constant that `zeros_like` and its kind would have made on a real device."""
    value = 1 if "ones" in name else args[-1] if "full" in name else 0
    return torch.full(tuple(out.shape), value, dtype=out.dtype, device="cpu")


def _refuse_out_of_range(ids: torch.Tensor, table_rows: int) -> None:
    """A table on meta is not looked up in, so it would not notice."""
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < table_rows:
        raise IndexError(f"index out of range: ids from {ids.min()} to {ids.max()} are looked up in {table_rows} rows")


def _is_integral(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex)
