"""What an operator costs: a formula, zero by rule, or not known.

A multiply-add counts 2, one of complex numbers 8. Attention (the full square, also with a causal mask) and what a user
registered with torch use the formulas of `torch.utils.flop_counter`; matrix products, convolutions and what it lacks
are below. Zero by rule: everything elementwise, and the operators of `ZERO`, with their variants and what
differentiates them. An operator that is in neither is reported by name and makes the sum a lower bound.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from pytest_modelbudget.backends.costs.formulas import COMPLEX_FFT, COMPLEX_PRODUCT, REAL_FFT, fft
from pytest_modelbudget.backends.torch.compat import OpOverload
from pytest_modelbudget.backends.torch.costs.complex_convolutions import ComplexConvolutions
from pytest_modelbudget.backends.torch.costs.free_operators import PRIMS, ZERO
from pytest_modelbudget.backends.torch.costs.products import PRODUCTS, Formula, matmul_to_output, mm, size
from pytest_modelbudget.backends.torch.costs.stored_products import (
    CHANGES_OF_FORM,
    SPARSE_FORMS,
    STORED_PRODUCTS,
    terms,
)

_QUANTIZED = """
    add add_relu add_scalar add_scalar_relu mul mul_relu mul_scalar mul_scalar_relu cat cat_relu relu6 leaky_relu
    hardswish sigmoid tanh elu celu clamp threshold prelu softmax dropout batch_norm batch_norm_relu batch_norm1d
    batch_norm1d_relu batch_norm2d batch_norm2d_relu batch_norm3d batch_norm3d_relu layer_norm group_norm instance_norm
    max_pool1d max_pool2d embedding_byte embedding_4bit embedding_bag_byte embedding_bag_4bit
