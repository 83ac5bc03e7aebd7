"""The names of TensorFlow's operators that cost nothing by rule."""

from __future__ import annotations

_ELEMENTWISE = """
    Abs AccumulateNV2 Acos Acosh Add AddN AddV2 AdjustContrast AdjustContrastv2 AdjustHue AdjustSaturation Angle
    ApproximateEqual Asin Asinh Atan Atan2 Atanh BesselI0 BesselI0e BesselI1 BesselI1e BesselJ0 BesselJ1 BesselK0
    BesselK0e BesselK1 BesselK1e BesselY0 BesselY1 Betainc BiasAdd BiasAddV1 Bitcast BitwiseAnd BitwiseOr BitwiseXor
    Cast Ceil CheckNumerics CheckNumericsV2 ClipByValue Complex ComplexAbs Conj Cos Cosh Cross Dawsn Dequantize Digamma
    Div DivNoNan Elu Equal Erf Erfc Erfinv Exp Expint Expm1 Floor FloorDiv FloorMod FresnelCos FresnelSin Greater
    GreaterEqual HSVToRGB Igamma Igammac Imag Inv Invert IsFinite IsInf IsNan LeakyRelu LeftShift Less LessEqual
    Lgamma Log Log1p LogicalAnd LogicalNot LogicalOr Maximum Minimum Mod Mul MulNoNan Ndtri Neg NextAfter NotEqual
    Polygamma PopulationCount Pow QuantizeAndDequantize QuantizeAndDequantizeV2 QuantizeAndDequantizeV3
    QuantizeAndDequantizeV4 QuantizeDownAndShrinkRange QuantizeV2 QuantizedAdd QuantizedBiasAdd QuantizedMul
    QuantizedRelu QuantizedRelu6 QuantizedReluX QuantizedReshape QuantizedConcat RGBToHSV Real RealDiv Reciprocal Relu
    Relu6 RequantizationRange RequantizationRangePerChannel Requantize RequantizePerChannel RightShift Rint Round
    Rsqrt Select SelectV2 Selu Sigmoid Sign Sin Sinh Softplus Softsign Spence Sqrt Square SquaredDifference Sub Tan
    Tanh ToBool TruncateDiv TruncateMod UniformDequantize UniformQuantize UniformQuantizedAdd
    UniformQuantizedClipByValue UniformRequantize Xdivy Xlog1py Xlogy Zeta
"""
_NORMALISATION_AND_POOLING = """
    AvgPool AvgPool3D BatchNormWithGlobalNormalization Dilation2D FractionalAvgPool FractionalMaxPool FusedBatchNorm
    FusedBatchNormV2 FusedBatchNormV3 LRN LogSoftmax MaxPool MaxPool3D MaxPoolV2 MaxPoolWithArgmax QuantizedAvgPool
    QuantizedBatchNormWithGlobalNormalization QuantizedInstanceNorm QuantizedMaxPool Softmax
    SoftmaxCrossEntropyWithLogits SparseSoftmaxCrossEntropyWithLogits SparseSoftmax CTCBeamSearchDecoder
    CTCGreedyDecoder CTCLoss CTCLossV2 Dilation2DBackpropFilter Dilation2DBackpropInput
"""
_REDUCTIONS_AND_ORDER = """
    All Any ApproxTopK ArgMax ArgMin Bincount Bucketize Cumprod Cumsum CumulativeLogsumexp DenseBincount EuclideanNorm
    HistogramFixedWidth InTopK InTopKV2 L2Loss LowerBound Max Mean Min NthElement Prod RaggedBincount SegmentMax
    SegmentMaxV2 SegmentMean SegmentMin SegmentMinV2 SegmentProd SegmentProdV2 SegmentSum SegmentSumV2 SparseBincount
    SparseReduceMax SparseReduceMaxSparse SparseReduceSum SparseReduceSumSparse SparseSegmentMean
    SparseSegmentMeanWithNumSegments SparseSegmentSqrtN SparseSegmentSqrtNWithNumSegments SparseSegmentSum
    SparseSegmentSumWithNumSegments Sum TopK TopKV2 Unique UniqueV2 UniqueWithCounts UniqueWithCountsV2
    UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd UnsortedSegmentSum UpperBound ComputeAccidentalHits
    DenseCountSparseOutput IsotonicRegression SparseCountSparseOutput
"""
_VIEWS_AND_LOOK_UPS = """
    BatchMatrixBandPart BatchMatrixDiag BatchMatrixDiagPart BatchMatrixSetDiag BatchToSpace BatchToSpaceND BroadcastArgs
    BroadcastGradientArgs BroadcastTo Concat ConcatOffset ConcatV2 ConjugateTranspose CropAndResize DataFormatDimMap
    DataFormatVecPermute DeepCopy DepthToSpace Diag DiagPart DynamicPartition DynamicStitch EnsureShape ExpandDims
    ExtractGlimpse ExtractGlimpseV2 ExtractImagePatches ExtractVolumePatches Gather GatherNd GatherV2 Identity IdentityN
    ImageProjectiveTransformV2 ImageProjectiveTransformV3 InplaceAdd InplaceSub InplaceUpdate InvertPermutation ListDiff
    MatrixBandPart MatrixDiag MatrixDiagPart MatrixDiagPartV2 MatrixDiagPartV3 MatrixDiagV2 MatrixDiagV3 MatrixSetDiag
    MatrixSetDiagV2 MatrixSetDiagV3 MirrorPad OneHot OnesLike Pack Pad PadV2 ParallelConcat ParallelDynamicStitch
    PreventGradient QuantizedResizeBilinear Rank Reshape ResizeArea ResizeBicubic ResizeBilinear ResizeNearestNeighbor
    Reverse ReverseSequence ReverseV2 Roll ScaleAndTranslate ScatterNd Shape ShapeN Size Slice Snapshot SpaceToBatch
    SpaceToBatchND SpaceToDepth Split SplitV Squeeze StopGradient StridedSlice Tile Transpose UnravelIndex Unpack Where
    ZerosLike Copy CopyHost GetElementAtIndex RefIdentity RefSelect
"""
_MAKING = """
    ParameterizedTruncatedNormal
    Const Empty Fill GuaranteeConst ImmutableConst LinSpace Multinomial NonDeterministicInts
    Placeholder PlaceholderV2 PlaceholderWithDefault RandomGamma RandomIndexShuffle RandomPoisson RandomPoissonV2
    RandomShuffle RandomCrop RandomStandardNormal RandomUniform RandomUniformInt Range RngReadAndSkip RngSkip
    SampleDistortedBoundingBox SampleDistortedBoundingBoxV2 SobolSample TruncatedNormal
"""
_STATE = """
    Assign AssignAdd AssignAddVariableOp AssignSub AssignSubVariableOp AssignVariableOp CountUpTo DestroyResourceOp
    DisableCopyOnRead IsVariableInitialized ReadVariableOp ResourceGather ResourceGatherNd VarHandleOp
    VarIsInitializedOp Variable VariableShape VariableV2 DestroyTemporaryVariable StridedSliceAssign TemporaryVariable
"""
_TEXT_AND_SETS = """
    AsString DenseToDenseSetOperation DenseToSparseSetOperation EditDistance ReduceJoin RegexFullMatch RegexReplace
    SetSize SparseToSparseSetOperation StaticRegexFullMatch StaticRegexReplace Substr UnsortedSegmentJoin
"""
_SPARSE = """
    CompositeTensorVariantFromComponents CompositeTensorVariantToComponents SparseAdd SparseConcat SparseCross
    SparseCrossHashed SparseCrossV2 SparseDenseCwiseAdd SparseDenseCwiseDiv SparseDenseCwiseMul SparseFillEmptyRows
    SparseReorder SparseReshape SparseSlice SparseSparseMaximum SparseSparseMinimum SparseSplit SparseTensorDenseAdd
    SparseToDense AddManySparseToTensorsMap AddSparseToTensorsMap CSRSparseMatrixComponents CSRSparseMatrixToDense
    CSRSparseMatrixToSparseTensor DenseToCSRSparseMatrix DeserializeManySparse DeserializeSparse SerializeManySparse
    SerializeSparse SparseMatrixAdd SparseMatrixMul SparseMatrixNNZ SparseMatrixSoftmax SparseMatrixTranspose
    SparseMatrixZeros SparseTensorToCSRSparseMatrix TakeManySparseFromTensorsMap
"""
_QUESTIONS = """
    Assert CombinedNonMaxSuppression ControlTrigger DrawBoundingBoxes DrawBoundingBoxesV2 Enter Exit FakeParam
    GenerateBoundingBoxProposals Merge NextIteration NoOp Print PrintV2 Switch Timestamp Abort CheckPinned DeviceIndex
    Fingerprint LoopCond OptionalFromValue OptionalGetValue OptionalHasValue OptionalNone RefEnter RefExit RefMerge
    RefNextIteration RefSwitch SerializeTensor SyncDevice
"""

