"""Scratch of oneDNN's convolutions in bfloat16, on x86 CPUs with AVX-512 and its bfloat16 instructions, without AMX.

After the sources of oneDNN 3.12 below `src/cpu`: `x64/jit_avx512_core_bf16_1x1_conv_kernel.cpp`,
`x64/jit_avx512_core_bf16_conv_kernel.cpp`, `x64/jit_uni_dw_conv_kernel_utils.cpp`,
`x64/jit_brgemm_conv_bwd_utils.cpp` and `gemm_convolution_utils.cpp`. Results are summed up in float32, so that each
kernel has a buffer of that beside what it makes. CPUs with AMX, as Intel's since 2023, choose other kernels. Channels
are in blocks; no rule is here for channels that are last in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from pytest_modelbudget.backends.torch.kernels.convolution_scratch import ConvolutionShape
from pytest_modelbudget.backends.torch.kernels.cpus import FLOAT, THREADS
from pytest_modelbudget.backends.torch.kernels.gemm_convolutions import columns_and_sums
from pytest_modelbudget.backends.torch.kernels.thread_shares import (
    Shares,
    best_divider,
    cheapest_shares,
    most_of,
    pointwise_shares,
)

PLAIN_CHANNELS = 15  # images, and what has less than a block of channels, are read as they are
_HALF = 2  # bytes
_LANES = 16
_ALIGNED = 128  # what lies between the parts of a scratch
_BARRIER = 8_192  # one that threads wait at, on a page of its own, and one page for each more
_PAGE = 4_096
_CACHE = 2**20 // _HALF  # elements in a core's second cache, as of Zen 4 and 5
_ROWS_IN_CACHE = 48 * 1024
_TRANSPOSED_BY_ROWS = 2**20 // FLOAT  # elements of an image's gradient from which it is transposed row by row


def has_rule(shape: ConvolutionShape) -> bool:
    """Whether one is known for a convolution: its groups are single channels or whole blocks, its kernels narrow."""
    in_blocks = shape.filters // shape.groups % _LANES == shape.channels // shape.groups % _LANES == 0
    known_groups = shape.groups == 1 or in_blocks or (shape.is_depthwise and shape.filters == shape.channels)
    known_groups = known_groups and not (shape.is_depthwise and (len(shape.size) == 3 or max(shape.strides) > 1))
    return shape.cpu.is_wide and known_groups and shape.kernel[-1] <= 14 + 10 * _reads_image(shape)


def forward_scratch(shape: ConvolutionShape) -> int:
    """Bytes of a forward pass: sums of a pointwise one, and the places that it gathers where it is strided."""
    if not _is_pointwise(shape):
        return 0
    gathered = _gathered_places(shape, shape.channels) if shape.is_strided else 0
    return gathered + _pointwise_sums(shape, _blocks(shape.channels), _blocks(shape.filters))


def input_gradient_scratch(shape: ConvolutionShape) -> int:
    """The same of the gradient of the input."""
    if shape.has_strided_gradient:
        sums = FLOAT * THREADS * min(4, _blocks(shape.channels)) * _LANES * most_of(shape.size[-1], shape.strides[-1])
        return shape.strided_gradient(_HALF) + sums + _PAGE
    if not _is_pointwise(shape):
        return 0
    return _pointwise_sums(shape, _blocks(shape.filters), _blocks(shape.channels))


def weight_gradient_products(shape: ConvolutionShape) -> int:
    """Bytes of a gradient of the weights that runs as products of matrices, in plain order; 0 for one that does not."""
    is_wide = shape.is_depthwise and shape.is_wide_depthwise
    is_uneven = _reads_image(shape) and shape.filters % _LANES > 0
    return columns_and_sums(shape, _HALF) + 3 * _ALIGNED if is_wide or is_uneven else 0


def weight_gradient_scratch(shape: ConvolutionShape, with_bias: bool) -> int:
    """The same of the gradient of the weights, which is made of transposed operands and summed up in float32.

    `with_bias` counts the sums of that of a bias, too.
    """
    if shape.is_depthwise:
        shared = min(max(1, THREADS // min(_blocks(shape.channels), THREADS)), shape.batch)
        bias = FLOAT * shape.channels + _ALIGNED if with_bias else 0
        return FLOAT * shared * _blocks(shape.channels) * _LANES * prod(shape.kernel) + _ALIGNED + bias
    if _is_pointwise(shape):
        return _pointwise_weight_gradient(shape, with_bias)
    return _windowed_weight_gradient(shape, with_bias)


def _is_pointwise(shape: ConvolutionShape) -> bool:
    """Whether it has the kernel of pointwise ones, in steps of one place, or gathered to that."""
    return shape.is_pointwise and shape.groups == 1 and (max(shape.strides) == 1 or shape.is_gathered)


def _reads_image(shape: ConvolutionShape) -> bool:
    """Whether it is what oneDNN calls the first convolution, of less than a block of channels in plain order."""
    return shape.channels <= PLAIN_CHANNELS and shape.groups == 1


def _blocks(channels: int) -> int:
    return most_of(channels, _LANES)


def _gathered_places(shape: ConvolutionShape, channels: int) -> int:
    return _HALF * THREADS * _blocks(channels) * _LANES * prod(shape.windows) + _ALIGNED


def _pointwise_sums(shape: ConvolutionShape, in_blocks: int, out_blocks: int) -> int:
    """The sums of a pointwise one that reads and makes so many blocks of channels, for each thread.

    `init_conf` and `init_scratchpad` of the 1x1 kernel.
    """
    places = prod(shape.windows)
    at_once = _places_at_once(shape, out_blocks * _LANES)
    runs = most_of(places, at_once)
    is_small = _HALF * shape.batch * places * in_blocks * _LANES < 8_192 and runs * out_blocks < THREADS
    weights = in_blocks * out_blocks * _LANES**2
    if shape.batch < THREADS and runs * out_blocks > THREADS:
        splits_out_blocks = _is_cheaper_split(shape, in_blocks, out_blocks, at_once)
    else:
        splits_out_blocks = shape.batch * runs < THREADS
    if (places <= 64 and weights >= _CACHE) or (
        places <= 49 and shape.batch <= THREADS and out_blocks * _LANES > 512 and out_blocks // in_blocks >= 4
    ):
        splits_out_blocks = True
    threads = 1 if is_small else THREADS
    of_each = most_of(out_blocks, threads if splits_out_blocks else 1) * _LANES
    return FLOAT * threads * runs * at_once * of_each + _ALIGNED


def _places_at_once(shape: ConvolutionShape, out_channels: int) -> int:
    """Places whose sums stay in registers together."""
    places, rows = prod(shape.windows), prod(shape.windows[:-1])
    most, least = (6, 5) if 128 < out_channels < 256 and 10 < rows < 28 else (9, 6)
    for count in range(most, least - 1, -1):
        if (rows if rows >= 14 else places) % count == 0:
            return count
    best, rest = min(most, places), places % most
    for count in range(most, least - 1, -1):
        if places % count > rest or places % count == 0:
            best, rest = count, places % count
            if rest == 0:
                break
    return best


def _is_cheaper_split(shape: ConvolutionShape, in_blocks: int, out_blocks: int, at_once: int) -> bool:
    """Whether the threads share what a single sample makes by its channels, not its places."""
    runs = most_of(prod(shape.windows), at_once)

    def cost(blocks: int, runs: int, moved_weighs: float) -> float:
        return 0.01 * runs * at_once * blocks * _LANES + moved_weighs * (runs * at_once + blocks * _LANES)

    by_places = cost(out_blocks, most_of(runs, THREADS), 1.3)
    by_channels = cost(most_of(out_blocks, THREADS), shape.batch * runs, 1.0)
    is_first = out_blocks * _LANES > shape.batch * prod(shape.windows)
    return by_channels <= by_places if is_first else by_channels < by_places


def _pointwise_weight_gradient(shape: ConvolutionShape, with_bias: bool) -> int:
    places, width = prod(shape.windows), shape.windows[-1]
    rows = (1, *shape.windows)[-2]
    filters, channels = _blocks(shape.filters), _blocks(shape.channels)
    is_direct = rows > 14 and width > 14 and (len(shape.windows) < 3 or filters * _LANES <= 64)
    least, most = (7, min(256, places)) if is_direct else (8, 16)
    run = best_divider(places, least, most, largest=True, step=2)
    if places % run:
        run = best_divider(width, 4, width, largest=is_direct, step=2)
    run = run if run <= 256 else 1
    run += 0 if is_direct else run % 2
    weighs = 4 * max(1, filters // channels)
    shares = pointwise_shares(shape.batch * most_of(places, run), run, filters, channels, _LANES, weighs)
    filters_at_once = best_divider(filters, 16, filters, largest=False)
    channels_at_once = best_divider(channels, 5, channels, largest=False)
    sums = FLOAT * shares.samples * filters * _LANES * (channels * _LANES + with_bias) + _ALIGNED
    sums += _BARRIER if shares.samples > 1 else 0
    sums += _HALF * filters * _LANES + _ALIGNED if with_bias and shape.filters % _LANES else 0
    transposed = 0
    if not is_direct:
        per_block = _HALF * shares.threads * (places + places % 2) * _LANES
        transposed = per_block * (filters_at_once + channels_at_once) + 2 * _ALIGNED
    gathered = _gathered_places(shape, channels_at_once * _LANES) if shape.is_strided else 0
    return sums + transposed + gathered


def _windowed_weight_gradient(shape: ConvolutionShape, with_bias: bool) -> int:
    """`init_conf` and `init_scratchpad` of the kernel of windows."""
    planes = _Planes.of(shape)
    shares = cheapest_shares(planes.cost, planes.samples, planes.filters, planes.channels)
    shares, threads = (shares, shares.threads) if shape.groups == 1 else (Shares(1, 1, 1), THREADS)
    weights = planes.filters * _LANES * (planes.channels * planes.lanes * prod(shape.kernel) + with_bias)
    sums = FLOAT * shares.samples * shape.groups * weights + _ALIGNED + (0 if planes.by_rows else _BARRIER)
    if planes.is_direct:
        return sums
    inputs = threads if planes.by_rows else shares.samples * planes.channels * shape.groups
    outputs = threads if planes.by_rows else shares.samples * planes.filters * shape.groups
    transposed = outputs * planes.result * _LANES + (0 if planes.is_image else inputs * planes.data * planes.lanes)
    sharing = [] if planes.by_rows else [count for count in (shares.filters, shares.channels) if count > 1]
    barriers = sum(_PAGE * (threads // count + 1) for count in sharing)
    return sums + _HALF * (transposed + planes.margin) + 2 * _ALIGNED + barriers


@dataclass(frozen=True, slots=True)
class _Planes:
    """What the gradient of weights reads: `data` and `result` are places of a sample with the rows as transposed.

    `margin` is what lies beside a row, `samples` what threads may share: samples, or rows or planes of them. Of an
    image only the result is transposed, `by_rows` where it is large; `is_direct` is what needs no transposing.
    """

    shape: ConvolutionShape
    filters: int
    channels: int
    lanes: int
    data: int
    result: int
    margin: int
    samples: int
    is_image: bool
    is_direct: bool
    by_rows: bool

    @classmethod
    def of(cls, shape: ConvolutionShape) -> _Planes:
        """Those of a convolution."""
        is_image, dims = _reads_image(shape), len(shape.size)
        stride, width, result_width = shape.strides[-1], shape.size[-1], shape.windows[-1]
        reach = (shape.kernel[-1] - 1) * shape.dilation[-1] + 1
        behind = max(0, (result_width - 1) * stride + reach - width - shape.padding[-1])
        margin = _even(max(shape.padding[-1], behind + 1))
        is_direct = not is_image and stride == shape.dilation[-1] == 1 and dims == 3 and shape.kernel[-1] == 1
        row = width if is_image or is_direct else _even(most_of(width, stride) + margin) * stride
        result_row = result_width if is_direct else _even(result_width)
        filters, channels = (_blocks(count // shape.groups) for count in (shape.filters, shape.channels))
        parts = {1: 1, 2: 1 if _reads_whole_planes(shape, row, result_row) else shape.windows[0], 3: shape.windows[0]}
        return cls(
            shape=shape,
            filters=filters,
            channels=channels,
            lanes=shape.channels if is_image else _LANES,
            data=prod(shape.size[:-1]) * row,
            result=prod(shape.windows[:-1]) * result_row,
            margin=margin,
            samples=shape.batch * parts[dims],
            is_image=is_image,
            is_direct=is_direct,
            by_rows=is_image and _is_large(shape),
        )

    def cost(self, shares: Shares) -> float:
        """What threads move that have such shares: `balance`."""
        shape, taps = self.shape, prod(self.shape.kernel)
        read = _HALF * shape.batch * self.channels * self.lanes * self.data
        written = _HALF * shape.batch * self.filters * _LANES * self.result
        weights = FLOAT * self.filters * _LANES * self.channels * self.lanes * taps
        weights_weigh, ratio = 0.5 * (read + written) / weights, self.filters / self.channels
        input_weighs = max(1 / ratio, 1.0) * (4 if weights_weigh < 1 else 1)
        part = most_of(self.samples, shares.samples) * shape.batch / self.samples
        channels = most_of(self.channels, shares.channels) * self.lanes
        filters = most_of(self.filters, shares.filters) * _LANES
        moved = input_weighs * channels * self.data / prod(shape.strides) + max(ratio, 1.0) * filters * self.result
        return part * moved + max(weights_weigh, 1.0) * filters * channels * taps


def _is_large(shape: ConvolutionShape) -> bool:
    """Whether the gradient of an image is transposed row by row: of long rows (`use_spatial_blocking`)."""
    if len(shape.windows) == 1 or prod(shape.windows) * shape.filters < _TRANSPOSED_BY_ROWS:
        return False
    plane = prod(shape.windows[1:])
    return shape.windows[0] > 1 and plane >= (124 if len(shape.windows) == 2 else 64 * 124)


def _reads_whole_planes(shape: ConvolutionShape, row: int, result_row: int) -> bool:
    """Whether a plane is read at once (`harness_compute_full_spatial`): windows around each place, in the cache."""
    is_centred = all(
        padding == width // 2 and width > 1 for padding, width in zip(shape.padding, shape.kernel, strict=True)
    )
    is_same = shape.size == shape.windows and max(shape.strides) == max(shape.dilation) == 1
    in_cache = _HALF * _LANES * (row + result_row) * max(1, shape.padding[0]) <= _ROWS_IN_CACHE
    return is_centred and is_same and in_cache and shape.channels // shape.groups >= 128


def _even(count: int) -> int:
    return count + count % 2
