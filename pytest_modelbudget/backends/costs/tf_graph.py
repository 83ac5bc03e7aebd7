"""FLOPs of the operators of a TensorFlow graph, with those of the loops, branches and functions it calls.

    counted = total(operators(concrete_function.graph))

A multiply-add counts 2, one of complex numbers 8. Counted: matrix products, convolutions (also their backward passes,
which is what a transposed convolution is), einsum, fused recurrent cells, triangular systems and Fourier transforms;
zero by rule are the names of `tf_names`; any other operator has no formula, and one whose shapes are open has none
either. A loop counts its body as many times as
its counter says; where that depends on values, the loop itself has no formula.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from typing import Any

from pytest_modelbudget.backends.costs import Operator, cheapest_branch
from pytest_modelbudget.backends.costs.formulas import (
    COMPLEX_FFT,
    COMPLEX_PRODUCT,
    REAL_FFT,
    Shape,
    einsum,
    fft,
    triangular_systems,
)
from pytest_modelbudget.backends.costs.tf_functions import (
    FunctionGraph,
    called_function,
    function,
    needed_operators,
    shape_of,
)
from pytest_modelbudget.backends.costs.tf_names import costs_nothing
from pytest_modelbudget.backends.costs.tf_values import KnownValues, loop_trips

Formula = Callable[[Any, Sequence[Shape], Sequence[Shape]], int]
"""From an operator, the shapes of its inputs and those of its outputs, to FLOPs."""


def _matmul(op: Any, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    """`2 * outputs * K`, K the contracted axis."""
    transposed = any(_attribute(op, name) for name in ("transpose_a", "adj_x"))
    return 2 * prod(outputs[0]) * inputs[0][-2 if transposed else -1]


def _einsum(op: Any, inputs: Sequence[Shape], _: Sequence[Shape]) -> int:
    return einsum(op.get_attr("equation").decode(), inputs)


def _conv(_: Any, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    """`2 * outputs * (kernel taps) * (input channels of a group)`; the kernel is `(*taps, channels, filters)`."""
    return 2 * prod(outputs[0]) * prod(inputs[1][:-1])


def _padded_conv(op: Any, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    return _conv(op, [(), inputs[-1]], outputs)


def _depthwise(_: Any, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    """`2 * outputs * (kernel taps)`; the kernel is `(*taps, channels, multiplier)`."""
    return 2 * prod(outputs[0]) * prod(inputs[1][:-2])


def _conv_back_to_input(_: Any, inputs: Sequence[Shape], __: Sequence[Shape]) -> int:
    """Each element of the third input is spread over one filter, which is what a transposed convolution does."""
    return 2 * prod(inputs[2]) * prod(inputs[1][:-1])


def _depthwise_back_to_input(_: Any, inputs: Sequence[Shape], __: Sequence[Shape]) -> int:
    return 2 * prod(inputs[2]) * prod(inputs[1][:-2])


def _conv_back_to_filter(_: Any, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    return 2 * prod(inputs[2]) * prod(outputs[0][:-1])


def _depthwise_back_to_filter(_: Any, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    return 2 * prod(inputs[2]) * prod(outputs[0][:-2])


def _block_lstm(_: Any, inputs: Sequence[Shape], __: Sequence[Shape]) -> int:
    """Inputs are `(.., x (steps, batch, features), c, h, kernel, ...)`."""
    steps, batch, _features = inputs[1]
    return 2 * steps * batch * prod(inputs[4])


def _lstm_cell(_: Any, inputs: Sequence[Shape], __: Sequence[Shape]) -> int:
    """Inputs are `(x (batch, features), c, h, kernel, ...)`."""
    return 2 * inputs[0][0] * prod(inputs[3])


def _gru_cell(_: Any, inputs: Sequence[Shape], __: Sequence[Shape]) -> int:
    """Inputs are `(x (batch, features), h, kernel of the gates, kernel of the candidate, ...)`."""
    return 2 * inputs[0][0] * (prod(inputs[2]) + prod(inputs[3]))


def _triangular_solve(_: Any, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    return triangular_systems(inputs[0][-1], prod(outputs[0]))


def _banded_solve(_: Any, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    """Row i of a matrix `(.., bands, n)` has min(i, bands) elements: a division, and a multiply-add for each other."""
    bands, unknowns = inputs[0][-2:]
    full_rows = min(bands, unknowns)
    return (full_rows**2 + (unknowns - full_rows) * (2 * full_rows - 1)) * prod(outputs[0]) // max(unknowns, 1)


def _complex_fft(axes: int) -> Formula:
    def formula(_: Any, inputs: Sequence[Shape], __: Sequence[Shape]) -> int:
        return fft(prod(inputs[0][-axes:]), prod(inputs[0][:-axes]), COMPLEX_FFT)

    return formula


def _real_fft(axes: int) -> Formula:
    def formula(op: Any, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
        lengths = KnownValues().value_of(op.inputs[1])
        points = prod(lengths) if isinstance(lengths, list) else prod(inputs[0][-axes:])
        return fft(points, prod(outputs[0][:-axes]), REAL_FFT)

    return formula


def _to_real_fft(axes: int) -> Formula:
    def formula(_: Any, __: Sequence[Shape], outputs: Sequence[Shape]) -> int:
        return fft(prod(outputs[0][-axes:]), prod(outputs[0][:-axes]), REAL_FFT)

    return formula


_DIMENSIONS = (("", 1), ("2D", 2), ("3D", 3))

FORMULAS: dict[str, Formula] = {
    **dict.fromkeys(("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "SparseMatMul"), _matmul),
    **dict.fromkeys(("_FusedMatMul", "QuantizedMatMul", "UniformQuantizedDot"), _matmul),
    "Einsum": _einsum,
    **dict.fromkeys(("Conv", "Conv2D", "Conv3D", "QuantizedConv2D", "_FusedConv2D"), _conv),
    **dict.fromkeys(("FusedPadConv2D", "FusedResizeAndPadConv2D"), _padded_conv),
    **dict.fromkeys(("DepthwiseConv2dNative", "QuantizedDepthwiseConv2D", "_FusedDepthwiseConv2dNative"), _depthwise),
    **{f"Conv{dims}DBackpropInput{version}": _conv_back_to_input for dims in (2, 3) for version in ("", "V2")},
    **{f"Conv{dims}DBackpropFilter{version}": _conv_back_to_filter for dims in (2, 3) for version in ("", "V2")},
    "DepthwiseConv2dNativeBackpropInput": _depthwise_back_to_input,
    "DepthwiseConv2dNativeBackpropFilter": _depthwise_back_to_filter,
    **dict.fromkeys(("BlockLSTM", "BlockLSTMV2"), _block_lstm),
    "LSTMBlockCell": _lstm_cell,
    "GRUBlockCell": _gru_cell,
    **dict.fromkeys(("MatrixTriangularSolve", "BatchMatrixTriangularSolve"), _triangular_solve),
    "BandedTriangularSolve": _banded_solve,
}
"""Operators that cost multiply-adds, of real numbers."""

TRANSFORMS: dict[str, Formula] = {
    **{
        f"{name}{suffix}": _complex_fft(axes)
        for name in ("FFT", "IFFT", "BatchFFT", "BatchIFFT")
        for suffix, axes in _DIMENSIONS
    },
    **{f"RFFT{suffix}": _real_fft(axes) for suffix, axes in _DIMENSIONS},
    **{f"IRFFT{suffix}": _to_real_fft(axes) for suffix, axes in _DIMENSIONS},
}
"""Operators whose formulas count real FLOPs of complex numbers already."""


def operators(graph: Any, outputs: Sequence[Any] | None = None) -> Iterator[Operator]:
    """The operators of `graph`, a `tf.Graph`, and of what it calls, that run to make `outputs`.

    What runs an unknown number of times is listed with 0 runs, beside its loop, which then has no formula.
    Without `outputs` those of a function's graph are taken, and of any other graph every operator. A graph is read,
    not run and not changed. Scopes begin with those of the callers.
    """
    if outputs is None and not hasattr(graph, "outputs"):
        yield from _GraphReader().listed(graph, graph.get_operations(), "", 1, KnownValues())
        return
    outputs_wanted = graph.outputs if outputs is None else outputs
    control = (getattr(graph, "control_outputs", None) or ()) if outputs is None else ()
    yield from _GraphReader().listed(graph, needed_operators(outputs_wanted, control), "", 1, KnownValues())


class _GraphReader:
    """Follows calls, loops and branches; nothing is remembered between calls."""

    def listed(
        self, graph: Any, ops: Iterable[Any], prefix: str, times: int, values: KnownValues
    ) -> Iterator[Operator]:
        """`ops` of `graph`, run `times` times, with what is `known` of its inputs."""
        for op in ops:
            scope = f"{prefix}{op.name}"
            if op.type in ("PartitionedCall", "StatefulPartitionedCall", "RemoteCall"):
                yield from self.call(graph, op, op.get_attr("f").name, scope, times, values)
            elif op.type in ("While", "StatelessWhile"):
                yield from self.loop(graph, op, scope, times, values)
            elif op.type in ("If", "StatelessIf", "Case", "StatelessCase"):
                yield from self.branch(graph, op, scope, times, values)
            elif op.type == "MapDefun":
                yield from self.map(graph, op, scope, times)
            elif graph._get_function(op.type) is not None:  # a call by the function's own name
                yield from self.call(graph, op, op.type, scope, times, values)
            else:
                yield Operator(scope, op.type, times, _flops(op))

    def body(
        self, body: FunctionGraph, scope: str, times: int, values: KnownValues | None = None
    ) -> Iterator[Operator]:
        """The operators of a called function."""
        ops = needed_operators(body.outputs, body.control)
        return self.listed(body.graph, ops, f"{scope}/", times, values or KnownValues())

    def call(self, graph: Any, op: Any, name: str, scope: str, times: int, values: KnownValues) -> Iterator[Operator]:
        """A plain call."""
        body = called_function(graph, name, op.inputs)
        if body is None:
            return iter([Operator(scope, op.type, times, None)])
        return self.body(body, scope, times, _known_inputs(body, op.inputs, values))

    def loop(self, graph: Any, op: Any, scope: str, times: int, values: KnownValues) -> Iterator[Operator]:
        """A loop: its body as many times as it runs, its condition once more."""
        cond, body = (called_function(graph, op.get_attr(name).name, op.inputs) for name in ("cond", "body"))
        if cond is None or body is None:
            yield Operator(scope, op.type, times, None)
            return
        if [shape_of(tensor) for tensor in body.inputs] != [shape_of(tensor) for tensor in body.outputs]:
            body = function(graph, op.get_attr("body").name) or body  # its tensors change their sizes as it runs
        count = loop_trips(cond, body, [values.value_of(tensor) for tensor in op.inputs])
        ran = count or 0
        inside = [*self.body(cond, scope, times * (ran + 1)), *self.body(body, scope, times * ran)]
        hidden = count is None and any(tensor.flops != 0 for tensor in inside)
        yield Operator(scope, op.type, times, None if hidden else 0)
        yield from (tensor for tensor in inside if count is not None or tensor.flops is not None)

    def branch(self, graph: Any, op: Any, scope: str, times: int, values: KnownValues) -> Iterator[Operator]:
        """A choice: the branch that is taken where that is known."""
        is_case = op.type.endswith("Case")
        names = (
            op.get_attr("branches")
            if is_case
            else [op.get_attr(f"{branch_name}_branch") for branch_name in ("then", "else")]
        )
        bodies = [called_function(graph, name.name, op.inputs[1:]) for name in names]
        if None in bodies:
            return iter([Operator(scope, op.type, times, None)])
        inside = [
            list(self.body(branch_name, scope, times, _known_inputs(branch_name, op.inputs[1:], values)))
            for branch_name in bodies
            if branch_name
        ]
        chosen = values.value_of(op.inputs[0])
        if chosen is None:
            return iter(cheapest_branch(inside, scope, op.type, times))
        if is_case:
            return iter(inside[chosen if 0 <= chosen < len(inside) else -1])
        return iter(inside[0 if chosen else 1])

    def map(self, graph: Any, op: Any, scope: str, times: int) -> Iterator[Operator]:
        """A function applied to each slice of its first input."""
        body, first = function(graph, op.get_attr("f").name), op.inputs[0].shape
        if body is None or not first.rank or first[0] is None:
            return iter([Operator(scope, op.type, times, None)])
        return self.body(body, scope, times * first[0])


def _flops(op: Any) -> int | None:
    formula = FORMULAS.get(op.type) or TRANSFORMS.get(op.type)
    if formula is None:
        return 0 if costs_nothing(op.type) else None
    inputs, outputs = [shape_of(tensor) for tensor in op.inputs], [shape_of(tensor) for tensor in op.outputs]
    if None in inputs or None in outputs:
        return None
    flops = formula(op, inputs, outputs)  # type: ignore[arg-type]  # None was ruled out above
    products = op.type in FORMULAS and any(tensor.dtype.is_complex for tensor in op.inputs)
    return flops * COMPLEX_PRODUCT if products else flops


def _attribute(op: Any, name: str) -> Any:
    try:
        return op.get_attr(name)
    except ValueError:  # this kind of product does not have it
        return None


def _known_inputs(body: FunctionGraph, inputs: Sequence[Any], values: KnownValues) -> KnownValues:
    """What is known of the inputs of a called graph."""
    return KnownValues(
        {inner.op.name: values.value_of(outer) for inner, outer in zip(body.inputs, inputs, strict=False)}
    )
