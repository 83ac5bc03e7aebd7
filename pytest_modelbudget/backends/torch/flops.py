"""What an operator costs: a formula, zero by rule, or not known.

A multiply-add counts 2, one of complex numbers 8. Attention (the full square, also with a causal mask) and what a user
registered with torch use the formulas of `torch.utils.flop_counter`; matrix products, convolutions and what it lacks
are below. Zero by rule: everything elementwise, and the operators of `ZERO`, with their variants and what
differentiates them. An operator that is in neither is reported by name and makes the sum a lower bound.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from pytest_modelbudget.backends.operators.formulas import (
    COMPLEX_FFT,
    COMPLEX_PRODUCT,
    REAL_FFT,
    fft,
    triangular_systems,
)
from pytest_modelbudget.backends.torch.aten_names import PRIMS, ZERO
from pytest_modelbudget.backends.torch.complex_convolutions import ComplexConvolutions

Formula = Callable[..., int]

_QUANTIZED = """
    add add_relu add_scalar add_scalar_relu mul mul_relu mul_scalar mul_scalar_relu cat cat_relu relu6 leaky_relu
    hardswish sigmoid tanh elu celu clamp threshold prelu softmax dropout batch_norm batch_norm_relu batch_norm1d
    batch_norm1d_relu batch_norm2d batch_norm2d_relu batch_norm3d batch_norm3d_relu layer_norm group_norm instance_norm
    max_pool1d max_pool2d embedding_byte embedding_4bit embedding_bag_byte embedding_bag_4bit
