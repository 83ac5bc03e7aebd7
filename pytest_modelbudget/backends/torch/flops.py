"""What an operator costs: a formula, zero by rule, or not known.

A multiply-add counts 2. Attention (the full square, also with a causal mask) and what a user registered with torch
use the formulas of `torch.utils.flop_counter`; matrix products, convolutions and what it lacks are below.
Zero by rule: everything elementwise, and the operators of `ZERO`. An operator that is in neither is reported by
name and makes the sum a lower bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, log2, prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from pytest_modelbudget.backends.torch.stored_products import (
    CHANGES_OF_FORM,
    SPARSE_FORMS,
    STORED_PRODUCTS,
    matrix_product,
    terms,
)

Formula = Callable[..., int]

_NORMALISATION = """
    native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _native_batch_norm_legit_functional
    _batch_norm_no_update _batch_norm_with_update _batch_norm_with_update_functional batch_norm_elemt batch_norm_stats
    cudnn_batch_norm quantized_batch_norm native_layer_norm native_group_norm _fused_rms_norm _weight_norm_interface
    native_norm renorm native_dropout _masked_scale dropout
"""
_SOFTMAX_AND_LOSSES = """
    _softmax _log_softmax _safe_softmax _masked_softmax logsumexp _logcumsumexp logcumsumexp log_sigmoid_forward
    nll_loss_forward nll_loss2d_forward mse_loss smooth_l1_loss huber_loss soft_margin_loss multi_margin_loss
    multilabel_margin_loss_forward binary_cross_entropy binary_cross_entropy_with_logits
"""
_POOLING_AND_RESAMPLING = """
    max_pool2d_with_indices max_pool3d_with_indices avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
    adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d max_unpool2d max_unpool3d
    quantized_max_pool1d quantized_max_pool2d quantized_max_pool3d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d
    upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
    _upsample_lanczos2d_aa grid_sampler_2d grid_sampler_3d _grid_sampler_2d_cpu_fallback cudnn_grid_sampler
    affine_grid_generator im2col col2im
"""
_LOOK_UPS_AND_MOVES = """
    embedding _embedding_bag _embedding_bag_forward_only embedding_renorm index index_select index_put _index_put_impl
    index_add index_copy index_fill index_reduce _unsafe_index _unsafe_index_put _unsafe_masked_index
    _unsafe_masked_index_put_accumulate gather scatter scatter_add scatter_reduce put take masked_fill masked_scatter
    masked_select where nonzero nonzero_static slice_scatter select_scatter diagonal_scatter as_strided_scatter
    cat _chunk_cat stack _stack block_diag repeat repeat_interleave roll flip rot90 tril triu tril_indices triu_indices
    constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d pixel_shuffle pixel_unshuffle channel_shuffle diag_embed clone copy _to_copy _copy_from lift
    lift_fresh lift_fresh_copy _unsafe_view _reshape_alias _reshape_copy view_copy detach resize set _pin_memory
    unsafe_split unsafe_split_with_sizes split_with_sizes_copy squeeze unsqueeze transpose t swapaxes as_strided
    _pack_padded_sequence complex _lazy_clone _mkldnn_reshape to_padded_tensor _jagged_to_padded_dense_forward
    _padded_dense_to_jagged_forward alias contiguous unfold_copy
"""
_REDUCTIONS_AND_ORDER = """
    sum mean prod var std var_mean std_mean amax amin aminmax _aminmax max min argmax argmin any all norm
    linalg_vector_norm count_nonzero nansum nanmedian median mode kthvalue topk sort argsort _unique _unique2
    unique_dim unique_consecutive unique_dim_consecutive bincount histc histogram bucketize searchsorted isin cumsum
    cumprod cummax cummin _cummax_helper _cummin_helper trace segment_reduce _is_all_true _is_any_true allclose equal
    dist linalg_cross _spdiags
"""
_MAKING = """
    empty empty_like empty_strided empty_permuted new_empty new_empty_strided zeros zeros_like new_zeros ones ones_like
    new_ones full full_like new_full arange range linspace logspace eye scalar_tensor rand rand_like randn randn_like
    randint randint_like randperm normal bernoulli multinomial uniform exponential cauchy geometric log_normal random
    poisson binomial _standard_gamma _sample_dirichlet bartlett_window blackman_window hamming_window hann_window
    kaiser_window fft_fftfreq fft_rfftfreq zero fill _efficientzerotensor
"""
_ELEMENTWISE = """
    hardswish mish xlogy copysign gcd lcm fmod remainder _prelu_kernel glu addr _conj _conj_physical polar rsub
    floor_divide _add_relu threshold heaviside
    _thnn_fused_lstm_cell _thnn_fused_gru_cell rrelu_with_noise quantize_per_tensor quantize_per_channel
    quantize_per_tensor_dynamic dequantize int_repr fake_quantize_per_tensor_affine_cachemask
    fake_quantize_per_channel_affine_cachemask _fake_quantize_per_tensor_affine_cachemask_tensor_qparams
    _fake_quantize_learnable_per_tensor_affine _fake_quantize_learnable_per_channel_affine
    _make_per_tensor_quantized_tensor _make_per_channel_quantized_tensor
