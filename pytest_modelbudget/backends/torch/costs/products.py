"""Multiply-adds, times two, of operators of torch, from the shapes of their operands.

Each formula is called with the operator's arguments, and `out_val`, what it gave.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch

from pytest_modelbudget.backends.costs.formulas import triangular_systems
from pytest_modelbudget.backends.torch.costs.stored_products import matrix_product

Formula = Callable[..., int]


def size(tensor: Any) -> int:
    """The elements of a tensor."""
    return int(prod(tensor.shape))


def mm(left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    """`(m, k) x (k, n)`: m * k * n multiply-adds; with a sparse operand, those of the elements that it stores."""
    return matrix_product(left, right)


def matmul_to_output(left: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """Each output element is a sum over the last dimension of the left operand, however the weight is packed."""
    return int(2 * size(out_val) * left.shape[-1])


def _pdist(rows: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """Distances of each pair of rows, without its mirror image."""
    return int(2 * size(out_val) * rows.shape[-1])


def _cdist_backward(grad: Any, left: Any, *args: Any, **kwargs: Any) -> int:
    """One multiply-add for each coordinate of each pair."""
    return int(2 * size(grad) * left.shape[-1])


def _linear_combination(parts: Any, coefficients: Any, *args: Any, **kwargs: Any) -> int:
    """`(m, n)` coefficients of n parts."""
    return int(2 * size(parts) * coefficients.shape[0])


def _foreach_mm(left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    return sum(map(mm, left, right))


def _left_of_packed(packed: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """Each output element is a sum over the rows of the right operand, which stands before the output's columns."""
    right = next(operand for operand in reversed(args) if isinstance(operand, torch.Tensor) and operand.dim() == 2)
    return int(2 * size(out_val) * right.shape[0])


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    """Scores and their product with the values, the full square; shapes are `(batch, heads, positions, width)`."""
    return int(2 * prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    """Five products: the scores once more, the gradients of q and k; those of the scores and of v."""
    return int(2 * prod(query.shape[:-1]) * key.shape[-2] * (3 * query.shape[-1] + 2 * value.shape[-1]))


def _multi_head(query: Any, key: Any, value: Any, width: int, *args: Any, **kwargs: Any) -> int:
    """`nn.MultiheadAttention` in one: three projections in, the full square, one projection out."""
    projections = 2 * size(query) + size(key) + size(value)
    return int(2 * width * projections + 4 * size(query) * key.shape[-2])


def _encoder_layer(data: Any, width: int, *args: Any, **kwargs: Any) -> int:
    """`nn.TransformerEncoderLayer` in one: attention, and two products with the inner width."""
    inner = args[12].shape[0]
    return _multi_head(data, data, data, width) + 4 * size(data) * int(inner)


def _recurrent(data: Any, *args: Any, **kwargs: Any) -> int:
    """Each step multiplies its input and its state with all matrices; biases have one dimension."""
    weights = [weight for value in args[:4] for weight in (value if isinstance(value, (list, tuple)) else (value,))]
    matrices = [weight for weight in weights if isinstance(weight, torch.Tensor) and weight.dim() == 2]
    return int(2 * prod(data.shape[:-1]) * sum(map(size, matrices)))


def _packed_recurrent(data: Any, *args: Any, **kwargs: Any) -> int:
    """As of floats. Packed matrices are opaque: their sizes follow from the states, and how layers feed each other.

    A packed sequence has the sizes of its batches before the states; an LSTM has a list of states, a GRU has one.
    """
    sequence = isinstance(args[0], torch.Tensor) and not args[0].is_floating_point()
    states, _, _, layers, _, _, bidirectional = args[1:8] if sequence else args[:7]
    gates, state = (3, states) if isinstance(states, torch.Tensor) else (4, states[0])
    hidden, directions = state.shape[-1], 1 + bidirectional
    widths = [data.shape[-1], *[directions * hidden] * (layers - 1)]
    return sum(2 * prod(data.shape[:-1]) * directions * gates * hidden * (width + hidden) for width in widths)


def _packed_cell(data: Any, state: Any, packed: Any, packed_hidden: Any, bias: Any, *args: Any, **kwargs: Any) -> int:
    """One step: the input and the state meet a row of weights for each bias."""
    hidden = state if isinstance(state, torch.Tensor) else state[0]
    return int(2 * prod(data.shape[:-1]) * size(bias) * (data.shape[-1] + hidden.shape[-1]))


def _solve_triangular(matrix: Any, right: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    return triangular_systems(matrix.shape[-1], size(out_val))


def _solve_triangular_of(right: Any, matrix: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    return _solve_triangular(matrix, right, out_val=out_val[0])


def _solve_factored(matrix: Any, pivots: Any, right: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """Two triangular systems."""
    return 2 * triangular_systems(matrix.shape[-1], size(out_val))


def _solve_cholesky(right: Any, matrix: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """Two triangular systems."""
    return 2 * triangular_systems(matrix.shape[-1], size(out_val))


def _gathering_conv(data: Any, weight: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """Each output element is a sum over one filter."""
    return int(2 * size(out_val) * prod(weight.shape[1:]))


def _spreading_conv(data: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    """Each input element is spread over one filter."""
    return int(2 * size(data) * prod(weight.shape[1:]))


def _conv_tbc(data: Any, weight: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """Filters are `(taps, channels, filters)`."""
    return int(2 * size(out_val) * prod(weight.shape[:-1]))


def _linear_cross_entropy(data: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    """The logits, chunk by chunk; with gradients, those of the input and of the weight are made on the way."""
    gradients = sum(map(bool, args[10:12]))
    return int(2 * size(data) * weight.shape[0] * (1 + gradients))


_GATHERING = """
    cudnn_convolution _slow_conv2d_forward _conv_depthwise2d conv_depthwise3d slow_conv3d_forward slow_conv_dilated2d
    slow_conv_dilated3d _nnpack_spatial_convolution mkldnn_convolution cudnn_convolution_relu
    cudnn_convolution_add_relu miopen_convolution miopen_convolution_relu miopen_convolution_add_relu
    miopen_depthwise_convolution _mps_convolution
"""
_SPREADING = """
    cudnn_convolution_transpose miopen_convolution_transpose _mps_convolution_transpose slow_conv_transpose2d
    slow_conv_transpose3d
"""
_ATTENTION = """
    _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_fused_attention_overrideable
    _scaled_dot_product_attention_math_for_mps _triton_scaled_dot_attention
"""
_RECURRENT = "mkldnn_rnn_layer _cudnn_rnn miopen_rnn _lstm_mps"
_PACKED = """
    mkldnn_linear _mixed_dtypes_linear _sparse_semi_structured_linear _dyn_quant_matmul_4bit
    _weight_int4pack_mm_with_scales_and_zeros _scaled_mm_v2 _scaled_grouped_mm_v2
"""

PRODUCTS: dict[str, Formula] = {
    "aten._cdist_backward": _cdist_backward,
    "aten._pdist_forward": _pdist,
    "aten._pdist_backward": _cdist_backward,
    "aten._compute_linear_combination": _linear_combination,
    "aten._foreach_mm": _foreach_mm,
    "aten.linalg_solve_triangular": _solve_triangular,
    "aten.triangular_solve": _solve_triangular_of,
    "aten.cholesky_solve": _solve_cholesky,
    "aten._cholesky_solve_helper": _solve_cholesky,
    "aten.linalg_lu_solve": _solve_factored,
    "aten.linalg_ldl_solve": _solve_factored,
    "aten.conv_tbc": _conv_tbc,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "aten._native_multi_head_attention": _multi_head,
    "aten._transformer_encoder_layer_fwd": _encoder_layer,
    "aten._sparse_semi_structured_mm": _left_of_packed,
    "aten._sparse_semi_structured_addmm": _left_of_packed,
    "aten._cslt_sparse_mm": _left_of_packed,
    "torchvision.deform_conv2d": _gathering_conv,
    "torch_nn._linear_cross_entropy_batch_chunked": _linear_cross_entropy,
    "torch_nn._linear_cross_entropy_batch_chunked_no_reduction": _linear_cross_entropy,
    **{f"aten.{name}": _gathering_conv for name in _GATHERING.split()},
    **{f"aten.{name}": _spreading_conv for name in _SPREADING.split()},
    **{f"aten.{name}": _attention for name in _ATTENTION.split()},
    "flex_attention": _attention,
    **{f"aten.{name}": _recurrent for name in _RECURRENT.split()},
    "aten.quantized_lstm": _packed_recurrent,
    "aten.quantized_gru": _packed_recurrent,
    **{f"quantized.quantized_{name}_cell_dynamic": _packed_cell for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    **{f"aten.{name}": matmul_to_output for name in _PACKED.split()},
}
"""Formulas of solvers, of kernels that some devices have of their own, and of what is met seldom."""
