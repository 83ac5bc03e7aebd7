"""What TensorFlow's kernels do with memory: which give back the memory of an input, and which write over one.

A kernel writes over an input when nothing else will read it, and it has the size and dtype of the output
(`OpKernelContext::forward_input_or_allocate_output` in the source of TensorFlow 2.21; which kernels call it with which
inputs was read there, and held against real runs of each). All others that are listed make their outputs anew. What is
listed nowhere has no rule.
"""

from __future__ import annotations

_VIEWS_NAMES = """Bitcast Reshape Identity Squeeze ExpandDims StopGradient PreventGradient EnsureShape Snapshot
IdentityN CheckNumerics Assign AssignAdd DestroyTemporaryVariable _Retval Enter Exit LoopCond Merge NextIteration
Switch"""
VIEWS = frozenset(_VIEWS_NAMES.split())
"""Each output is the input of the same place."""

_UNARY = """Abs Acos Acosh Asin Asinh Atan Atanh Ceil Cos Cosh Digamma Elu Erf Erfc Erfinv Exp Expm1 Floor Inv Invert
Lgamma Log Log1p LogicalNot Ndtri Neg Reciprocal Relu Relu6 LeakyRelu Rint Round Rsqrt Selu Sigmoid Sign Sin Sinh
Softplus Softsign Sqrt Square Tan Tanh Softmax LogSoftmax ZerosLike OnesLike ClipByValue BiasAdd BiasAddV1
ScatterNdNonAliasingAdd Conj Cholesky MatrixBandPart MatrixInverse MatrixSetDiagV3 MaxPoolGrad MaxPoolGradV2 Qr
_UnaryOpsComposition"""
_BINARY = """Add AddV2 Sub Mul MulNoNan Div RealDiv DivNoNan FloorDiv FloorMod Mod TruncateDiv TruncateMod Maximum
Minimum Pow SquaredDifference Xdivy Xlogy Xlog1py Atan2 Igamma Igammac LogicalAnd LogicalOr BitwiseAnd BitwiseOr
BitwiseXor LeftShift RightShift NextAfter Zeta Polygamma EluGrad InvGrad ReciprocalGrad ReluGrad Relu6Grad
LeakyReluGrad RsqrtGrad SeluGrad SigmoidGrad SoftplusGrad SoftsignGrad SqrtGrad TanhGrad
CholeskyGrad"""
WRITES_OVER = {
    **dict.fromkeys(_UNARY.split(), (0,)),
    **dict.fromkeys(_BINARY.split(), (0, 1)),
    "Select": (1, 2),
    "SelectV2": (1, 2),
    "AddN": tuple(range(64)),
}
"""The inputs over which the first output may be written."""

SECOND_OUTPUT_OVER = {
    "SelfAdjointEigV2": 0,
    "SoftmaxCrossEntropyWithLogits": 0,
    "SparseSoftmaxCrossEntropyWithLogits": 0,
    "Svd": 0,
}
"""Kernels whose output 1 (the gradient of the scores, say) is written over this input; others are made anew."""

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

_FRESH_NAMES = """All Any ApproximateEqual ArgMax ArgMin AvgPool AvgPool3D AvgPool3DGrad AvgPoolGrad BatchMatMul
BatchMatMulV2 BatchMatMulV3 BatchToSpaceND BiasAddGrad Bincount BroadcastArgs BroadcastGradientArgs BroadcastTo
Bucketize Cast Complex ComplexAbs Concat ConcatOffset ConcatV2 Conv2D Conv2DBackpropFilter Conv2DBackpropInput Conv3D
Conv3DBackpropFilterV2 Conv3DBackpropInputV2 CropAndResize Cross Cumprod Cumsum CumulativeLogsumexp DenseBincount
DepthToSpace DepthwiseConv2dNative DepthwiseConv2dNativeBackpropFilter DepthwiseConv2dNativeBackpropInput Diag
DiagPart Dilation2D DynamicPartition DynamicStitch Einsum Equal ExtractImagePatches FFT FFT2D FFT3D Fill
FusedBatchNorm FusedBatchNormGrad FusedBatchNormGradV2 FusedBatchNormGradV3 FusedBatchNormV2 FusedBatchNormV3 Gather
GatherNd GatherV2 Greater GreaterEqual IFFT IFFT2D Imag InTopKV2 InvertPermutation IRFFT IRFFT2D IsFinite IsInf IsNan
L2Loss Less LessEqual LinSpace LRN LRNGrad MatMul MatrixDiag MatrixDiagPart MatrixDiagPartV3 MatrixDiagV3 MatrixSolve
MatrixTriangularSolve Max MaxPool MaxPool3D MaxPool3DGrad MaxPoolV2 MaxPoolWithArgmax Mean Min MirrorPad MirrorPadGrad
Multinomial NotEqual OneHot Pack Pad PadV2 Prod RandomShuffle RandomStandardNormal RandomUniform
RandomUniformInt Range Rank Real ResizeBicubic ResizeBicubicGrad ResizeBilinear ResizeBilinearGrad
ResizeNearestNeighbor ResizeNearestNeighborGrad ResourceGather ResourceGatherNd Reverse ReverseSequence ReverseV2 RFFT
RFFT2D RGBToHSV RngReadAndSkip Roll ScatterNd SegmentSum Shape ShapeN Size Slice SpaceToBatchND SpaceToDepth
SparseMatMul Split SplitV StatefulUniform StatelessMultinomial StatelessRandomGetAlg StatelessRandomGetKeyCounter
StatelessRandomGetKeyCounterAlg StatelessRandomNormal StatelessRandomNormalV2 StatelessRandomUniform
StatelessRandomUniformInt StatelessRandomUniformIntV2 StatelessRandomUniformV2 StatelessTruncatedNormal
StatelessTruncatedNormalV2 StridedSlice StridedSliceGrad Sum TemporaryVariable TensorScatterAdd TensorScatterSub
TensorScatterUpdate Tile TopKV2 Transpose TruncatedNormal Unpack UnsortedSegmentMax UnsortedSegmentMin
UnsortedSegmentProd UnsortedSegmentSum _FusedConv2D _FusedMatMul"""
FRESH = frozenset(_FRESH_NAMES.split())
"""What makes each output anew, but where `parts` says that it is memory of an input."""

UNFOLDED_BY_CACHE = frozenset(["Conv3DBackpropFilterV2", "Conv3DBackpropInputV2"])
"""What unfolds as many volumes at a time as fit the processor's last cache, so that machines differ.

See `Conv3DCustomBackpropFilterOp` and `Conv3DCustomBackpropInputOp`.
"""

FREE = frozenset(["Shape", "ShapeN", "Rank", "Size", "BroadcastGradientArgs", "ConcatOffset"])
"""What is known before the graph runs, so that its inputs are not held for it."""

_CHEAP_NAMES = """BroadcastGradientArgs ConcatOffset Const ExpandDims Identity IdentityN NoOp Placeholder
PreventGradient Rank Reshape Shape ShapeN Size Snapshot Squeeze StopGradient VarHandleOp _Retval
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
