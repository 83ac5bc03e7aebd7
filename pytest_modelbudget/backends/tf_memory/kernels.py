"""What TensorFlow's kernels do with memory: which give back the memory of an input, and which write over one.

A kernel writes over an input when nothing else will read it, and it has the size and dtype of the output
(`OpKernelContext::forward_input_or_allocate_output` in the source of TensorFlow 2.21; which kernels call it with which
inputs was read there). All others that are listed make their outputs anew. What is listed nowhere has no rule.
"""

from __future__ import annotations

from math import prod
from typing import Any

_VIEWS_NAMES = """Reshape Identity Squeeze ExpandDims StopGradient PreventGradient EnsureShape Snapshot IdentityN
CheckNumerics Assign AssignAdd DestroyTemporaryVariable _Retval Enter Exit LoopCond Merge NextIteration Switch"""
VIEWS = frozenset(_VIEWS_NAMES.split())
"""Each output is the input of the same place."""

_UNARY = """Abs Acos Acosh Asin Asinh Atan Atanh Ceil Cos Cosh Digamma Elu Erf Erfc Erfinv Exp Expm1 Floor Inv Invert
Lgamma Log Log1p LogicalNot Ndtri Neg Reciprocal Relu Relu6 LeakyRelu Rint Round Rsqrt Selu Sigmoid Sign Sin Sinh
Softplus Softsign Sqrt Square Tan Tanh Softmax LogSoftmax ZerosLike OnesLike ClipByValue BiasAdd BiasAddV1
FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 ScatterNdNonAliasingAdd TensorScatterUpdate TensorScatterAdd
TensorScatterSub Conj _FusedBatchNormEx _UnaryOpsComposition"""
_BINARY = """Add AddV2 Sub Mul MulNoNan Div RealDiv DivNoNan FloorDiv FloorMod Mod TruncateDiv TruncateMod Maximum
Minimum Pow SquaredDifference Xdivy Xlogy Xlog1py Atan2 Igamma Igammac LogicalAnd LogicalOr BitwiseAnd BitwiseOr
BitwiseXor LeftShift RightShift NextAfter Zeta Polygamma EluGrad InvGrad ReciprocalGrad ReluGrad Relu6Grad
LeakyReluGrad RsqrtGrad SeluGrad SigmoidGrad SoftplusGrad SoftsignGrad SqrtGrad TanhGrad"""
WRITES_OVER = {
    **dict.fromkeys(_UNARY.split(), (0,)),
    **dict.fromkeys(_BINARY.split(), (0, 1)),
    "Select": (1, 2),
    "SelectV2": (1, 2),
    "AddN": tuple(range(64)),
}
"""The inputs over which the first output may be written."""

SECOND_OUTPUT_OVER = {"SoftmaxCrossEntropyWithLogits": 0, "SparseSoftmaxCrossEntropyWithLogits": 0}
"""Kernels whose output 1 (the gradient of the scores) is written over this input; output 0 is made anew."""

_LISTS_NAMES = """EmptyTensorList TensorListReserve TensorListFromTensor TensorListStack TensorListGetItem
TensorListSetItem TensorListPushBack TensorListPopBack TensorListLength TensorListElementShape TensorListGather
TensorListConcatV2 TensorListResize"""
LISTS = frozenset(_LISTS_NAMES.split())
_FRESH_FROM_LISTS_NAMES = """TensorListStack TensorListLength TensorListElementShape TensorListGather
TensorListConcatV2"""
FRESH_FROM_LISTS = frozenset(_FRESH_FROM_LISTS_NAMES.split())
"""What makes a new tensor from a list."""

_STATE_NAMES = """ReadVariableOp VarHandleOp AssignVariableOp AssignAddVariableOp AssignSubVariableOp
VarIsInitializedOp NoOp Assert Placeholder PlaceholderWithDefault Const ResourceScatterAdd ResourceScatterSub
ResourceScatterUpdate ResourceScatterNdAdd ResourceScatterNdUpdate ResourceStridedSliceAssign VariableShape
StaticRegexReplace PrintV2 StringFormat"""
STATE = frozenset(_STATE_NAMES.split())
"""What reads, writes or names variables; reading gives the variable's own memory."""

