"""Operators on sparse tensors on the meta device, for which torch has hardly any: how many elements are stored is kept.

A product with a dense tensor has the shape that it has for dense ones. What stores as many elements as before (a
transpose, a copy, a product with a number) is made of the same parts. All else depends on where the elements are.
"""

from __future__ import annotations

from typing import Any

import torch

from pytest_modelbudget.backends.torch.compat import tree_map_only
from pytest_modelbudget.backends.torch.model.meta_tensors import META
from pytest_modelbudget.backends.torch.model.stored_tensors import (
    is_sparse,
    meta_sparse,
    sparse_indices,
    sparse_like,
    stored_values,
)

_TO_DENSE = frozenset({"mm", "addmm", "mv", "addmv", "bmm", "baddbmm", "_sparse_addmm", "_to_dense", "to_dense"})
_ALIASES = frozenset({"detach", "alias", "t", "transpose", "lift_fresh"})
_COPIES = frozenset({"clone", "_to_copy"})
_METADATA_QUERIES = frozenset(
    {"_indices", "_values", "indices", "values", "crow_indices", "col_indices", "ccol_indices", "row_indices", "_nnz",
     "is_coalesced", "sparse_dim", "dense_dim", "_coalesced_"}
)  # fmt: skip
_TRANSPOSED_LAYOUTS = {
    torch.sparse_csr: torch.sparse_csc, torch.sparse_csc: torch.sparse_csr,
    torch.sparse_bsr: torch.sparse_bsc, torch.sparse_bsc: torch.sparse_bsr,
}  # fmt: skip


def run(func: Any, operands: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of `func`, some of whose operands are sparse and some without values.

    Raises:
        NotImplementedError: it depends on where the elements are.
    """
    name = func._schema.name.removeprefix("aten::")
    if name in _METADATA_QUERIES or not any(map(is_sparse, operands)):
        return func(*args, **kwargs)
    dense = [tensor for tensor in operands if not is_sparse(tensor)]
    if len(operands) - len(dense) == 1:
        if name == "add_" and not is_sparse(args[0]):  # as optimizers add sparse gradients: row by row, without a copy
            return args[0]
        if name in _TO_DENSE or (name == "_sparse_mm_reduce_impl" and dense):
            return _run_on_dense(func, name, operands, args, kwargs)
        pointwise = torch.Tag.pointwise in func.tags and _are_scalars(dense) and not func._schema.is_mutable
        if name in _ALIASES or name in _COPIES or pointwise:
            return _with_as_many_elements(func, name, args, kwargs)
    raise NotImplementedError(f"{name} of sparse tensors is data-dependent: only a run with values can tell its result")


def to_meta(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` without values; a sparse one stores as many elements as before."""
    if tensor.is_meta:
        return tensor
    return meta_sparse(tensor, lambda part: part.to(META)) if is_sparse(tensor) else tensor.to(META)


def _dense_stand_in(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=META) if is_sparse(tensor) else to_meta(tensor)


def _run_on_dense(
    func: Any, name: str, operands: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if name == "_sparse_mm_reduce_impl":
        left, right = map(_dense_stand_in, operands)
        return left @ right, torch.empty(0, dtype=torch.int64, device=META)
    if name in ("_to_dense", "to_dense"):
        dtype = next((item for item in (*args[1:], kwargs.get("dtype")) if isinstance(item, torch.dtype)), None)
        return _dense_stand_in(operands[0]).to(dtype or operands[0].dtype)
    if name == "_sparse_addmm":
        func = torch.ops.aten.addmm.default
    return func(
        *tree_map_only(torch.Tensor, _dense_stand_in, args), **tree_map_only(torch.Tensor, _dense_stand_in, kwargs)
    )


def _are_scalars(tensors: list[torch.Tensor]) -> bool:
    return all(tensor.dim() == 0 for tensor in tensors)


def _with_as_many_elements(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """As many elements at other places, of other values or of another dtype."""
    tensor = to_meta(next(item for item in args if isinstance(item, torch.Tensor) and is_sparse(item)))
    dense = func(
        *tree_map_only(torch.Tensor, _dense_stand_in, args), **tree_map_only(torch.Tensor, _dense_stand_in, kwargs)
    )
    positions, elements = sparse_indices(tensor), stored_values(tensor)
    if name not in _ALIASES:
        elements = torch.empty_strided(elements.shape, elements.stride(), dtype=dense.dtype, device=META)
        positions = tuple(map(torch.empty_like, positions)) if name in _COPIES else positions
    if name in ("t", "transpose") and tensor.layout in _TRANSPOSED_LAYOUTS:
        return func(tensor, *args[1:], **kwargs)
    return sparse_like(tensor, positions, elements, dense.shape)
