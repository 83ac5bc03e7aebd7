"""The names of Keras' operations and layers that cost nothing."""

from __future__ import annotations


def _names(*groups: str) -> frozenset[str]:
    return frozenset(name for group in groups for name in group.split())


ZERO = _names(
    # casts, copies, views, look-ups and scatters
    """
    AffineTransform Append Arange Array ArraySplit BroadcastTo Cast Concatenate ConvertToTensor Copy CropImages
    DepthToSpace Diag Diagflat Diagonal Dsplit Dstack ElasticTransform EmptyLike ExpandDims ExtractPatches
    FakeQuantWithMinMaxVars Rearrange
    ExtractSequences Flip Fliplr Flipud Fold Full FullLike Geomspace GetItem Hsplit Hstack Linspace Logspace
    MapCoordinates Meshgrid Moveaxis MultiHot Ndim Nonzero OneHot OnesLike Pad PadImages PerspectiveTransform Ravel
    Repeat Reshape Resize Roll Rot90 SaturateCast ScaleAndTranslate Scatter ScatterUpdate Select Size Slice SliceUpdate
    SpaceToDepth Split Squeeze Stack StopGradient Swapaxes Switch Take TakeAlongAxis Tile Transpose Tril Triu Unfold
    UnravelIndex Unstack Vander View ViewAsComplex ViewAsReal Vsplit Vstack Where ZerosLike
    Empty Eye Identity Ones Tri Zeros ExtractPatches3D Bartlett Blackman Hamming Hanning Kaiser
    """,
    # colours, elementwise functions and comparisons
    """
    Abs Absolute Add AllClose Angle Arccos Arccosh Arcsin Arcsinh Arctan Arctan2 Arctanh BitwiseAnd BitwiseInvert
    BitwiseLeftShift BitwiseNot BitwiseOr BitwiseRightShift BitwiseXor Cbrt Ceil Clip Conj Conjugate Cos Cosh Cross
    Deg2rad Digitize Divide DivideNoNan Equal Erf Erfc Erfinv Exp Exp2 Expm1 Fabs Floor FloorDivide Fmax Fmin Fmod
    Gcd Greater GreaterEqual Heaviside HSVToRGB Hypot I0 Imag Isclose Isfinite IsIn Isinf Isnan Isneginf Isposinf
    Isreal Kron Lcm Ldexp LeftShift Less LessEqual Log Log10 Log1p Log2 Logaddexp Logaddexp2 LogicalAnd LogicalNot
    LogicalOr LogicalXor Maximum Minimum Mod Multiply NanToNum Negative Nextafter NotEqual Outer Polar Power Rad2deg
    Real Reciprocal RGBToGrayscale RGBToHSV RightShift Round Rsqrt Sign Signbit Sin Sinc Sinh Sqrt Square Subtract
    Tan Tanh TrueDivide Trunc
    """,
    # activations, losses, normalisation and pooling
    """
    AdaptiveAveragePool AdaptiveMaxPool AveragePool BatchNorm BinaryCrossentropy CategoricalCrossentropy Celu CTCDecode
    CTCLoss Elu Gelu Glu HardShrink HardSigmoid HardSilu HardTanh LayerNorm LeakyRelu LogSigmoid LogSoftmax MaxPool Mish
    Moments Normalize PSNR Relu ReLU Relu6 RMSNorm Selu Sigmoid Silu Softmax Softplus SoftShrink Softsign
    SparseCategoricalCrossentropy Sparsemax SparsePlus SparseSigmoid Squareplus TanhShrink Threshold
    """,
    # reductions, scans, sorting and searching
    """
    All Amax Amin Any Argmax Argmin Argpartition Argsort Average Bincount CountNonzero Cumprod Cumsum Diff Histogram
    InTopK Logsumexp Max Mean Median Min Nanargmax Nanargmin Nancumprod Nancumsum Nanmax Nanmean Nanmedian Nanmin
    Nanpercentile Nanprod Nanquantile Nanstd Nansum Nanvar Norm Percentile Prod Ptp Quantile SearchSorted SegmentMax
    SegmentMin SegmentProd SegmentReduction SegmentSum Sort Std Sum TopK Trace Trapezoid Unique Var
    """,
)
"""Operations that cost nothing by rule."""

ZERO_LAYERS = _names(
    """
    Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D
    AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add AlphaDropout AugMix AutoContrast Average
    AveragePooling1D AveragePooling2D AveragePooling3D BatchNormalization CategoryEncoding CenterCrop Concatenate
    ContrastLimitedAdaptiveHistogramEqualization Cropping1D Cropping2D Cropping3D CutMix Discretization Dropout ELU
    Embedding Equalization Flatten GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D
    GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization
    HashedCrossing Hashing Identity InputLayer IntegerLookup LayerNormalization LeakyReLU Masking Maximum
    MaxNumBoundingBoxes MaxPooling1D MaxPooling2D MaxPooling3D Minimum MixUp Multiply Normalization Permute PReLU
    RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop
    RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHue RandomInvert
    RandomPerspective RandomPosterization RandomRotation RandomSaturation RandomSharpness RandomShear
    RandomTranslation RandomZoom ReLU RepeatVector Rescaling Reshape Resizing RMSNormalization Softmax Solarization
    SpatialDropout1D SpatialDropout2D SpatialDropout3D StringLookup Subtract TextVectorization UnitNormalization
    UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
    """,
)
"""Layers that cost nothing by rule, and are not looked into."""

WITH_WEIGHTS = _names(
    """
    BatchNormalization Embedding GroupNormalization LayerNormalization Normalization PReLU RMSNormalization
    """,
)
"""The layers of `ZERO_LAYERS` that hold weights."""