"""
_QUESTIONS = """
    _local_scalar_dense item is_same_size is_pinned sym_size sym_numel sym_stride sym_storage_offset
    _assert_async _assert_scalar _assert_tensor_metadata _functional_assert_async _functional_assert_scalar
    _has_same_storage_numel is_coalesced _nnz sparse_dim dense_dim q_scale q_zero_point qscheme q_per_channel_scales
    q_per_channel_zero_points q_per_channel_axis sym_constrain_range sym_constrain_range_for_size
    _use_cudnn_ctc_loss
"""

ZERO = frozenset(
    " ".join(
        (
            _NORMALISATION, _SOFTMAX_AND_LOSSES, _POOLING_AND_RESAMPLING, _LOOK_UPS_AND_MOVES, _REDUCTIONS_AND_ORDER,
            _MAKING, _ELEMENTWISE, _QUESTIONS,
        )
    ).split()
)  # fmt: skip
"""Names of the `aten` operators that count zero, beside those torch itself tags as elementwise or as a view."""

_QUANTIZED = """
    add add_relu add_scalar add_scalar_relu mul mul_relu mul_scalar mul_scalar_relu cat cat_relu relu6 leaky_relu
    hardswish sigmoid tanh elu celu clamp threshold prelu softmax dropout batch_norm batch_norm_relu batch_norm1d
    batch_norm1d_relu batch_norm2d batch_norm2d_relu batch_norm3d batch_norm3d_relu layer_norm group_norm instance_norm
    max_pool1d max_pool2d embedding_byte embedding_4bit embedding_bag_byte embedding_bag_4bit
