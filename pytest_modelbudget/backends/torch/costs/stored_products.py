"""What operators cost on weights that are stored otherwise: on sparse ones, and on those of quantising libraries."""

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


def _product(left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    return matrix_product(left, right)


def _sum_with_product(bias: Any, left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    return matrix_product(left, right)


def _sampled_product(bias: Any, left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    """`(m, k) x (k, n)` where the sparse `bias` stores an element: k multiply-adds for each."""
    return int(2 * terms(bias) * left.shape[-1])


def _to_output(left: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """Each output element is a sum over the last dimension of the left operand, however the weight is packed."""
    out = out_val[0] if isinstance(out_val, (tuple, list)) else out_val
    return int(2 * prod(out.shape) * left.shape[-1])


_OF_LIBRARIES = """
    bitsandbytes.int8_linear_matmul bitsandbytes.int8_scaled_mm bitsandbytes.int8_mixed_scaled_mm bitsandbytes.gemm_4bit
    bitsandbytes.gemv_4bit torchao.int_matmul torchao.int_scaled_matmul torchao.da8w4_linear_cpu
    torchao.float8_linear_cpu
"""
STORED_PRODUCTS: dict[str, Callable[..., int]] = {
    "aten._sparse_addmm": _sum_with_product,
    "aten._sparse_mm_reduce_impl": _product,
    "aten._sparse_sparse_matmul": _product,
    "aten.sparse_sampled_addmm": _sampled_product,
    "aten.hspmm": _product,
    **dict.fromkeys(_OF_LIBRARIES.split(), _to_output),
}
"""Products by the names of their operators; those of libraries take rows of input features and give rows of output."""

_CHANGES = """
    bitsandbytes.int8_vectorwise_quant bitsandbytes.int8_vectorwise_dequant bitsandbytes.int8_double_quant
    bitsandbytes.int8_mm_dequant bitsandbytes.quantize_4bit bitsandbytes.dequantize_4bit
    bitsandbytes.quantize_blockwise bitsandbytes.dequantize_blockwise torchao.choose_qparams_affine
    torchao.choose_scale_float8 torchao.quantize_affine torchao.dequantize_affine
    torchao.quantize_affine_float8_non_decomposed torchao.dequantize_affine_float8_non_decomposed
    quantized_decomposed.choose_qparams quantized_decomposed.choose_qparams_symmetric
    quantized_decomposed.choose_qparams_per_token quantized_decomposed.choose_qparams_per_token_asymmetric
    quantized_decomposed.convert_element_type
"""
_FORMS = ("per_tensor", "per_channel", "per_token", "per_channel_group", "per_block")
CHANGES_OF_FORM = frozenset(
    {*_CHANGES.split()}
    | {f"quantized_decomposed.{kind}quantize_{form}" for kind in ("", "de", "fake_") for form in _FORMS}
)
"""Operators of libraries that only quantise, or undo it: they count zero."""

_SPARSE = """
    _to_dense to_dense _to_sparse to_sparse _to_sparse_csr _to_sparse_csc _to_sparse_bsr _to_sparse_bsc _coalesce
    _coalesced sparse_mask sparse_resize sparse_resize_and_clear _sparse_mask_projection _indices _values indices values
    crow_indices col_indices ccol_indices row_indices sparse_coo_tensor _sparse_coo_tensor_unsafe
    _sparse_coo_tensor_with_dims _sparse_coo_tensor_with_dims_and_tensors sparse_compressed_tensor
    _sparse_compressed_tensor_unsafe _sparse_compressed_tensor_with_dims sparse_csr_tensor sparse_csc_tensor
    sparse_bsr_tensor sparse_bsc_tensor _validate_sparse_coo_tensor_args _validate_sparse_compressed_tensor_args
    _sparse_sum _sparse_softmax _sparse_log_softmax _sparse_broadcast_to
"""
SPARSE_FORMS = frozenset(_SPARSE.split())
"""Names of the `aten` operators that make sparse tensors, bring them into other forms, or ask for their parts: zero."""
