"""Convolutions, which differ in where a kernel has its filters."""

from __future__ import annotations

from math import prod
from typing import Any

from pytest_modelbudget.backends.costs.flop_rule import OperatorCall, flop_rule
from pytest_modelbudget.backends.costs.formulas import Shape

_FILTERS_FIRST = slice(1, None)  # `(filters, channels, *taps)`
_FILTERS_LAST = slice(None, -1)  # `(*taps, channels, filters)`
_OF_ONE_CHANNEL = slice(None, -2)  # `(*taps, channels, multiplier)`
_TAPS_IN_BETWEEN = slice(1, -1)  # `(1, *taps, filters)`


@flop_rule(
    torch="""
        aten.cudnn_convolution aten._slow_conv2d_forward aten._conv_depthwise2d aten.conv_depthwise3d
        aten.slow_conv3d_forward aten.slow_conv_dilated2d aten.slow_conv_dilated3d aten._nnpack_spatial_convolution
        aten.mkldnn_convolution aten.cudnn_convolution_relu aten.cudnn_convolution_add_relu aten.miopen_convolution
        aten.miopen_convolution_relu aten.miopen_convolution_add_relu aten.miopen_depthwise_convolution
        aten._mps_convolution torchvision.deform_conv2d
    """,
    litert="CONV_2D FULLY_CONNECTED",
    torch_export="aten.conv1d aten.conv2d aten.conv3d aten._convolution_mode aten.thnn_conv2d aten.slow_conv3d",
    executorch="xnnpack.Conv2d xnnpack.FullyConnected",
    onnx="""
        Conv ConvInteger DeformConv CausalConvWithState com.microsoft.FusedConv com.microsoft.NhwcConv
        com.microsoft.NhwcFusedConv com.microsoft.CausalConvWithState com.ms.internal.nhwc.Conv
    """,
    one_filter=_FILTERS_FIRST,
)
@flop_rule(
    torch="aten.conv_tbc",
    keras="ops.Conv layers.Conv1D layers.Conv2D layers.Conv3D layers.Dense",
    tensorflow="Conv Conv2D Conv3D QuantizedConv2D _FusedConv2D",
    executorch="xnnpack.DepthwiseConv2d xnnpack.FullyConnectedTransposed",
    litert="CONV_3D",
    one_filter=_FILTERS_LAST,
)
@flop_rule(
    onnx="QLinearConv com.microsoft.QLinearConv com.ms.internal.nhwc.QLinearConv", one_filter=_FILTERS_FIRST, kernel=3
)
@flop_rule(tensorflow="FusedPadConv2D FusedResizeAndPadConv2D", one_filter=_FILTERS_LAST, kernel=-1)
@flop_rule(
    keras="ops.DepthwiseConv layers.DepthwiseConv1D layers.DepthwiseConv2D",
    tensorflow="DepthwiseConv2dNative QuantizedDepthwiseConv2D _FusedDepthwiseConv2dNative",
    one_filter=_OF_ONE_CHANNEL,
)
@flop_rule(litert="DEPTHWISE_CONV_2D", one_filter=_TAPS_IN_BETWEEN)
def convolution(call: OperatorCall, *, one_filter: slice, kernel: int = 1) -> int:
    """Each output element is a sum over one filter, whose axes of the kernel are `one_filter`."""
    return 2 * prod(call.outputs[0]) * prod(call.inputs[kernel][one_filter])


@flop_rule(
    torch="""
        aten.cudnn_convolution_transpose aten.miopen_convolution_transpose aten._mps_convolution_transpose
        aten.slow_conv_transpose2d aten.slow_conv_transpose3d
    """,
    torch_export="aten.conv_transpose1d aten.conv_transpose2d aten.conv_transpose3d",
    onnx="ConvTranspose com.microsoft.ConvTransposeWithDynamicPads com.ms.internal.nhwc.ConvTranspose",
    one_filter=_FILTERS_FIRST,
)
@flop_rule(keras="ops.ConvTranspose", one_filter=_FILTERS_LAST)
@flop_rule(
    tensorflow="Conv2DBackpropInput Conv2DBackpropInputV2 Conv3DBackpropInput Conv3DBackpropInputV2",
    litert="TRANSPOSE_CONV CONV_3D_TRANSPOSE",
    one_filter=_FILTERS_LAST,
    data=2,
)
@flop_rule(tensorflow="DepthwiseConv2dNativeBackpropInput", one_filter=_OF_ONE_CHANNEL, data=2)
def transposed_convolution(call: OperatorCall, *, one_filter: slice, data: int = 0) -> int:
    """Each input element is spread over one filter, which is what a convolution's way back to its input does."""
    return 2 * prod(call.inputs[data]) * prod(call.inputs[1][one_filter])