ZERO = frozenset(
    " ".join(
        (
            _ELEMENTWISE, _NORMALISATION_AND_POOLING, _REDUCTIONS_AND_ORDER, _VIEWS_AND_LOOK_UPS, _MAKING, _STATE,
            _TEXT_AND_SETS, _SPARSE, _QUESTIONS,
        )
    ).split()
)  # fmt: skip
"""Operators that cost nothing by rule."""

ZERO_FAMILIES = (
    "AnonymousHashTable", "AnonymousMutable", "Decode", "EmptyTensor", "Encode", "FakeQuant", "HashTable",
    "InitializeTable", "LookupTable", "MutableDenseHashTable", "MutableHashTable", "NonMaxSuppression", "Parse",
    "Ragged", "ResourceScatter", "Scatter", "StatefulRandom", "StatefulStandardNormal", "StatefulTruncatedNormal",
    "StatefulUniform", "StatelessMultinomial", "StatelessParameterized", "StatelessRandom", "StatelessSample",
    "StatelessShuffle", "StatelessTruncatedNormal", "String", "TensorArray", "TensorList", "TensorMap", "TensorScatter",
    "TensorStridedSlice", "Unicode",
)  # fmt: skip
"""Beginnings of the names of whole families that cost nothing by rule: tables, text, randomness, lists of tensors."""


def costs_nothing(kind: str) -> bool:
    """Whether an operator is zero by rule."""
    return kind in ZERO or kind.startswith(ZERO_FAMILIES)
