"""Which convolutions oneDNN's direct kernels refuse in float32, so that they run as products of matrices.

The conditions of `init_conf` in oneDNN's `jit_avx512_common_conv_kernel.cpp` and `jit_avx2_conv_kernel_f32.cpp` below
`src/cpu/x64`, 3.12: a kernel unrolls some places of a row, and what is padded further than that, or would be too much
code, is not its. Sizes of caches are those of Zen 5, and of Intel's cores since 2021 but for the second one.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

from pytest_modelbudget.backends.torch.kernels.convolution_scratch import PLAIN_CHANNELS, ConvolutionShape
from pytest_modelbudget.backends.torch.kernels.cpus import FIRST_CACHE, FLOAT, SECOND_CACHE, THREADS
from pytest_modelbudget.backends.torch.kernels.thread_shares import most_of

_REGISTERS = 31
_UNROLLED = 28
_MOST_CODE = 256 * 1024
_INSTRUCTION = 15  # bytes, at the most
_MOST_BLOCKS = 5  # of filters that one pass makes


@lru_cache(maxsize=4096)
def refuses_forward(shape: ConvolutionShape) -> bool:
    """Whether the forward pass is not that of the direct kernel."""
    if _is_outside(shape):
        return True
    lanes, width, padding = lanes_of(shape), shape.windows[-1], shape.padding[-1]
    unrolled, blocks = _unrolled_forward(shape, lanes)
    first_run = min(width, _UNROLLED)
    right = _right_padding(shape, width // first_run * first_run)
    code = (1 + (padding > 0) + (right > 0)) * shape.kernel[-1] * _channels_at_once(shape, lanes) * blocks * unrolled
    return (
        padding > unrolled
        or _right_padding(shape, width - width % unrolled) > unrolled
        or code * _INSTRUCTION > _MOST_CODE
    )


@lru_cache(maxsize=4096)
def refuses_input_gradient(shape: ConvolutionShape) -> bool:
    """The same of the gradient of the input, in steps of one place."""
    if _is_outside(shape):
        return True
    lanes, width = lanes_of(shape), shape.size[-1]
    unrolled, blocks = _unrolled_backward(shape, lanes)
    reach = (shape.kernel[-1] - 1) * shape.dilation[-1]
    left = max(0, reach - shape.padding[-1])
    right_padding = _right_padding(shape, shape.windows[-1])
    right = max(0, reach - max(0, right_padding + width % unrolled))
    if left > unrolled or right > unrolled or (width > unrolled and right_padding + width % unrolled < 0):
        return True
    code = (1 + (left > 0) + (right > 0)) * shape.kernel[-1] * lanes * blocks * unrolled * _INSTRUCTION
    return code > _MOST_CODE and not _has_large_filter(shape, lanes)


@lru_cache(maxsize=4096)
def refuses_weight_gradient(shape: ConvolutionShape) -> bool:
    """The same of the gradient of the weights, for the kernel of the CPU of `shape`."""
    if not shape.cpu.is_wide:
        return _refuses_weight_gradient_on_avx2(shape)
    extents, right = _extents(shape), _right_paddings(shape)
    dilated = [gap > 1 for gap in shape.dilation]
    is_strided = any(gap and stride > 1 for gap, stride in zip(dilated[:-1], shape.strides, strict=False))
    is_higher = len(extents) > 1 and dilated[-2] and extents[-2] > shape.size[-2]
    is_deep = len(extents) == 3 and (dilated[0] or _is_padded_beyond_depth(shape, extents[0], right[0]))
    width = max(shape.padding[-1], right[-1])
    height = max(shape.padding[-2], right[-2]) if len(extents) > 1 else 0
    is_far = width >= min(extents[-1], _UNROLLED + 1) or (height > 0 and height > extents[-2] // 2)
    is_uneven = shape.splits_blocks(shape.cpu.lanes) or (shape.channels > PLAIN_CHANNELS and _is_first(shape))
    is_wide = shape.kernel[-1] > 14 and not _is_turned(shape)
    return is_strided or is_higher or is_deep or is_far or is_uneven or is_wide


def _refuses_weight_gradient_on_avx2(shape: ConvolutionShape) -> bool:
    right = _right_paddings(shape)
    is_far = any(max(pads) >= extent for *pads, extent in zip(shape.padding, right, _extents(shape), strict=True))
    is_deep = len(shape.size) == 3 and (shape.padding[0] > 0 or right[0] > 0)
    is_higher = any(length > size for length, size in zip(shape.kernel[:-1], shape.size, strict=False))
    is_uneven = shape.splits_blocks(shape.cpu.lanes)
    return is_far or is_deep or is_higher or is_uneven or shape.kernel[-1] >= 14 or max(shape.dilation) > 1


def _is_padded_beyond_depth(shape: ConvolutionShape, extent: int, right: int) -> bool:
    padding = shape.padding[0]
    return max(padding, right) >= extent or (padding > 0 and shape.kernel[0] >= shape.size[0] + padding)


def _is_turned(shape: ConvolutionShape) -> bool:
    """Whether a wide window is as wide as its map, so that the kernel runs along its height."""
    kernel = shape.kernel[-1]
    is_row = len(shape.size) == 2 and 14 <= kernel < 20 and shape.windows[-1] == 1 and kernel == shape.size[-1]
    return is_row and max(*shape.strides, *shape.dilation) == 1 and not any(shape.padding)


def _right_paddings(shape: ConvolutionShape) -> tuple[int, ...]:
    """What windows reach beyond the far end of each dimension."""
    sizes = zip(shape.windows, shape.strides, _extents(shape), shape.size, shape.padding, strict=True)
    return tuple(max(0, (count - 1) * stride + extent - size - pad) for count, stride, extent, size, pad in sizes)


def _is_outside(shape: ConvolutionShape) -> bool:
    """Whether a window lies in the padding with all of its points."""
    return any(
        extent <= max(padding, (count - 1) * stride + extent - size - padding)
        for extent, padding, count, stride, size in zip(
            _extents(shape), shape.padding, shape.windows, shape.strides, shape.size, strict=True
        )
    )


def _extents(shape: ConvolutionShape) -> tuple[int, ...]:
    return tuple((length - 1) * gap + 1 for length, gap in zip(shape.kernel, shape.dilation, strict=True))


def _right_padding(shape: ConvolutionShape, windows: int) -> int:
    """What the first `windows` of a row reach beyond it, negative for what they leave."""
    return (windows - 1) * shape.strides[-1] + _extents(shape)[-1] - shape.size[-1] - shape.padding[-1]


def lanes_of(shape: ConvolutionShape) -> int:
    """Channels of a block, fewer for groups that are no whole number of blocks of sixteen."""
    per_group = shape.channels // shape.groups, shape.filters // shape.groups
    if shape.groups == 1:
        return shape.cpu.lanes
    return next((lanes for lanes in (16, 8, 4) if not any(count % lanes for count in per_group)), shape.cpu.lanes)


def _channels_at_once(shape: ConvolutionShape, lanes: int) -> int:
    return shape.channels if _is_first(shape) else lanes


def _is_first(shape: ConvolutionShape) -> bool:
    return shape.channels < shape.cpu.lanes and shape.groups == 1


def _rows(sizes: tuple[int, ...]) -> int:
    return (1, *sizes)[-2]


def _depth(sizes: tuple[int, ...]) -> int:
    return sizes[0] if len(sizes) == 3 else 1


def _unrolled_forward(shape: ConvolutionShape, lanes: int) -> tuple[int, int]:
    """Places of a row, and blocks of filters, that the forward kernel makes at once."""
    width, filters = shape.windows[-1], -(-shape.filters // shape.groups // lanes) * lanes
    if _broadcasts_forward(shape, lanes):
        is_small = _forward_bytes(shape, lanes) < FIRST_CACHE and width <= 8 and max(_plane(shape.kernel)) <= 3
        is_paired = is_small and filters // lanes % 2 == 0 and shape.batch > 1
        return (min(width, _REGISTERS // 3), 2) if is_paired else (min(width, _UNROLLED), 1)
    if _is_first(shape) and shape.batch == 1:
        return min(width, _UNROLLED), 1
    blocks = filters // lanes
    best, best_share = 1, 0.0
    for count in range(min(blocks, _MOST_BLOCKS), 0, -1):
        if blocks % count == 0:
            unrolled = min(width, _REGISTERS // (count + 1))
            share = _busy_share(shape, most_of(blocks, count), _row_part(shape, lanes, blocks, count, unrolled))
            if share > 1.05 * best_share:
                best, best_share = count, share
    return min(width, _REGISTERS // (best + 1)), best


def _plane(sizes: tuple[int, ...]) -> tuple[int, int]:
    return _rows(sizes), sizes[-1]


def _forward_bytes(shape: ConvolutionShape, lanes: int) -> int:
    """What a row of two blocks of filters reads and makes."""
    channels = _channels_at_once(shape, lanes)
    read = most_of(shape.size[-1], shape.strides[-1]) * channels * prod(shape.kernel[:-1])
    made = shape.windows[-1] * lanes * 2
    return FLOAT * (read + made + prod(shape.kernel) * channels * lanes * 2)


def _broadcasts_forward(shape: ConvolutionShape, lanes: int) -> bool:
    """Whether what it multiplies is read by each instruction, so that it needs no register."""
    width, height, kernel = shape.windows[-1], _rows(shape.windows), shape.kernel[-1]
    channels = shape.channels if _is_first(shape) else -(-shape.channels // shape.groups // lanes) * lanes
    filters = -(-shape.filters // shape.groups // lanes) * lanes
    is_strided = max(_plane(shape.strides)) > 1
    is_small = kernel == 3 and width <= 28 and _forward_bytes(shape, lanes) < FIRST_CACHE
    is_small = is_small and not (width == 13 and channels >= 192) and not (width == 28 and channels >= 512)
    if is_small and (not is_strided or (shape.batch <= 16 and (filters <= 192 or height <= 10))):
        return True
    is_single = shape.batch == 1 and (width <= _UNROLLED or _is_first(shape) or (width <= 147 and filters <= 96))
    return kernel > 3 or is_single


def _busy_share(shape: ConvolutionShape, chunks: int, part: int) -> float:
    """What share of their time threads are busy with parts of rows."""
    width = shape.windows[-1]
    parts = most_of(width, part)
    work = shape.batch * _rows(shape.windows) * chunks * parts
    return width / (parts * part) * work / (most_of(work, THREADS) * THREADS)


def _row_part(shape: ConvolutionShape, lanes: int, blocks: int, count: int, unrolled: int) -> int:
    """The part of a row that a thread makes at a time."""
    width = shape.windows[-1]
    if len(shape.size) == 3 or _is_first(shape):
        return width
    cache = SECOND_CACHE * 7 // 8 // FLOAT
    source, made = lanes * unrolled * _rows(shape.kernel), lanes * count * unrolled
    weights = lanes * count * lanes * prod(_plane(shape.kernel))
    part = unrolled * max(2, int((cache - 2 * weights) / (2 * made + 2 * source)))
    chunks = most_of(blocks, count)
    share = _busy_share(shape, chunks, part)
    for parts in range(most_of(width, part), most_of(width, 2 * unrolled) + 1):
        size = min(most_of(most_of(width, parts), unrolled) * unrolled, width)
        if size < count * lanes and share > 0.9:
            break
        if most_of(width, size) != parts:
            continue
        if size >= 2 * unrolled and (now := _busy_share(shape, chunks, size)) > share:
            part, share = size, now
        if share > 0.98:
            break
    return min(width, max(2 * unrolled, part))


def _unrolled_backward(shape: ConvolutionShape, lanes: int) -> tuple[int, int]:
    """Places of a row, and blocks of channels, that the kernel of the input's gradient makes at once."""
    width, kernel = shape.size[-1], shape.kernel[-1]
    channels = -(-shape.channels // shape.groups // lanes)
    read = width * lanes * 2 * _rows(shape.kernel) + shape.windows[-1] * lanes
    size = FLOAT * (read + prod(_plane(shape.kernel)) * lanes * lanes * 2)
    is_narrow = kernel < 5 and (width <= 5 or 8 < width <= 13 or size > FIRST_CACHE)
    if _has_large_filter(shape, lanes) or kernel == 1 or (kernel == 5 and width < 8) or is_narrow:
        most = 2 if _has_large_filter(shape, lanes) else 4
        blocks = next(count for count in range(min(most, channels), 0, -1) if channels % count == 0)
        return min(width, _REGISTERS // (blocks + 1)), blocks
    is_single = kernel > 3 or (kernel == 3 and size < FIRST_CACHE and shape.windows[-1] > 8)
    if is_single or channels % 2:
        return min(width, _UNROLLED), 1
    return min(width, _REGISTERS // 3), 2


def _has_large_filter(shape: ConvolutionShape, lanes: int) -> bool:
    """Whether a wide window is as wide as the row."""
    kernel, channels = shape.kernel[-1], -(-shape.channels // shape.groups // lanes)
    is_row = shape.windows[-1] == 1 and kernel == shape.size[-1] and max(shape.dilation) == 1
    return 14 <= kernel < 20 and is_row and channels > 1