@flop_rule(executorch="xnnpack.ConvTranspose2d")
def transposed_convolution_in_groups(call: OperatorCall) -> int:
    """As a transposed convolution; the filters of all groups stand first, `(filters, *taps, channels of a group)`."""
    data, (filters, *taps, _) = call.inputs[:2]
    return 2 * prod(data) * prod(taps) * filters // int(call.argument("groups"))


@flop_rule(torch="aten.convolution aten.convolution_overrideable", torch_export="aten._convolution")
def convolution_of_either_kind(call: OperatorCall) -> int:
    """A convolution that says itself whether it is transposed."""
    formula = transposed_convolution if call.argument("transposed") else convolution
    return formula(call, one_filter=_FILTERS_FIRST)


@flop_rule(torch="aten.convolution_backward")
def convolution_backward(call: OperatorCall) -> int:
    """Gradients of the input and of the filters, those that are asked for, cost what the convolution did each."""
    gradient, data, filters = call.inputs[:3]
    moved = data if call.argument("transposed") else gradient
    asked: int = sum(call.argument("output_mask")[:2])
    return asked * 2 * prod(moved) * prod(filters[_FILTERS_FIRST])


@flop_rule(
    tensorflow="Conv2DBackpropFilter Conv2DBackpropFilterV2 Conv3DBackpropFilter Conv3DBackpropFilterV2",
    one_filter=_FILTERS_LAST,
)
@flop_rule(tensorflow="DepthwiseConv2dNativeBackpropFilter", one_filter=_OF_ONE_CHANNEL)
def convolution_back_to_filter(call: OperatorCall, *, one_filter: slice) -> int:
    """Each element of the gradient of what a convolution made meets one filter."""
    return 2 * prod(call.inputs[2]) * prod(call.outputs[0][one_filter])


@flop_rule(
    torch="""
        quantized.conv1d quantized.conv2d quantized.conv3d quantized.conv1d_relu quantized.conv2d_relu
        quantized.conv3d_relu quantized.conv2d_add quantized.conv2d_add_relu quantized.conv_transpose1d
        quantized.conv_transpose2d quantized.conv_transpose3d
    """
)
def packed_convolution(call: OperatorCall) -> int:
    """As a convolution of floats: what holds the packed filters gives them back."""
    packed: Any = call.argument("weight" if call.argument("packed_weight") is None else "packed_weight")
    filters: Shape = packed.unpack()[0].shape
    return 2 * prod(call.inputs[0] if packed.transpose() else call.outputs[0]) * prod(filters[_FILTERS_FIRST])


@flop_rule(keras="ops.SeparableConv")
def separable_convolution(call: OperatorCall) -> int:
    """A depthwise convolution and a 1x1 one; kernels `(*taps, channels, multiplier)` and `(1, .., middle, filters)`."""
    depthwise, (*_, middle, filters) = call.inputs[1], call.inputs[2]
    positions = prod(call.outputs[0]) // filters
    return 2 * positions * middle * (prod(depthwise[:-2]) + filters)


@flop_rule(jax="conv_general_dilated", litert="STABLEHLO_CONVOLUTION")
def dilated_convolution(call: OperatorCall) -> int:
    """A convolution in whatever layout; with a dilated input, a transposed one."""
    data, kernel = call.inputs[:2]
    layout: tuple[int, ...] = call.argument("dimension_numbers").rhs_spec
    filters, channels, *taps = (kernel[axis] for axis in layout)
    if any(size > 1 for size in call.argument("lhs_dilation")):
        return 2 * prod(data) * prod(taps) * filters // int(call.argument("feature_group_count"))
    return 2 * prod(call.outputs[0]) * prod(taps) * channels


@flop_rule(keras="ops.Correlate")
def correlation(call: OperatorCall) -> int:
    """As a convolution: each output meets the shorter of the two sequences."""
    return 2 * prod(call.outputs[0]) * min(map(prod, call.inputs))