"""
_DETECTION = "nms qnms box_iou_rotated roi_align qroi_align roi_pool ps_roi_align ps_roi_pool"
_ZERO_ELSEWHERE = frozenset(
    {f"torchvision.{name}" for name in _DETECTION.split()}  # of boxes
    | {f"quantized.{name}" for name in _QUANTIZED.split()}
    | CHANGES_OF_FORM
    | {f"aten.{name}" for name in SPARSE_FORMS}
)


def _mv_flops(matrix: Any, vector: Any, *args: Any, **kwargs: Any) -> int:
    """`(m, n) x (n)`: m * n multiply-adds."""
    return 2 * terms(matrix)


def _addmv(bias: Any, matrix: Any, vector: Any, *args: Any, **kwargs: Any) -> int:
    return _mv_flops(matrix, vector)


def _dot(left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * size(left)


def _addmm(bias: Any, left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    return mm(left, right)


def _addbmm(bias: Any, left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    return mm(left, right)


def _trilinear(left: Any, weight: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    """`nn.Bilinear`, `x1 W x2` for each of `o` outputs: x1 W costs in1 * in2, the product with x2 in2 multiply-adds.

    Shapes: left `(batch, 1, in1, 1)`, weight `(1, o, in1, in2)`, right `(batch, 1, 1, in2)`.
    """
    batch, (outputs, first, second) = left.shape[0], weight.shape[-3:]
    return int(2 * batch * outputs * second * (first + 1))


def _cdist(left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    """Distances of each pair of rows: one multiply-add for each coordinate."""
    return int(2 * size(left) * right.shape[-2])


def _fft_complex(data: Any, dim: list[int], *args: Any, **kwargs: Any) -> int:
    """A complex transform of N points: 5 N log2 N."""
    points = prod(data.shape[axis] for axis in dim)
    return fft(points, size(data) // max(points, 1), COMPLEX_FFT)


def _fft_from_real(data: Any, dim: list[int], *args: Any, **kwargs: Any) -> int:
    """A transform of N real points: half of a complex one."""
    points = prod(data.shape[axis] for axis in dim)
    return fft(points, size(data) // max(points, 1), REAL_FFT)


def _fft_to_real(data: Any, dim: list[int], *args: Any, out_val: Any, **kwargs: Any) -> int:
    return _fft_from_real(out_val, dim)


def _conv(
    data: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, *args: Any,
    out_val: Any, **kwargs: Any,
) -> int:  # fmt: skip
    """Each output element is a sum over one filter; transposed, each input element is spread over one."""
    return int(2 * size(data if transposed else out_val) * prod(weight.shape[1:]))


def _packed_linear(data: Any, packed: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    return int(2 * size(out_val) * data.shape[-1])


def _packed_conv(data: Any, packed: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """As a convolution of floats: `packed` gives its int8 filters back."""
    filters, _ = packed.unpack()
    return int(2 * size(data if packed.transpose() else out_val) * prod(filters.shape[1:]))


def _out_dtype(operator: Any, dtype: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """An operator whose result is of another dtype costs what it costs."""
    formula = cost_of(operator).formula
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=out_val))


FORMULAS: dict[str, Formula] = {
    "out_dtype": _out_dtype,
    **STORED_PRODUCTS,
    "aten.mm": mm,
    "aten.addmm": _addmm,
    "aten.bmm": mm,
    "aten.convolution": _conv,
    "aten.convolution_overrideable": _conv,
    "aten.mv": _mv_flops,
    "aten.addmv": _addmv,
    "aten.dot": _dot,
    "aten.vdot": _dot,
    "aten._int_mm": mm,
    "aten.addbmm": _addbmm,
    "aten._addmm_activation": _addmm,
    "aten.baddbmm": _addmm,
    "aten._scaled_mm": mm,
    "aten._scaled_addmm": _addmm,
    "aten._weight_int8pack_mm": matmul_to_output,
    "aten._weight_int4pack_mm": matmul_to_output,
    "aten._weight_int4pack_mm_for_cpu": matmul_to_output,
    "aten._grouped_mm": matmul_to_output,
    "aten._scaled_grouped_mm": matmul_to_output,
    "aten._trilinear": _trilinear,
    "aten._cdist_forward": _cdist,
    "aten._euclidean_dist": _cdist,
    **PRODUCTS,
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

    def flops_of(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, convolutions: ComplexConvolutions
    ) -> int:
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


def cost_of(func: Any) -> Cost:
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
    return Cost(name, None, _is_free(func, functional))


def _name(func: Any) -> str:
    if isinstance(func, OpOverload):
        return f"{func.namespace}.{func._schema.name.split('::')[1]}"
    return str(getattr(func, "name", lambda: func)())


def _is_free(func: Any, functional: str) -> bool:
    space, _, base = functional.partition(".")
    if space in ("prim", "profiler") or functional in _ZERO_ELSEWHERE:
        return True
    if space not in ("aten", "prims"):
        return False
    return (
        (space == "prims" and base in PRIMS)
        or _is_tagged_free(func)
        or any(name in ZERO or any(map(_is_tagged_free, _overloads(name))) for name in _variants(base))
    )


_VARIANT = re.compile(r"^_foreach_|_backward(_data|_elemt|_reduce|_jvp|_impl)?$|_copy$|_functional$")
"""What the name of an operator has more than that of the one it is a variant of, or differentiates."""


def _variants(base: str) -> Iterator[str]:
    """`base`, and what it is a variant of: `nll_loss` and `nll_loss_forward` for `nll_loss_backward`."""
    functional = _VARIANT.sub("", base).rstrip("_")
    yield from (base, functional, f"{functional}_forward")


def _overloads(base: str) -> list[Any]:
    """The functional operators of an in-place one (`abs` of `abs_`), which are those that torch tags."""
    packet = getattr(torch.ops.aten, base, None)
    return [getattr(packet, overload) for overload in packet.overloads()] if packet is not None else []


def _is_tagged_free(func: Any) -> bool:
    if not isinstance(func, OpOverload):
        return False
    free = {torch.Tag.pointwise, *([torch.Tag.reduction] if hasattr(torch.Tag, "reduction") else [])}
    return bool(free & set(func.tags)) or bool(getattr(func, "is_view", False))