_FRESH_NAMES = """All Any ArgMax ArgMin AvgPool AvgPool3D AvgPool3DGrad AvgPoolGrad BatchMatMul BatchMatMulV2
BatchMatMulV3 BatchToSpaceND BiasAddGrad Bincount Bitcast BroadcastArgs BroadcastGradientArgs BroadcastTo Bucketize
Cast Cholesky CholeskyGrad Complex ComplexAbs Concat ConcatOffset ConcatV2 Conv2D Conv2DBackpropFilter
Conv2DBackpropInput Conv3D Conv3DBackpropFilterV2 Conv3DBackpropInputV2 CropAndResize Cross Cumprod Cumsum
CumulativeLogsumexp DenseBincount DepthToSpace DepthwiseConv2dNative DepthwiseConv2dNativeBackpropFilter
DepthwiseConv2dNativeBackpropInput Diag DiagPart Dilation2D DynamicPartition DynamicStitch Einsum Equal
ExtractImagePatches FFT FFT2D FFT3D Fill FusedBatchNormGrad FusedBatchNormGradV2 FusedBatchNormGradV3 Gather GatherNd
GatherV2 Greater GreaterEqual IFFT IFFT2D Imag InTopKV2 InvertPermutation IRFFT IRFFT2D IsFinite IsInf IsNan L2Loss
LRN LRNGrad Less LessEqual LinSpace MatMul MatrixBandPart MatrixDiag MatrixDiagPart MatrixDiagPartV3 MatrixDiagV3
MatrixInverse MatrixSetDiagV3 MatrixSolve MatrixTriangularSolve Max MaxPool MaxPool3D MaxPool3DGrad MaxPoolGrad
MaxPoolGradV2 MaxPoolV2 MaxPoolWithArgmax Mean Min MirrorPad MirrorPadGrad Multinomial NotEqual OneHot Pack Pad PadV2
ParallelConcat Prod Qr RandomShuffle RandomStandardNormal RandomUniform RandomUniformInt Range Rank Real ResizeBicubic
ResizeBicubicGrad ResizeBilinear ResizeBilinearGrad ResizeNearestNeighbor ResizeNearestNeighborGrad ResourceGather
ResourceGatherNd Reverse ReverseSequence ReverseV2 RFFT RFFT2D RGBToHSV RngReadAndSkip Roll ScatterNd SearchSorted
SegmentSum SegmentSumV2 SelfAdjointEigV2 Shape ShapeN Size Slice SpaceToBatchND SpaceToDepth SparseMatMul Split SplitV
StatefulUniform StatelessMultinomial StatelessRandomGetAlg StatelessRandomGetKeyCounter
StatelessRandomGetKeyCounterAlg StatelessRandomNormal StatelessRandomNormalV2 StatelessRandomUniform
StatelessRandomUniformInt StatelessRandomUniformIntV2 StatelessRandomUniformV2 StatelessTruncatedNormal
StatelessTruncatedNormalV2 StridedSlice StridedSliceGrad Sum Svd Tile TopKV2 Transpose TruncatedNormal Unpack
UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd UnsortedSegmentSum ApproximateEqual
_FusedConv2D _FusedDepthwiseConv2dNative _FusedMatMul TemporaryVariable"""
FRESH = frozenset(_FRESH_NAMES.split())
"""What makes each output anew; a part of an input along its first axis, which may share its memory, counts so too."""

UNFOLDED_BY_CACHE = frozenset(["Conv3DBackpropFilterV2", "Conv3DBackpropInputV2"])
"""What unfolds as many volumes at a time as fit the processor's last cache, so that machines differ.

See `Conv3DCustomBackpropFilterOp` and `Conv3DCustomBackpropInputOp`.
"""

FREE = frozenset(["Shape", "ShapeN", "Rank", "Size", "BroadcastGradientArgs", "ConcatOffset"])
"""What is known before the graph runs, so that its inputs are not held for it."""

_CHEAP_NAMES = """BroadcastGradientArgs ConcatOffset Const ExpandDims Identity IdentityN NoOp Placeholder
PreventGradient Rank ReadVariableOp Reshape Shape ShapeN Size Snapshot Squeeze StopGradient VarHandleOp _Retval
Enter Exit LoopCond Merge NextIteration Switch"""
CHEAP = frozenset(_CHEAP_NAMES.split())
"""What the executor runs at once where it is (`OpKernel::IsExpensive` is false)."""


def has_rule(kind: str) -> bool:
    """Whether it is known what this kind of operator does with memory."""
    return (
        kind in VIEWS
        or kind in WRITES_OVER
        or kind in SECOND_OUTPUT_OVER
        or kind in LISTS
        or kind in STATE
        or kind in FRESH
    )


_WORKING_SET = 30 << 20
"""Bytes of images that the gradients of a convolution unfold at a time: `target_working_set_size`."""

_LEAST_FOR_A_THREAD = 1 << 18
"""Bytes of one image from which on all threads work on one: `min_thread_work_unit_size`, for two threads."""


def workspace(op: Any, sizes: list[int]) -> int:
    """Bytes that a kernel takes beside its operands, whose bytes are `sizes`, and its results, where a rule is known.

    The gradient of a maximum pooling finds the places of the maxima anew: `MaxPoolingGradOp` has a copy of the pooled
    tensor and an index of 8 bytes for each of its elements. Gradients of convolutions unfold images into columns, as
    many at a time as fit a working set (`Conv2DCustomBackpropFilterOp`, `Conv2DCustomBackpropInputOp`).
    """
    if op.type == "MaxPoolGrad" and len(sizes) > 1:
        return sizes[1] + sizes[1] // max(int(op.inputs[1].dtype.size), 1) * 8
    if op.type == "Conv2DBackpropFilter":
        return _columns(op, op.inputs[0].shape, op.outputs[0].shape, of_input=False)
    if op.type == "Conv2DBackpropInput":
        return _columns(op, op.outputs[0].shape, op.inputs[1].shape, of_input=True)
    return 0


def _columns(op: Any, image: Any, weights: Any, *, of_input: bool) -> int:
    """Bytes of the columns; images are `[batch, height, width, channels]`, as on a CPU."""
    gradient = op.inputs[2].shape
    if not (image.is_fully_defined() and weights.is_fully_defined() and gradient.is_fully_defined()):
        return 0
    item = int(op.inputs[2].dtype.size)
    positions, window = prod(gradient.as_list()[1:3]), prod(weights.as_list()[:3])
    filters = gradient.as_list()[3]
    unit = positions * filters + window * filters + positions * window
    batch = image.as_list()[0]
    if of_input and (batch == 1 or unit // 2 >= _LEAST_FOR_A_THREAD // item):
        images = 1
    else:
        images = min(batch, (_WORKING_SET // item + unit - 1) // unit)  # of the rest nothing is written
    return int(images * positions * window * item)
