"""FLOPs of one Keras operation, from the shapes of its operands; a multiply-add counts 2, one of complex numbers 8.

The same products are counted whatever layer asks for them: layers are looked into until only operations are left.
Operations in `ZERO` cost nothing by rule (elementwise work, reductions, normalisation, pooling, look-ups, views,
copies); an operation in neither table has no formula, and makes the total a lower bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import keras

from pytest_modelbudget.backends.costs import FlopsCount
from pytest_modelbudget.backends.costs.formulas import (
    COMPLEX_FFT,
    COMPLEX_PRODUCT,
    REAL_FFT,
    Shape,
    einsum,
    fft,
    triangular_systems,
)
from pytest_modelbudget.backends.keras.calls import LayerCall
from pytest_modelbudget.backends.keras.free_operations import WITH_WEIGHTS, ZERO, ZERO_LAYERS

Rule = Callable[[Any, Sequence[Shape], Sequence[Shape]], int]
"""From an operation (or layer), the shapes of its tensor operands and those of its results, to FLOPs."""


def _matmul(_: Any, operands: Sequence[Shape], results: Sequence[Shape]) -> int:
    """`2 * results * K`, K the contracted axis; a product with a scalar is elementwise."""
    if not operands[0] or not operands[1]:
        return 0
    return 2 * prod(results[0]) * operands[0][-1]


def _vdot(_: Any, operands: Sequence[Shape], __: Sequence[Shape]) -> int:
    return 2 * prod(operands[0])


def _tensordot(operation: Any, operands: Sequence[Shape], _: Sequence[Shape]) -> int:
    """`2 * (left elements) * (right elements) / (contracted elements)`."""
    axes = operation.axes
    if isinstance(axes, int):
        contracted = operands[0][len(operands[0]) - axes :] if axes else ()
    else:
        left = axes[0] if isinstance(axes[0], (list, tuple)) else [axes[0]]
        contracted = tuple(operands[0][axis] for axis in left)
    if not contracted:
        return 0
    return 2 * prod(operands[0]) * prod(operands[1]) // max(prod(contracted), 1)


def _einsum(operation: Any, operands: Sequence[Shape], _: Sequence[Shape]) -> int:
    return einsum(operation.subscripts, operands)


def _conv(_: Any, operands: Sequence[Shape], results: Sequence[Shape]) -> int:
    """`2 * results * (kernel taps) * (input channels of a group)`; the kernel is `(*taps, channels, filters)`."""
    return 2 * prod(results[0]) * prod(operands[1][:-1])


def _depthwise(_: Any, operands: Sequence[Shape], results: Sequence[Shape]) -> int:
    """`2 * results * (kernel taps)`; the kernel is `(*taps, channels, multiplier)`."""
    return 2 * prod(results[0]) * prod(operands[1][:-2])


def _separable(operation: Any, operands: Sequence[Shape], results: Sequence[Shape]) -> int:
    """A depthwise convolution and a 1x1 one; kernels `(*taps, channels, multiplier)` and `(1, .., middle, filters)`."""
    depthwise, pointwise = operands[1], operands[2]
    middle, filters = pointwise[-2], pointwise[-1]
    positions = prod(results[0]) // filters
    return 2 * positions * middle * (prod(depthwise[:-2]) + filters)


def _conv_transpose(_: Any, operands: Sequence[Shape], __: Sequence[Shape]) -> int:
    """`2 * inputs * (kernel taps) * filters`; the kernel is `(*taps, filters, channels)`."""
    return 2 * prod(operands[0]) * prod(operands[1][:-1])


def _attention(_: Any, operands: Sequence[Shape], __: Sequence[Shape]) -> int:
    """Scores and their product with the values, the full square; shapes are `(batch, positions, heads, width)`."""
    batch, queries, heads, width = operands[0]
    keys, values = operands[1][1], operands[2][3]
    return 2 * batch * heads * queries * keys * (width + values)


def _cdist(_: Any, operands: Sequence[Shape], __: Sequence[Shape]) -> int:
    """Distances of each pair of rows: one multiply-add for each coordinate."""
    return 2 * prod(operands[0]) * operands[1][-2]


def _correlate(_: Any, operands: Sequence[Shape], results: Sequence[Shape]) -> int:
    """As a convolution: each output meets the shorter of the two sequences."""
    return 2 * prod(results[0]) * min(map(prod, operands))


def _solve_triangular(_: Any, operands: Sequence[Shape], __: Sequence[Shape]) -> int:
    return triangular_systems(operands[0][-1], prod(operands[1]))


def _fft1(_: Any, operands: Sequence[Shape], __: Sequence[Shape]) -> int:
    return fft(operands[0][-1], prod(operands[0][:-1]), COMPLEX_FFT)


def _fft2(_: Any, operands: Sequence[Shape], __: Sequence[Shape]) -> int:
    return fft(prod(operands[0][-2:]), prod(operands[0][:-2]), COMPLEX_FFT)


def _rfft(operation: Any, operands: Sequence[Shape], results: Sequence[Shape]) -> int:
    return fft(operation.fft_length or operands[0][-1], prod(results[0][:-1]), REAL_FFT)


def _irfft(_: Any, __: Sequence[Shape], results: Sequence[Shape]) -> int:
    return fft(results[0][-1], prod(results[0][:-1]), REAL_FFT)


def _stft(operation: Any, _: Sequence[Shape], results: Sequence[Shape]) -> int:
    """One real transform for each frame."""
    return fft(operation.fft_length, prod(results[0][:-1]), REAL_FFT)


def _istft(operation: Any, operands: Sequence[Shape], _: Sequence[Shape]) -> int:
    return fft(operation.fft_length, prod(operands[0][:-1]), REAL_FFT)


OPERATION_RULES: dict[str, Rule] = {
    "Matmul": _matmul,
    "Dot": _matmul,
    "Inner": _matmul,
    "Vdot": _vdot,
    "Tensordot": _tensordot,
    "Einsum": _einsum,
    "Conv": _conv,
    "DepthwiseConv": _depthwise,
    "SeparableConv": _separable,
    "ConvTranspose": _conv_transpose,
    "DotProductAttention": _attention,
    "FFT": _fft1,
    "FFT2": _fft2,
    "IFFT2": _fft2,
    "RFFT": _rfft,
    "IRFFT": _irfft,
    "STFT": _stft,
    "ISTFT": _istft,
    "CDist": _cdist,
    "Correlate": _correlate,
    "SolveTriangular": _solve_triangular,
}
"""Operations that cost something. Transforms take and give complex numbers in two parts, as real ones."""


def _conv_layer(layer: Any, _: Sequence[Shape], results: Sequence[Shape]) -> int:
    return _conv(layer, [(), tuple(layer.kernel.shape)], results)


def _mel(layer: Any, _: Sequence[Shape], results: Sequence[Shape]) -> int:
    """One real transform for each frame, and a product of its magnitudes with the filters; `(.., bins, frames)`."""
    points, bins = int(layer.fft_length), int(layer.num_mel_bins)
    return fft(points, prod(results[0]) // bins, REAL_FFT) + 2 * prod(results[0]) * (points // 2 + 1)


LAYER_RULES: dict[str, Rule] = {
    "Conv1D": _conv_layer,
    "Conv2D": _conv_layer,
    "Conv3D": _conv_layer,
    "MelSpectrogram": _mel,
}
"""Layers of Keras whose own code cannot take symbolic tensors in some cases, as grouped convolutions."""


def total(calls: Iterable[LayerCall]) -> FlopsCount:
    """The FLOPs of several calls, each as often as it runs."""
    flops, uncounted = 0, Counter[str]()
    for call in calls:
        count = cost(call)
        flops += count.flops * call.times
        uncounted.update({name: times * call.times for name, times in count.uncounted if call.times})
    return FlopsCount(flops, tuple(sorted(uncounted.items())))


def cost(call: LayerCall) -> FlopsCount:
    """What one run of a call costs, without the calls below it; what has no formula is named."""
    if call.own is not None:
        return call.own
    if call.is_layer and not call.opaque:
        return FlopsCount()  # what it did is in the calls below it
    value = _cost(call)
    return FlopsCount(0, ((type(call.operation).__name__, 1),)) if value is None else FlopsCount(value)


def _cost(call: LayerCall) -> int | None:
    operation = call.operation
    if not type(operation).__module__.startswith("keras.src."):
        return None
    name = keras_class(operation) if call.is_layer else type(operation).__name__
    rule = (LAYER_RULES if call.is_layer else OPERATION_RULES).get(name)
    if rule is None:
        return 0 if name in ZERO else None
    operands = [shape for value in keras.tree.flatten((call.args, call.kwargs)) if (shape := _shape(value)) is not None]
    results = [tuple(tensor.shape) for tensor in call.outputs]
    if any(size is None for shape in (*operands, *results) for size in shape):
        return None
    flops = rule(operation, operands, results)
    return flops * COMPLEX_PRODUCT if any(map(_is_complex, call.outputs)) else flops


def _is_complex(value: Any) -> bool:
    return bool(keras.backend.standardize_dtype(value.dtype).startswith("complex"))


def _shape(value: Any) -> Any:
    shape = getattr(value, "shape", None)
    return None if shape is None else tuple(shape)


def _dense_layer(layer: Any, _: Sequence[Shape], results: Sequence[Shape]) -> int:
    return 2 * prod(results[0]) * int(layer.kernel.shape[0])


def _depthwise_layer(layer: Any, _: Sequence[Shape], results: Sequence[Shape]) -> int:
    return _depthwise(layer, [(), tuple(layer.kernel.shape)], results)


_PLAIN_LAYER_RULES: dict[str, Rule] = {
    "Conv1D": _conv_layer,
    "Conv2D": _conv_layer,
    "Conv3D": _conv_layer,
    "Dense": _dense_layer,
    "DepthwiseConv1D": _depthwise_layer,
    "DepthwiseConv2D": _depthwise_layer,
}


def plain_rule(layer: Any) -> Rule | None:
    """What the cost of a layer of Keras follows from without looking into it; None for any that may hold more."""
    kinds = type(layer)
    if not kinds.__module__.startswith("keras.src.") or getattr(layer, "lora_enabled", False):
        return None
    if kinds.__name__ in ZERO_LAYERS:
        return _zero_flops
    rule = _PLAIN_LAYER_RULES.get(kinds.__name__)
    if rule is None or getattr(layer, "quantization_mode", None) is not None or layer.compute_dtype == "complex64":
        return None
    activation = layer.activation
    keeps_shape = activation is not keras.activations.glu
    return rule if keeps_shape and getattr(activation, "__module__", "").startswith("keras.src.") else None


def _zero_flops(_: Any, __: Sequence[Shape], ___: Sequence[Shape]) -> int:
    return 0


def has_formula(layer: Any) -> bool:
    """Whether a layer that cannot be looked into has a formula of its own, the same on every backend."""
    return keras_class(layer) in LAYER_RULES


def costs_nothing(layer: Any) -> bool:
    """Whether a layer is one of Keras' own that are zero by rule; with LoRA, looking up rows takes a product."""
    return keras_class(layer) in ZERO_LAYERS and not getattr(layer, "lora_enabled", False)


def weightless(layer: Any) -> bool:
    """Whether a layer is one of Keras' own that never hold weights."""
    return keras_class(layer) in ZERO_LAYERS - WITH_WEIGHTS


def keras_class(layer: Any) -> str:
    """The Keras class whose `call` a layer runs, also through a subclass; empty when the `call` is the user's own."""
    if not type(layer).call.__module__.startswith("keras.src."):
        return ""
    return next((cls.__name__ for cls in type(layer).__mro__ if cls.__module__.startswith("keras.src.")), "")
