"""Products of matrices and vectors, and distances, which are products too."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from pytest_modelbudget.backends.costs.flop_rule import OperatorCall, flop_rule
from pytest_modelbudget.backends.costs.formulas import Shape, einsum


@flop_rule(torch="aten.mm aten.bmm aten._int_mm aten._scaled_mm", left=0)
@flop_rule(torch="aten.addmm aten.addbmm aten.baddbmm aten._addmm_activation aten._scaled_addmm", left=1)
def matrix_product(call: OperatorCall, *, left: int) -> int:
    """`(.., m, k) x (.., k, n)`: m * k * n multiply-adds."""
    return 2 * prod(call.inputs[left]) * call.inputs[left + 1][-1]


@flop_rule(
    torch="""
        aten._weight_int8pack_mm aten._weight_int4pack_mm aten._weight_int4pack_mm_for_cpu aten._grouped_mm
        aten._scaled_grouped_mm aten.mkldnn_linear aten._mixed_dtypes_linear aten._sparse_semi_structured_linear
        aten._dyn_quant_matmul_4bit aten._weight_int4pack_mm_with_scales_and_zeros aten._scaled_mm_v2
        aten._scaled_grouped_mm_v2 aten._pdist_forward quantized.linear quantized.linear_relu quantized.linear_dynamic
        quantized.linear_relu_dynamic quantized.linear_dynamic_fp16 bitsandbytes.int8_linear_matmul
        bitsandbytes.int8_scaled_mm bitsandbytes.int8_mixed_scaled_mm bitsandbytes.gemm_4bit bitsandbytes.gemv_4bit
        torchao.int_matmul torchao.int_scaled_matmul torchao.da8w4_linear_cpu torchao.float8_linear_cpu
    """,
    keras="ops.Matmul ops.Dot ops.Inner",
    torch_export="aten.linear aten.matmul aten.linalg_matmul aten.inner aten.pdist",
    jax="scaled_matmul scaled_matmul_wrapper",
    tensorflow="""
        MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3 SparseMatMul _FusedMatMul QuantizedMatMul UniformQuantizedDot
    """,
    executorch="quantized_decomposed.mixed_mm quantized_decomposed.mixed_linear xnnpack.BatchMatrixMultiply",
    litert="BATCH_MATMUL",
)
def sums_over_left(call: OperatorCall) -> int:
    """Each output element is a sum over the last axis of the left operand, however the right one is packed.

    Of a transposed left operand it is the last but one; a product with a scalar is elementwise.
    """
    if () in call.inputs[:2]:
        return 0
    transposed = call.argument("transpose_a") or call.argument("adj_x")
    return 2 * prod(call.outputs[0]) * call.inputs[0][-2 if transposed else -1]


@flop_rule(
    onnx="""
        MatMul MatMulInteger QLinearMatMul com.microsoft.MatMulInteger16 com.microsoft.MatMulIntegerToFloat
        com.microsoft.DynamicQuantizeMatMul com.microsoft.GemmFastGelu com.microsoft.QOrderedMatMul
    """
)
def sums_over_last_axis(call: OperatorCall) -> int:
    """Each output element is a sum over the last axis of the left operand; scales may stand between the operands."""
    return 2 * prod(call.outputs[0]) * call.inputs[0][-1]


@flop_rule(onnx="com.microsoft.FusedMatMul com.microsoft.FusedMatMulActivation com.microsoft.TransposeMatMul")
def product_of_turned(call: OperatorCall) -> int:
    """A product whose left operand may be transposed, and may have its rows before the axes of the batch."""
    left = call.inputs[0]
    rows = 0 if call.argument("transBatchA") else -2
    return 2 * prod(call.outputs[0]) * left[rows if call.argument("transA") and len(left) > 1 else -1]


@flop_rule(onnx="Gemm com.microsoft.FusedGemm com.microsoft.GemmFloat8", right=1)
@flop_rule(onnx="com.microsoft.QGemm", right=3)
def general_product(call: OperatorCall, *, right: int) -> int:
    """`alpha * A B + beta * C`: each element of A meets one of each column of B; the sum is not counted."""
    return 2 * prod(call.inputs[0]) * call.inputs[right][0 if call.argument("transB") else 1]


@flop_rule(onnx="com.microsoft.MatMulNBits com.microsoft.MatMulBnb4")
def product_with_blocks(call: OperatorCall) -> int:
    """`(.., K) x (K, N)`, of which the right operand lies packed in blocks."""
    return 2 * prod(call.inputs[0]) * int(call.argument("N"))


@flop_rule(onnx="AffineGrid")
def affine_grid(call: OperatorCall) -> int:
    """Each coordinate is a sum over a row `(x, y, 1)` of the matrix; shapes `(N, 2, 3)` to `(N, H, W, 2)`."""
    return 2 * prod(call.outputs[0]) * call.inputs[0][-1]


@flop_rule(torch="aten.mv aten.dot aten.vdot", keras="ops.Vdot", left=0)
@flop_rule(torch="aten.addmv", left=1)
def product_with_vector(call: OperatorCall, *, left: int) -> int:
    """`(m, n) x (n)` or `(n) x (n)`: a multiply-add for each element of the left operand."""
    return 2 * prod(call.inputs[left])


@flop_rule(torch="aten._sparse_semi_structured_mm aten._sparse_semi_structured_addmm aten._cslt_sparse_mm")
def product_of_packed(call: OperatorCall) -> int:
    """Each output element is a sum over the rows of the right operand, the last matrix, which a packed one meets."""
    right = next(shape for shape in reversed(call.inputs) if len(shape) == 2)
    return 2 * prod(call.outputs[0]) * right[0]


@flop_rule(torch="aten._foreach_mm")
def products_of_lists(call: OperatorCall) -> int:
    """The products of two lists of matrices, pair by pair."""
    pairs = len(call.inputs) // 2
    return sum(2 * prod(left) * right[-1] for left, right in zip(call.inputs[:pairs], call.inputs[pairs:], strict=True))


@flop_rule(torch="aten._compute_linear_combination")
def linear_combination(call: OperatorCall) -> int:
    """`(m, n)` coefficients of n parts."""
    parts, coefficients = call.inputs
    return 2 * prod(parts) * coefficients[0]


@flop_rule(torch="aten._trilinear")
def trilinear(call: OperatorCall) -> int:
    """`nn.Bilinear` and its gradients: of three operands, spread over common axes, two are multiplied, then the third.

    Each `expand` names the axes that an operand lacks. Axes of `sumdim` that the third lacks are summed before it: for
    `x1 W x2` with `o` outputs x1 W costs `in1 * in2` multiply-adds for each, the product with x2 `in2`.
    """
    absent: list[set[int]] = [set(call.argument(f"expand{number}")) for number in (1, 2, 3)]
    spread = [_spread(shape, axes) for shape, axes in zip(call.inputs, absent, strict=True)]
    first = [max(left, right) for left, right in zip(spread[0], spread[1], strict=True)]
    summed = absent[2].intersection(call.argument("sumdim"))
    second = [
        max(1 if axis in summed else size, third)
        for axis, (size, third) in enumerate(zip(first, spread[2], strict=True))
    ]
    return 2 * prod(first) + 2 * prod(second)


def _spread(shape: Shape, absent: set[int]) -> list[int]:
    """`shape` with axes of one element where it has none."""
    sizes = iter(shape)
    return [1 if axis in absent else next(sizes) for axis in range(len(shape) + len(absent))]


@flop_rule(torch_export="aten.bilinear")
def bilinear_of_rows(call: OperatorCall) -> int:
    """`nn.Bilinear` of rows: left `(.., in1)`, right `(.., in2)`, weight `(o, in1, in2)`."""
    left, (outputs, first, second) = call.inputs[0], call.inputs[2]
    return 2 * prod(left[:-1]) * outputs * second * (first + 1)


@flop_rule(
    torch="""
        torch_nn._linear_cross_entropy_batch_chunked torch_nn._linear_cross_entropy_batch_chunked_no_reduction
    """
)
def linear_cross_entropy(call: OperatorCall) -> int:
    """The logits, chunk by chunk; with gradients, those of the input and of the weight are made on the way."""
    data, weight, *_ = call.inputs
    gradients = bool(call.argument("compute_input_grad")) + bool(call.argument("compute_weight_grad"))
    return 2 * prod(data) * weight[0] * (1 + gradients)


@flop_rule(keras="ops.Tensordot")
def tensordot(call: OperatorCall) -> int:
    """`2 * (left elements) * (right elements) / (contracted elements)`."""
    axes, (left, right) = call.argument("axes"), call.inputs[:2]
    if isinstance(axes, int):
        contracted = left[len(left) - axes :] if axes else ()
    else:
        contracted = tuple(left[axis] for axis in (axes[0] if isinstance(axes[0], (list, tuple)) else [axes[0]]))
    return 2 * prod(left) * prod(right) // max(prod(contracted), 1) if contracted else 0


@flop_rule(torch_export="aten.tensordot")
def tensordot_of_axes(call: OperatorCall) -> int:
    """A matrix product over the axes that are named; without any it is elementwise."""
    axes = call.argument("dims_self")
    return _contraction(call, axes) if axes else 0


@flop_rule(torch_export="aten.einsum")
def einsum_by_path(call: OperatorCall) -> int:
    """See `formulas.einsum`; torch writes down the order that it chose among three operands and more."""
    return einsum(call.argument("equation"), call.inputs, call.argument("path") or ())


@flop_rule(keras="ops.Einsum", tensorflow="Einsum", onnx="Einsum")
def einsum_product(call: OperatorCall) -> int:
    """See `formulas.einsum`."""
    return einsum(call.argument("subscripts") or call.argument("equation"), call.inputs)


@flop_rule(jax="dot_general", litert="STABLEHLO_DOT_GENERAL")
def dot_general(call: OperatorCall) -> int:
    """`2 * outputs * (contracted elements)`; without a contracted axis it is elementwise."""
    (contracted, _), _batch = call.argument("dimension_numbers")
    return _contraction(call, contracted) if contracted else 0


@flop_rule(jax="ragged_dot_general")
def ragged_dot(call: OperatorCall) -> int:
    """Each row meets one of several matrices."""
    (contracted, _), _batch = call.argument("ragged_dot_dimension_numbers").dot_dimension_numbers
    return _contraction(call, contracted)


def _contraction(call: OperatorCall, axes: Sequence[int]) -> int:
    return 2 * prod(call.outputs[0]) * prod(call.inputs[0][axis] for axis in axes)


@flop_rule(
    torch="aten._cdist_forward aten._euclidean_dist",
    keras="ops.CDist",
    torch_export="aten.cdist",
    onnx="com.microsoft.CDist",
)
def distances(call: OperatorCall) -> int:
    """Distances of each pair of rows: one multiply-add for each coordinate."""
    left, right = call.inputs[:2]
    return 2 * prod(left) * right[-2]


@flop_rule(torch="aten._cdist_backward aten._pdist_backward")
def distances_backward(call: OperatorCall) -> int:
    """One multiply-add for each coordinate of each pair; the first operand has an element for each pair."""
    pairs, rows = call.inputs[:2]
    return 2 * prod(pairs) * rows[-1]
