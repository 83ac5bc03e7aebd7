"""What products of sparse operands cost: it depends on the elements that they store, so no formula of shapes tells."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch

from pytest_modelbudget.backends.torch.model import stored_tensors


def terms(matrix: Any) -> int:
    """Elements of an operand that take part in a product: of a sparse one those that it stores."""
    return int(prod((matrix if matrix.layout == torch.strided else stored_tensors.stored_values(matrix)).shape))


def matrix_product(left: Any, right: Any) -> int:
    """`(m, k) x (k, n)`: m * k * n multiply-adds; with a sparse operand, those of the elements that it stores."""
    if right.layout == torch.strided:
        return int(2 * terms(left) * right.shape[-1])
    return int(2 * terms(right) * left.shape[-2]) if left.layout == torch.strided else _sparse_product(left, right)


def _sparse_product(left: Any, right: Any) -> int:
    """Two sparse matrices: each stored element of a column of `left` meets those of the same row of `right`."""
    columns, rows = (stored_tensors.sparse_positions(matrix)[axis] for matrix, axis in ((left, 1), (right, 0)))
    matches = torch.bincount(columns, minlength=left.shape[1]) * torch.bincount(rows, minlength=left.shape[1])
    return 2 * int(matches.sum())


def _product(left: Any, right: Any, *_: Any) -> int:
    return matrix_product(left, right)


def _sum_with_product(bias: Any, left: Any, right: Any, *_: Any) -> int:
    return matrix_product(left, right)


def _product_with_vector(matrix: Any, *_: Any) -> int:
    return 2 * terms(matrix)


def _sum_with_product_with_vector(bias: Any, matrix: Any, *_: Any) -> int:
    return 2 * terms(matrix)


def _sampled_product(bias: Any, left: Any, *_: Any) -> int:
    """`(m, k) x (k, n)` where the sparse `bias` stores an element: k multiply-adds for each."""
    return int(2 * terms(bias) * left.shape[-1])


SPARSE_PRODUCTS: dict[str, Callable[..., int]] = {
    "aten.mm": _product,
    "aten.bmm": _product,
    "aten._int_mm": _product,
    "aten._scaled_mm": _product,
    "aten.addmm": _sum_with_product,
    "aten.addbmm": _sum_with_product,
    "aten.baddbmm": _sum_with_product,
    "aten._addmm_activation": _sum_with_product,
    "aten.mv": _product_with_vector,
    "aten.addmv": _sum_with_product_with_vector,
    "aten._sparse_addmm": _sum_with_product,
    "aten._sparse_mm_reduce_impl": _product,
    "aten._sparse_sparse_matmul": _product,
    "aten.sparse_sampled_addmm": _sampled_product,
    "aten.hspmm": _product,
}
"""By the names of operators, what they cost where an operand is sparse; each is called with their arguments."""
