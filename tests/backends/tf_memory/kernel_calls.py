"""A call of each kernel that the tables of kernels name, on small tensors of the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from pytest_modelbudget.backends.tf_memory import kernels
from tests.backends.tf_memory.real_kernels import KernelCall

FLOATS = np.linspace(0.1, 0.9, 64 * 64, dtype="f").reshape(64, 64)
TRUTHS = FLOATS > 0.5
INTEGERS = np.arange(64 * 64, dtype="i").reshape(64, 64) % 7 + 1
COMPLEX = FLOATS.astype("complex64")
IMAGE = np.linspace(0.1, 0.9, 4 * 16 * 16 * 8, dtype="f").reshape(4, 16, 16, 8)
HALF_IMAGE = IMAGE[:, :8, :8].copy()
VOLUME = IMAGE.reshape(1, 8, 16, 16, 4)
HALF_VOLUME = np.ascontiguousarray(VOLUME[:, ::2, ::2, ::2])
SYMMETRIC = np.eye(64, dtype="f") * 2 + 0.01
CHANNELS = np.full(8, 0.5, "f")
LABELS = np.arange(64, dtype="i")
ROW = np.full(64, 0.5, "f")

POOL = {"ksize": [1, 2, 2, 1], "strides": [1, 2, 2, 1], "padding": "VALID"}
POOL_3D = {"ksize": [1, 2, 2, 2, 1], "strides": [1, 2, 2, 2, 1], "padding": "VALID"}
CONVOLVED = {"strides": [1, 1, 1, 1], "padding": "SAME"}
CONVOLVED_3D = {"strides": [1, 1, 1, 1, 1], "padding": "SAME"}
FILTERS = np.full((3, 3, 8, 8), 0.1, "f")
IMAGES = np.zeros((12, 64, 64, 16), "f")
"""As many as the gradients of convolutions unfold at a time."""
DEPTHWISE = np.full((3, 3, 8, 1), 0.1, "f")
FILTERS_3D = np.full((3, 3, 3, 4, 4), 0.1, "f")
EVERY = [0, 1]
SEED = [1, 2]
KEY = np.asarray([1], "uint64"), np.asarray([1, 2], "uint64")

_OF_TRUTHS = "LogicalNot LogicalAnd LogicalOr"
_OF_INTEGERS = "Invert BitwiseAnd BitwiseOr BitwiseXor LeftShift RightShift Mod TruncateDiv TruncateMod FloorMod"
_BY_HAND = """Select SelectV2 AddN BiasAdd BiasAddV1 FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 ClipByValue
ScatterNdNonAliasingAdd TensorScatterUpdate TensorScatterAdd TensorScatterSub _UnaryOpsComposition
Conj Cholesky CholeskyGrad MatrixBandPart MatrixInverse MatrixSetDiagV3 MaxPoolGrad MaxPoolGradV2 Qr"""


def _elementwise() -> dict[str, list[Any]]:
    arrays = {
        **dict.fromkeys(kernels.WRITES_OVER, FLOATS),
        **dict.fromkeys(_OF_TRUTHS.split(), TRUTHS),
        **dict.fromkeys(_OF_INTEGERS.split(), INTEGERS),
    }
    return {
        kind: [arrays[kind]] * len(places)
        for kind, places in kernels.WRITES_OVER.items()
        if kind not in _BY_HAND.split()
    }


def _call(*inputs: Any, **attributes: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return inputs, attributes


_reduced = _call(FLOATS, [1])
_compared = _call(FLOATS, FLOATS)
_segments = _call(FLOATS, LABELS)
_unsorted = _call(FLOATS, LABELS, 64)
_random = _call([64, 64], dtype="float32")
_stateless = _call([64, 64], SEED)
_stateless_v2 = _call([64, 64], *KEY, 1)

OTHERS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    # writes over
    "Select": _call(TRUTHS, FLOATS, FLOATS),
    "SelectV2": _call(TRUTHS, FLOATS, FLOATS),
    "AddN": _call((FLOATS, FLOATS, FLOATS)),
    "BiasAdd": _call(IMAGE, CHANNELS),
    "BiasAddV1": _call(IMAGE, CHANNELS),
    "FusedBatchNorm": _call(IMAGE, CHANNELS, CHANNELS, CHANNELS, CHANNELS, is_training=False),
    "FusedBatchNormV2": _call(IMAGE, CHANNELS, CHANNELS, CHANNELS, CHANNELS, is_training=False),
    "FusedBatchNormV3": _call(IMAGE, CHANNELS, CHANNELS, CHANNELS, CHANNELS, is_training=False),
    "ClipByValue": _call(FLOATS, 0.2, 0.8),
    "ScatterNdNonAliasingAdd": _call(FLOATS, [[0], [5]], FLOATS[:2].copy()),
    "TensorScatterUpdate": _call(FLOATS, [[0], [5]], FLOATS[:2].copy()),
    "TensorScatterAdd": _call(FLOATS, [[0], [5]], FLOATS[:2].copy()),
    "TensorScatterSub": _call(FLOATS, [[0], [5]], FLOATS[:2].copy()),
    "_UnaryOpsComposition": _call(FLOATS, op_names=["Sin", "Exp"]),
    "Conj": _call(COMPLEX),
    "SoftmaxCrossEntropyWithLogits": _call(FLOATS, FLOATS),
    "SparseSoftmaxCrossEntropyWithLogits": _call(FLOATS, LABELS),
    # views
    "CheckNumerics": _call(FLOATS, message="x"),
    "EnsureShape": _call(FLOATS, shape=[64, 64]),
    "ExpandDims": _call(FLOATS, 0),
    "Identity": _call(FLOATS),
    "IdentityN": _call((FLOATS, FLOATS)),
    "PreventGradient": _call(FLOATS),
    "Reshape": _call(FLOATS, [4096]),
    "Snapshot": _call(FLOATS),
    "Squeeze": _call(FLOATS[None].copy()),
    "StopGradient": _call(FLOATS),
    # made anew
    **dict.fromkeys(["Sum", "Mean", "Prod", "Max", "Min"], _reduced),
    **dict.fromkeys(("All", "Any"), _call(TRUTHS, [1])),
    **dict.fromkeys(
        ["Equal", "NotEqual", "Less", "LessEqual", "Greater", "GreaterEqual", "ApproximateEqual"], _compared
    ),
    **dict.fromkeys(["ArgMax", "ArgMin"], _call(FLOATS, 1)),
    **dict.fromkeys(["IsFinite", "IsInf", "IsNan", "L2Loss", "Rank", "Shape", "Size"], _call(FLOATS)),
    **dict.fromkeys(["BatchMatMul", "BatchMatMulV2", "MatMul", "SparseMatMul"], _compared),
    "BatchMatMulV3": _call(FLOATS, FLOATS, Tout="float32"),
    "AvgPool": _call(IMAGE, **POOL),
    "AvgPoolGrad": _call([4, 16, 16, 8], HALF_IMAGE, **POOL),
    "AvgPool3D": _call(VOLUME, **POOL_3D),
    "AvgPool3DGrad": _call([1, 8, 16, 16, 4], HALF_VOLUME, **POOL_3D),
    "MaxPool": _call(IMAGE, **POOL),
    "MaxPoolV2": _call(IMAGE, [1, 2, 2, 1], [1, 2, 2, 1], padding="VALID"),
    "MaxPoolGrad": _call(IMAGE, HALF_IMAGE, HALF_IMAGE, **POOL),
    "MaxPoolGradV2": _call(IMAGE, HALF_IMAGE, HALF_IMAGE, [1, 2, 2, 1], [1, 2, 2, 1], padding="VALID"),
    "MaxPool3D": _call(VOLUME, **POOL_3D),
    "MaxPool3DGrad": _call(VOLUME, HALF_VOLUME, HALF_VOLUME, **POOL_3D),
    "MaxPoolWithArgmax": _call(IMAGE, **POOL),
    "BatchToSpaceND": _call(IMAGE, [2, 2], [[0, 0], [0, 0]]),
    "SpaceToBatchND": _call(IMAGE, [2, 2], [[0, 0], [0, 0]]),
    "DepthToSpace": _call(IMAGE, block_size=2),
    "SpaceToDepth": _call(IMAGE, block_size=2),
    "BiasAddGrad": _call(IMAGE),
    "Bincount": _call(LABELS, 64, ROW),
    "DenseBincount": _call(LABELS, 64, ROW),
    "Bitcast": _call(FLOATS, type="int32"),
    "BroadcastArgs": _call([64, 64], [64, 1]),
    "BroadcastGradientArgs": _call([64, 64], [64, 1]),
    "BroadcastTo": _call(FLOATS, [2, 64, 64]),
    "Bucketize": _call(FLOATS, boundaries=[0.5]),
    "Cast": _call(FLOATS, DstT="int32"),
    "Cholesky": _call(SYMMETRIC),
    "CholeskyGrad": _call(SYMMETRIC, SYMMETRIC),
    "Complex": _call(FLOATS, FLOATS),
    **dict.fromkeys(["ComplexAbs", "Real", "Imag", "FFT", "IFFT", "FFT2D", "IFFT2D"], _call(COMPLEX)),
    "FFT3D": _call(COMPLEX.reshape(16, 16, 16)),
    "RFFT": _call(FLOATS, [64]),
    "RFFT2D": _call(FLOATS, [64, 64]),
    "IRFFT": _call(COMPLEX[:, :33].copy(), [64]),
    "IRFFT2D": _call(COMPLEX[:, :33].copy(), [64, 64]),
    "Concat": _call(0, (FLOATS, FLOATS)),
    "ConcatV2": _call((FLOATS, FLOATS), 0),
    "ConcatOffset": _call(0, ([64, 64], [64, 64])),
    "Pack": _call((FLOATS, FLOATS)),
    "Conv2D": _call(IMAGE, FILTERS, **CONVOLVED),
    "Conv2DBackpropFilter": _call(IMAGES, [3, 3, 16, 16], IMAGES, **CONVOLVED),
    "Conv2DBackpropInput": _call([12, 64, 64, 16], np.zeros((3, 3, 16, 16), "f"), IMAGES, **CONVOLVED),
    "Conv3D": _call(VOLUME, FILTERS_3D, **CONVOLVED_3D),
    "Conv3DBackpropFilterV2": _call(VOLUME, [3, 3, 3, 4, 4], VOLUME, **CONVOLVED_3D),
    "Conv3DBackpropInputV2": _call([1, 8, 16, 16, 4], FILTERS_3D, VOLUME, **CONVOLVED_3D),
    "DepthwiseConv2dNative": _call(IMAGE, DEPTHWISE, **CONVOLVED),
    "DepthwiseConv2dNativeBackpropFilter": _call(IMAGE, [3, 3, 8, 1], IMAGE, **CONVOLVED),
    "DepthwiseConv2dNativeBackpropInput": _call([4, 16, 16, 8], DEPTHWISE, IMAGE, **CONVOLVED),
    "CropAndResize": _call(IMAGE, [[0.0, 0.0, 1.0, 1.0]], [0], [16, 16]),
    "Cross": _call(FLOATS[:, :3].copy(), FLOATS[:, :3].copy()),
    **dict.fromkeys(["Cumprod", "Cumsum", "CumulativeLogsumexp"], _call(FLOATS, 0)),
    **dict.fromkeys(["Diag", "MatrixDiag"], _call(ROW)),
    **dict.fromkeys(["DiagPart", "MatrixDiagPart"], _call(FLOATS)),
    "MatrixDiagPartV3": _call(FLOATS, 0, 0.0),
    "MatrixDiagV3": _call(ROW, 0, -1, -1, 0.0),
    "MatrixSetDiagV3": _call(FLOATS, ROW, 0),
    "MatrixBandPart": _call(FLOATS, 1, 1),
    "MatrixInverse": _call(SYMMETRIC),
    "MatrixSolve": _call(SYMMETRIC, FLOATS),
    "MatrixTriangularSolve": _call(SYMMETRIC, FLOATS),
    "Qr": _call(SYMMETRIC),
    "SelfAdjointEigV2": _call(SYMMETRIC),
    "Svd": _call(SYMMETRIC),
    "Dilation2D": _call(IMAGE, np.full((3, 3, 8), 0.1, "f"), rates=[1, 1, 1, 1], **CONVOLVED),
    "DynamicPartition": _call(FLOATS, LABELS % 2, num_partitions=2),
    "DynamicStitch": _call((LABELS,), (FLOATS,)),
    "Einsum": _call((FLOATS, FLOATS), equation="ab,bc->ac"),
    "ExtractImagePatches": _call(IMAGE, ksizes=[1, 2, 2, 1], strides=[1, 2, 2, 1], rates=[1, 1, 1, 1], padding="VALID"),
    "Fill": _call([64, 64], 1.0),
    "FusedBatchNormGrad": _call(IMAGE, IMAGE, CHANNELS, CHANNELS, CHANNELS),
    "FusedBatchNormGradV2": _call(IMAGE, IMAGE, CHANNELS, CHANNELS, CHANNELS),
    "FusedBatchNormGradV3": _call(IMAGE, IMAGE, CHANNELS, CHANNELS, CHANNELS, CHANNELS),
    "Gather": _call(FLOATS, LABELS),
    "GatherNd": _call(FLOATS, LABELS[:, None].copy()),
    "GatherV2": _call(FLOATS, LABELS, 0),
    "InTopKV2": _call(FLOATS, LABELS, 3),
    "InvertPermutation": _call(LABELS),
    "LRN": _call(IMAGE),
    "LRNGrad": _call(IMAGE, IMAGE, IMAGE),
    "LinSpace": _call(0.0, 1.0, 64),
    "MirrorPad": _call(FLOATS, [[1, 1], [1, 1]], mode="REFLECT"),
    "MirrorPadGrad": _call(FLOATS, [[1, 1], [1, 1]], mode="REFLECT"),
    "Pad": _call(FLOATS, [[1, 1], [1, 1]]),
    "PadV2": _call(FLOATS, [[1, 1], [1, 1]], 0.0),
    "Multinomial": _call(FLOATS, 16),
    "OneHot": _call(LABELS, 64, 1.0, 0.0),
    "RGBToHSV": _call(FLOATS[:, :3].copy()),
    "RandomShuffle": _call(FLOATS),
    **dict.fromkeys(["RandomStandardNormal", "RandomUniform", "TruncatedNormal"], _random),
    "RandomUniformInt": _call([64, 64], 0, 9),
    "Range": _call(0, 64, 1),
    "ResizeBicubic": _call(IMAGE, [8, 8]),
    "ResizeBicubicGrad": _call(HALF_IMAGE, IMAGE),
    "ResizeBilinear": _call(IMAGE, [8, 8]),
    "ResizeBilinearGrad": _call(HALF_IMAGE, IMAGE),
    "ResizeNearestNeighbor": _call(IMAGE, [8, 8]),
    "ResizeNearestNeighborGrad": _call(HALF_IMAGE, [16, 16]),
    "Reverse": _call(FLOATS, [True, False]),
    "ReverseSequence": _call(FLOATS, LABELS, seq_dim=1),
    "ReverseV2": _call(FLOATS, [0]),
    "Roll": _call(FLOATS, 1, 0),
    "ScatterNd": _call(LABELS[:, None].copy(), FLOATS, [64, 64]),
    "SegmentSum": _segments,
    **dict.fromkeys((f"UnsortedSegment{word}" for word in ("Max", "Min", "Prod", "Sum")), _unsorted),
    "ShapeN": _call((FLOATS, FLOATS)),
    "Slice": _call(FLOATS, [0, 1], [64, 32]),
    "Split": _call(1, FLOATS, num_split=2),
    "SplitV": _call(FLOATS, [16, 48], 1, num_split=2),
    "StatelessMultinomial": _call(FLOATS, 16, SEED),
    "StatelessRandomGetAlg": _call(),
    "StatelessRandomGetKeyCounter": _call(SEED),
    "StatelessRandomGetKeyCounterAlg": _call(SEED),
    **dict.fromkeys(["StatelessRandomNormal", "StatelessRandomUniform", "StatelessTruncatedNormal"], _stateless),
    "StatelessRandomUniformInt": _call([64, 64], SEED, 0, 9),
    **dict.fromkeys(
        ["StatelessRandomNormalV2", "StatelessRandomUniformV2", "StatelessTruncatedNormalV2"], _stateless_v2
    ),
    "StatelessRandomUniformIntV2": _call([64, 64], *KEY, 1, 0, 9),
    "StridedSlice": _call(FLOATS, [0, 1], [64, 33], [1, 1]),
    "StridedSliceGrad": _call([64, 65], [0, 1], [64, 65], [1, 1], FLOATS),
    "Tile": _call(FLOATS, [2, 1]),
    "TopKV2": _call(FLOATS, 4),
    "Transpose": _call(FLOATS, [1, 0]),
    "Unpack": _call(FLOATS, num=64),
    "_FusedConv2D": _call(IMAGE, FILTERS, (CHANNELS,), (), num_args=1, fused_ops=["BiasAdd", "Relu"], **CONVOLVED),
    "_FusedMatMul": _call(FLOATS, FLOATS, (ROW,), fused_ops=["BiasAdd", "Relu"]),
}

CALLS = [KernelCall(kind, inputs) for kind, inputs in _elementwise().items()] + [
    KernelCall(kind, inputs, attributes) for kind, (inputs, attributes) in OTHERS.items()
]

NARROW = FLOATS[:, :8].copy()
"""Rows of 32 bytes, of which every second one begins at no multiple of 64."""

ALIGNED = FLOATS[:, :16].copy()
"""Rows of 64 bytes."""

SHARED_OR_NOT = [
    KernelCall("FusedBatchNormV3", [IMAGE, CHANNELS, CHANNELS, CHANNELS, CHANNELS]),
    KernelCall("Unpack", [NARROW], {"num": 64}),
    KernelCall("Unpack", [FLOATS], {"num": 64, "axis": 1}),
    *[KernelCall("Split", [axis, FLOATS], {"num_split": 2}) for axis in (0, 1)],
    KernelCall("Split", [0, NARROW], {"num_split": 64}),
    KernelCall("SplitV", [FLOATS, [16, 48], 0], {"num_split": 2}),
    KernelCall("SplitV", [NARROW, [33, 31], 0], {"num_split": 2}),
    *[KernelCall("Slice", [FLOATS, *part]) for part in (([0, 0], [64, 64]), ([1, 0], [32, -1]), ([0, 0], [64, 32]))],
    *[KernelCall("Slice", [NARROW, *part]) for part in (([1, 0], [32, 8]), ([2, 0], [32, 8]))],
    *[
        KernelCall("StridedSlice", [tensor, *part], masks)
        for tensor in (FLOATS, NARROW, ALIGNED)
        for part, masks in (
            (([0, 0], [64, 64], [1, 1]), {}),
            (([1], [33], [1]), {}),
            (([2], [34], [1]), {}),
            (([3], [4], [1]), {"shrink_axis_mask": 1}),
            (([4], [5], [1]), {"shrink_axis_mask": 1}),
            (([0, 0], [-2, 0], [1, 1]), {"begin_mask": 3, "end_mask": 2}),
            (([0], [64], [2]), {}),
        )
    ],
    KernelCall("Transpose", [FLOATS[:, None].copy(), [1, 0, 2]]),
    KernelCall("Transpose", [FLOATS[:, None].copy(), [2, 1, 0]]),
    KernelCall("Cast", [FLOATS], {"DstT": "float32"}),
    KernelCall("BroadcastTo", [FLOATS, [64, 64]]),
    KernelCall("Tile", [FLOATS, [1, 1]]),
    KernelCall("Pad", [FLOATS, [[0, 0], [0, 0]]]),
    KernelCall("Sum", [FLOATS[None].copy(), [0]]),
    KernelCall("Max", [FLOATS, np.zeros(0, "i")]),
    KernelCall("Pack", [(FLOATS,)]),
    KernelCall("ConcatV2", [(FLOATS, FLOATS[:0].copy()), 0]),
]
"""Calls of kernels that share memory in some and make it in others."""
