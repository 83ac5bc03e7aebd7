"""The names of ONNX's operators that cost nothing by rule, and of those of onnxruntime (`com.microsoft`)."""

from __future__ import annotations

_ELEMENTWISE = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast
    CastLike Ceil Celu Clip Cos Cosh Div Dropout Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid
    HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu
    RotaryEmbedding Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum SwiGLU Swish Tan Tanh
    ThresholdedRelu Where Xor DequantizeLinear DynamicQuantizeLinear QuantizeLinear
"""
_NORMALISATION_AND_POOLING = """
    AveragePool BatchNormalization GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization Hardmax
    InstanceNormalization LRN LayerNormalization LogSoftmax LpNormalization LpPool MaxPool MaxRoiPool MaxUnpool
    MeanVarianceNormalization NegativeLogLikelihoodLoss RMSNormalization RoiAlign Softmax SoftmaxCrossEntropyLoss
"""
_REDUCTIONS_AND_ORDER = """
    ArgMax ArgMin CumProd CumSum NonMaxSuppression ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum ReduceSumSquare TopK Unique
"""
_VIEWS_AND_LOOK_UPS = """
    CenterCropPad Col2Im Compress Concat ConcatFromSequence DepthToSpace Expand Flatten Gather GatherElements GatherND
    GridSample Identity NonZero Pad Reshape Resize ReverseSequence Scatter ScatterElements ScatterND Shape Size Slice
    SpaceToDepth Split SplitToSequence Squeeze TensorScatter Tile Transpose Trilu Unsqueeze Upsample
"""
_MAKING = """
    Bernoulli BlackmanWindow Constant ConstantOfShape EyeLike HammingWindow HannWindow MelWeightMatrix Multinomial
    OneHot RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range
"""
_SEQUENCES_AND_TEXT = """
    ImageDecoder Optional OptionalGetElement OptionalHasElement RegexFullMatch SequenceAt SequenceConstruct
    SequenceEmpty SequenceErase SequenceInsert SequenceLength StringConcat StringNormalizer StringSplit TfIdfVectorizer
"""
_MACHINE_LEARNING = """
    ArrayFeatureExtractor Binarizer CastMap CategoryMapper DictVectorizer FeatureVectorizer Imputer LabelEncoder
    Normalizer OneHotEncoder Scaler TreeEnsemble TreeEnsembleClassifier TreeEnsembleRegressor ZipMap
"""
_MICROSOFT = """
    BiasAdd BiasDropout BiasGelu BiasSoftmax BiasSplitGelu BitmaskBiasDropout BitmaskDropout BranchwiseRMSNorm
    ComplexMul ComplexMulConj CropAndResize DequantizeBFP DequantizeLinear DequantizeWithOrder EmbedLayerNormalization
    ExpandDims FastGelu GatedAdd GatedRMSNorm GatherBlockQuantized GatherND GatherPacked Gelu GemmaRotaryEmbedding
    GridSample GroupNorm IsAllFinite MaxpoolWithMask MRotaryEmbedding MulInteger MurmurHash3 NGramRepeatBlock
    NhwcMaxPool Pad QEmbedLayerNormalization QLinearAdd QLinearAveragePool QLinearConcat QLinearGlobalAveragePool
    QLinearLeakyRelu QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere QOrderedGelu
    QOrderedLayerNormalization QuantizeBFP QuantizeLinear QuantizeWithOrder QuickGelu Range ReduceSumInteger
    RemovePadding RestorePadding RMSNormRotary RotaryEmbedding ScaledSiLU SkipGroupNorm SkipLayerNormalization
    SkipSimplifiedLayerNormalization SwiGLU Tokenizer TorchEmbedding Trilu UnfoldTensor Unique
"""
_LAYOUTS = """
    com.ms.internal.nhwc.AveragePool com.ms.internal.nhwc.BatchNormalization com.ms.internal.nhwc.DepthToSpace
    com.ms.internal.nhwc.GlobalAveragePool com.ms.internal.nhwc.GlobalLpPool com.ms.internal.nhwc.GlobalMaxPool
    com.ms.internal.nhwc.GridSample com.ms.internal.nhwc.InstanceNormalization com.ms.internal.nhwc.LRN
    com.ms.internal.nhwc.LpPool com.ms.internal.nhwc.MaxPool com.ms.internal.nhwc.MaxUnpool
    com.ms.internal.nhwc.QLinearAveragePool com.ms.internal.nhwc.Resize com.ms.internal.nhwc.SpaceToDepth
    com.microsoft.nchwc.AveragePool com.microsoft.nchwc.GlobalAveragePool com.microsoft.nchwc.GlobalMaxPool
    com.microsoft.nchwc.MaxPool com.microsoft.nchwc.ReorderInput com.microsoft.nchwc.ReorderOutput
    com.microsoft.nchwc.Upsample
"""

ZERO = frozenset((
    *" ".join((
        _ELEMENTWISE, _NORMALISATION_AND_POOLING, _REDUCTIONS_AND_ORDER, _VIEWS_AND_LOOK_UPS, _MAKING,
        _SEQUENCES_AND_TEXT, _LAYOUTS,
    )).split(),
    *(f"ai.onnx.ml.{name}" for name in _MACHINE_LEARNING.split()),
    *(f"com.microsoft.{name}" for name in _MICROSOFT.split()),
))  # fmt: skip
"""Operators that cost nothing by rule; trees compare, and multiply nothing."""