"""
_ZERO_ELSEWHERE = frozenset(
    {"torchvision.nms", "torchvision.roi_align", "torchvision.roi_pool", "torchvision.ps_roi_align"}
    | {f"quantized.{name}" for name in _QUANTIZED.split()}
    | CHANGES_OF_FORM
    | {f"aten.{name}" for name in SPARSE_FORMS}
)


def _size(tensor: Any) -> int:
    return int(prod(tensor.shape))


def _mv(matrix: Any, vector: Any, *args: Any, **kwargs: Any) -> int:
    """`(m, n) x (n)`: m * n multiply-adds."""
    return 2 * terms(matrix)


def _addmv(bias: Any, matrix: Any, vector: Any, *args: Any, **kwargs: Any) -> int:
    return _mv(matrix, vector)


def _dot(left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * _size(left)


def _mm(left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    """`(m, k) x (k, n)`: m * k * n multiply-adds."""
    return matrix_product(left, right)


def _addmm(bias: Any, left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    return _mm(left, right)


def _addbmm(bias: Any, left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    return _mm(left, right)


def _matmul_to_output(left: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """Each output element is a sum over the last dimension of the left operand, however the weight is packed."""
    return int(2 * _size(out_val) * left.shape[-1])


def _trilinear(left: Any, weight: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    """`nn.Bilinear`, `x1 W x2` for each of `o` outputs: x1 W costs in1 * in2, the product with x2 in2 multiply-adds.

    Shapes: left `(batch, 1, in1, 1)`, weight `(1, o, in1, in2)`, right `(batch, 1, 1, in2)`.
    """
    batch, (outputs, first, second) = left.shape[0], weight.shape[-3:]
    return int(2 * batch * outputs * second * (first + 1))


def _cdist(left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    """Distances of each pair of rows: one multiply-add for each coordinate."""
    return int(2 * _size(left) * right.shape[-2])


def _solve_triangular(matrix: Any, right: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """n^2 for each column of n unknowns: n (n + 1) / 2 products and divisions, n (n - 1) / 2 sums (LAPACK's TRSM)."""
    return _size(out_val) * int(matrix.shape[-1])


def _fft(points: int, transforms: int, share: float) -> int:
    return ceil(share * transforms * points * log2(points)) if points > 1 else 0


def _fft_complex(data: Any, dim: list[int], *args: Any, **kwargs: Any) -> int:
    """A complex transform of N points: 5 N log2 N."""
    points = prod(data.shape[axis] for axis in dim)
    return _fft(points, _size(data) // max(points, 1), 5)


def _fft_from_real(data: Any, dim: list[int], *args: Any, **kwargs: Any) -> int:
    """A transform of N real points: half of a complex one."""
    points = prod(data.shape[axis] for axis in dim)
    return _fft(points, _size(data) // max(points, 1), 2.5)


def _fft_to_real(data: Any, dim: list[int], *args: Any, out_val: Any, **kwargs: Any) -> int:
    return _fft_from_real(out_val, dim)


def _conv(
    data: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, *args: Any,
    out_val: Any, **kwargs: Any,
) -> int:  # fmt: skip
    """Each output element is a sum over one filter; transposed, each input element is spread over one."""
    return int(2 * _size(data if transposed else out_val) * prod(weight.shape[1:]))


def _deform_conv(data: Any, weight: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """As a convolution: each output element is a sum over one filter."""
    return int(2 * _size(out_val) * prod(weight.shape[1:]))


def _packed_linear(data: Any, packed: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    return int(2 * _size(out_val) * data.shape[-1])


def _packed_conv(data: Any, packed: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """As a convolution of floats: `packed` gives its int8 filters back."""
    filters, _ = packed.unpack()
    return int(2 * _size(data if packed.transpose() else out_val) * prod(filters.shape[1:]))


def _out_dtype(operator: Any, dtype: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """An operator whose result is of another dtype costs what it costs."""
    formula = cost(operator).formula
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=out_val))


FORMULAS: dict[str, Formula] = {
    "out_dtype": _out_dtype,
    **STORED_PRODUCTS,
    "aten.mm": _mm,
    "aten.addmm": _addmm,
    "aten.bmm": _mm,
    "aten.convolution": _conv,
    "aten.mv": _mv,
    "aten.addmv": _addmv,
    "aten.dot": _dot,
    "aten.vdot": _dot,
    "aten._int_mm": _mm,
    "aten.addbmm": _addbmm,
    "aten._addmm_activation": _addmm,
    "aten.baddbmm": _addmm,
    "aten._scaled_mm": _mm,
    "aten._weight_int8pack_mm": _matmul_to_output,
    "aten._weight_int4pack_mm": _matmul_to_output,
    "aten._weight_int4pack_mm_for_cpu": _matmul_to_output,
    "aten._grouped_mm": _matmul_to_output,
    "aten._scaled_grouped_mm": _matmul_to_output,
    "aten._trilinear": _trilinear,
    "aten._cdist_forward": _cdist,
    "aten._euclidean_dist": _cdist,
    "aten.linalg_solve_triangular": _solve_triangular,
    "aten._fft_c2c": _fft_complex,
    "aten._fft_r2c": _fft_from_real,
    "aten._fft_c2r": _fft_to_real,
    "torchvision.deform_conv2d": _deform_conv,
    "quantized.linear_dynamic": _packed_linear,
    "quantized.linear_relu_dynamic": _packed_linear,
    "quantized.linear_dynamic_fp16": _packed_linear,
    "quantized.linear": _packed_linear,
    "quantized.linear_relu": _packed_linear,
    **{
        f"quantized.conv{transposed}{dims}d{then}": _packed_conv
        for dims in (1, 2, 3)
        for transposed, then in (("", ""), ("", "_relu"), ("", "_add"), ("", "_add_relu"), ("_transpose", ""))
    },
}
"""Formulas that `torch.utils.flop_counter` lacks, and those of the commonest operators, which here are faster.

Each is called with the operator's arguments and `out_val`.
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """How one operator is counted: `formula` with its arguments, else zero when `known`."""

    name: str
    formula: Formula | None
    known: bool

    def of(self, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
        """FLOPs of one call; 0 for an operator without a formula."""
        return int(self.formula(*args, **kwargs, out_val=out)) if self.formula is not None else 0


def cost(func: Any) -> Cost:
    """How `func`, an operator as the dispatcher knows it, is counted."""
    packet = getattr(func, "_overloadpacket", func)
    name = _name(func)
    functional = name.rstrip("_") if not name.endswith("__") else name
    if (formula := FORMULAS.get(functional)) is not None:
        return Cost(name, formula, True)
    if packet in flop_registry:
        return Cost(name, flop_registry[packet], True)
    registered = getattr(torch.ops.aten, functional.removeprefix("aten."), None) if functional != name else None
    if registered is not None and registered in flop_registry:  # `addmm_` costs what `addmm` does
        return Cost(name, flop_registry[registered], True)
    return Cost(name, None, _zero(func, functional))


def _name(func: Any) -> str:
    if isinstance(func, torch._ops.OpOverload):
        return f"{func.namespace}.{func._schema.name.split('::')[1]}"
    return str(getattr(func, "name", lambda: func)())


def _zero(func: Any, functional: str) -> bool:
    space, _, base = functional.partition(".")
    if space in ("prim", "profiler") or functional in _ZERO_ELSEWHERE:
        return True
    if space not in ("aten", "prims"):
        return False
    return base in ZERO or _tagged(func) or any(map(_tagged, _siblings(base)))


def _siblings(base: str) -> list[Any]:
    """The functional operators of an in-place one (`abs` of `abs_`), which are those that torch tags."""
    packet = getattr(torch.ops.aten, base, None)
    return [getattr(packet, overload) for overload in packet.overloads()] if packet is not None else []


def _tagged(func: Any) -> bool:
    if not isinstance(func, torch._ops.OpOverload):
        return False
    free = {torch.Tag.pointwise, *([torch.Tag.reduction] if hasattr(torch.Tag, "reduction") else [])}
    return bool(free & set(func.tags)) or bool(getattr(func, "is_view", False))