"""
_ZERO_ELSEWHERE = frozenset(
    {"torchvision.nms", "torchvision.roi_align", "torchvision.roi_pool", "torchvision.ps_roi_align"}
    | {f"quantized.{name}" for name in _QUANTIZED.split()}
)


def _size(tensor: Any) -> int:
    return int(prod(tensor.shape))


def _mv(matrix: Any, vector: Any, *args: Any, **kwargs: Any) -> int:
    """`(m, n) x (n)`: m * n multiply-adds."""
    return 2 * _size(matrix)


def _addmv(bias: Any, matrix: Any, vector: Any, *args: Any, **kwargs: Any) -> int:
    return _mv(matrix, vector)


def _dot(left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * _size(left)


def _mm(left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    """`(m, k) x (k, n)`: m * k * n multiply-adds."""
    return int(2 * _size(left) * right.shape[-1])


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


def _pdist(rows: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """Distances of each pair of rows, without its mirror image."""
    return int(2 * _size(out_val) * rows.shape[-1])


def _cdist_backward(grad: Any, left: Any, *args: Any, **kwargs: Any) -> int:
    """One multiply-add for each coordinate of each pair."""
    return int(2 * _size(grad) * left.shape[-1])


def _linear_combination(parts: Any, coefficients: Any, *args: Any, **kwargs: Any) -> int:
    """`(m, n)` coefficients of n parts."""
    return int(2 * _size(parts) * coefficients.shape[0])


def _foreach_mm(left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    return sum(map(_mm, left, right))


def _left_of_packed(packed: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """Each output element is a sum over the rows of the right operand, which stands before the output's columns."""
    right = next(one for one in reversed(args) if isinstance(one, torch.Tensor) and one.dim() == 2)
    return int(2 * _size(out_val) * right.shape[0])


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    """Scores and their product with the values, the full square; shapes are `(batch, heads, positions, width)`."""
    return int(2 * prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    """Five products: the scores once more, the gradients of q and k; those of the scores and of v."""
    return int(2 * prod(query.shape[:-1]) * key.shape[-2] * (3 * query.shape[-1] + 2 * value.shape[-1]))


def _multi_head(query: Any, key: Any, value: Any, width: int, *args: Any, **kwargs: Any) -> int:
    """`nn.MultiheadAttention` in one: three projections in, the full square, one projection out."""
    projections = 2 * _size(query) + _size(key) + _size(value)
    return int(2 * width * projections + 4 * _size(query) * key.shape[-2])


def _encoder_layer(data: Any, width: int, *args: Any, **kwargs: Any) -> int:
    """`nn.TransformerEncoderLayer` in one: attention, and two products with the inner width."""
    inner = args[12].shape[0]
    return _multi_head(data, data, data, width) + 4 * _size(data) * int(inner)


def _recurrent(data: Any, *args: Any, **kwargs: Any) -> int:
    """Each step multiplies its input and its state with all matrices; biases have one dimension."""
    weights = [one for value in args[:4] for one in (value if isinstance(value, (list, tuple)) else (value,))]
    matrices = [one for one in weights if isinstance(one, torch.Tensor) and one.dim() == 2]
    return int(2 * prod(data.shape[:-1]) * sum(map(_size, matrices)))


def _solve_triangular(matrix: Any, right: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    return triangular_systems(matrix.shape[-1], _size(out_val))


def _solve_triangular_of(right: Any, matrix: Any, *args: Any, **kwargs: Any) -> int:
    return triangular_systems(matrix.shape[-1], _size(right))


def _solve_factored(matrix: Any, pivots: Any, right: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """Two triangular systems."""
    return 2 * triangular_systems(matrix.shape[-1], _size(out_val))


def _solve_cholesky(right: Any, matrix: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """Two triangular systems."""
    return 2 * triangular_systems(matrix.shape[-1], _size(out_val))


def _fft_complex(data: Any, dim: list[int], *args: Any, **kwargs: Any) -> int:
    """A complex transform of N points: 5 N log2 N."""
    points = prod(data.shape[axis] for axis in dim)
    return fft(points, _size(data) // max(points, 1), COMPLEX_FFT)


def _fft_from_real(data: Any, dim: list[int], *args: Any, **kwargs: Any) -> int:
    """A transform of N real points: half of a complex one."""
    points = prod(data.shape[axis] for axis in dim)
    return fft(points, _size(data) // max(points, 1), REAL_FFT)


def _fft_to_real(data: Any, dim: list[int], *args: Any, out_val: Any, **kwargs: Any) -> int:
    return _fft_from_real(out_val, dim)


def _conv(
    data: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, *args: Any,
    out_val: Any, **kwargs: Any,
) -> int:  # fmt: skip
    """Each output element is a sum over one filter; transposed, each input element is spread over one."""
    return int(2 * _size(data if transposed else out_val) * prod(weight.shape[1:]))


def _gathering_conv(data: Any, weight: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """Each output element is a sum over one filter."""
    return int(2 * _size(out_val) * prod(weight.shape[1:]))


def _spreading_conv(data: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    """Each input element is spread over one filter."""
    return int(2 * _size(data) * prod(weight.shape[1:]))


def _conv_tbc(data: Any, weight: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """Filters are `(taps, channels, filters)`."""
    return int(2 * _size(out_val) * prod(weight.shape[:-1]))


def _linear_cross_entropy(data: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    """The logits, chunk by chunk; with gradients, those of the input and of the weight are made on the way."""
    return int(2 * _size(data) * weight.shape[0]) * (1 + sum(args[10:12]))


def _linear_cross_entropy_of_each(data: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    return _linear_cross_entropy(data, weight)


def _packed_linear(data: Any, packed: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    return int(2 * _size(out_val) * data.shape[-1])


def _packed_conv(data: Any, packed: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """As a convolution of floats: `packed` gives its int8 filters back."""
    filters, _ = packed.unpack()
    return int(2 * _size(data if packed.transpose() else out_val) * prod(filters.shape[1:]))


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

FORMULAS: dict[str, Formula] = {
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
    "torch_nn._linear_cross_entropy_batch_chunked_no_reduction": _linear_cross_entropy_of_each,
    **{f"aten.{name}": _gathering_conv for name in _GATHERING.split()},
    **{f"aten.{name}": _spreading_conv for name in _SPREADING.split()},
    **{f"aten.{name}": _attention for name in _ATTENTION.split()},
    **{f"aten.{name}": _recurrent for name in _RECURRENT.split()},
    **{f"aten.{name}": _matmul_to_output for name in _PACKED.split()},
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

Each is called with the operator's arguments and `out_val`, and counts multiply-adds of real numbers.
"""

TRANSFORMS: dict[str, Formula] = {
    **dict.fromkeys(("aten._fft_c2c", "prims.fft_c2c"), _fft_complex),
    **dict.fromkeys(("aten._fft_r2c", "prims.fft_r2c"), _fft_from_real),
    **dict.fromkeys(("aten._fft_c2r", "prims.fft_c2r"), _fft_to_real),
}
"""Formulas that count real FLOPs of complex numbers already."""


@dataclass(frozen=True, slots=True)
class Cost:
    """How one operator is counted: `formula` with its arguments, else zero when `known`.

    `products` are multiply-adds, which count four times as much when they are of complex numbers.
    """

    name: str
    formula: Formula | None
    known: bool
    products: bool = True

    def of(self, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, convolutions: ComplexConvolutions) -> int:
        """FLOPs of one call; 0 for an operator without a formula. `convolutions` follows those of a pass."""
        if self.formula is None:
            return 0
        flops = int(self.formula(*args, **kwargs, out_val=out))
        if self.products and _is_complex(out):
            return flops * COMPLEX_PRODUCT
        return flops * 2 if self.formula is _conv and convolutions.stands_for_two(*args[:2]) else flops


def _is_complex(out: Any) -> bool:
    """Whether an operator made complex numbers, as a product does that reads some."""
    first = out[0] if isinstance(out, (tuple, list)) and out else out
    return isinstance(first, torch.Tensor) and first.is_complex()


def cost(func: Any) -> Cost:
    """How `func`, an operator as the dispatcher knows it, is counted."""
    packet = getattr(func, "_overloadpacket", func)
    name = _name(func)
    functional = name.rstrip("_") if not name.endswith("__") else name
    if (formula := FORMULAS.get(functional)) is not None:
        return Cost(name, formula, True)
    if (formula := TRANSFORMS.get(functional)) is not None:
        return Cost(name, formula, True, products=False)
    if packet in flop_registry:  # a formula of the user's own says itself what complex numbers cost
        return Cost(name, flop_registry[packet], True, products=name.startswith("aten."))
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
    return (space == "prims" and base in PRIMS) or _tagged(func) or any(name in ZERO or any(map(_tagged, _overloads(name))) for name in _variants(base))


_VARIANT = re.compile(r"^_foreach_|_backward(_data|_elemt|_reduce|_jvp|_impl)?$|_copy$|_functional$")
"""What the name of an operator has more than that of the one it is a variant of, or differentiates."""


def _variants(base: str) -> Iterator[str]:
    """`base`, and what it is a variant of: `nll_loss` and `nll_loss_forward` for `nll_loss_backward`."""
    plain = _VARIANT.sub("", base).rstrip("_")
    yield from (base, plain, f"{plain}_forward")


def _overloads(base: str) -> list[Any]:
    """The functional operators of an in-place one (`abs` of `abs_`), which are those that torch tags."""
    packet = getattr(torch.ops.aten, base, None)
    return [getattr(packet, overload) for overload in packet.overloads()] if packet is not None else []


def _tagged(func: Any) -> bool:
    if not isinstance(func, torch._ops.OpOverload):
        return False
    free = {torch.Tag.pointwise, *([torch.Tag.reduction] if hasattr(torch.Tag, "reduction") else [])}
    return bool(free & set(func.tags)) or bool(getattr(func, "is_view", False))
