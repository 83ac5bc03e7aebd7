"""Small convolutions of one sample in float32, which torch runs without oneDNN on the CPU, as products of matrices.

Which they are: `ATen/native/Convolution.cpp`, `use_mkldnn`. What they take: `NaiveConvolution*.cpp` and
`ConvolutionMM*.cpp`, where the windows of the input are written out as columns.
"""

from __future__ import annotations

from math import prod

from pytest_modelbudget.backends.torch.kernels.convolution_scratch import ConvolutionShape
from pytest_modelbudget.backends.torch.kernels.cpus import FLOAT

_MOST_ELEMENTS = 20_480  # of the first four dimensions of the input
_WIDEST_KERNEL = 3


def runs_natively(shape: ConvolutionShape, *, transposed: bool = False) -> bool:
    """Whether torch leaves it to kernels of its own; the input of a `transposed` one are its windows."""
    channels, size = (shape.filters, shape.windows) if transposed else (shape.channels, shape.size)
    planes = (1, *size) if len(size) == 1 else size
    is_narrow = min((1, *shape.kernel)[-2:]) <= _WIDEST_KERNEL
    return shape.batch == shape.groups == 1 and is_narrow and channels * prod(planes[:2]) <= _MOST_ELEMENTS


def native_transposed_workspace(shape: ConvolutionShape) -> int:
    """Columns of a transposed one, forward, or in three dimensions the input before them.

    Not counted: in three dimensions a channel of ones, where there is a bias.
    """
    input_copy = FLOAT * shape.filters * prod(shape.windows) if len(shape.size) == 3 else 0
    return max(input_copy, _columns(shape))


def native_transposed_backward_workspace(shape: ConvolutionShape) -> int:
    """Columns for each gradient of a transposed one in its turn."""
    return _columns(shape)


def native_workspace(shape: ConvolutionShape) -> int:
    """Columns of a forward pass; those of single points are the input itself."""
    return 0 if _reads_points(shape) else _columns(shape)


def native_backward_workspace(shape: ConvolutionShape, weight_bytes: int, to_input: bool, to_weight: bool) -> int:
    """Columns for each gradient: that of the input first, which in planes without dilation needs none."""
    is_direct = len(shape.size) < 3 and max(shape.dilation) == 1
    first = _columns(shape) if to_input and not is_direct else 0
    second = native_workspace(shape) if to_weight else 0
    return max(first - (weight_bytes if to_weight else 0), second, 0)


def _columns(shape: ConvolutionShape) -> int:
    return FLOAT * shape.channels * prod(shape.kernel) * prod(shape.windows)


def _reads_points(shape: ConvolutionShape) -> bool:
    return prod(shape.kernel) == max(shape.strides) == 1 and not any(shape.padding)
