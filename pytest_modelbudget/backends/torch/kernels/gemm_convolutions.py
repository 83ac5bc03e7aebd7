"""Scratch of oneDNN's convolutions that run as products of matrices in float32, and which do.

What the windows see is written out as columns: all of a plane, or forward as many channels and places as fit in a
core's cache. After `init_conf` in oneDNN's `src/cpu/gemm_convolution_utils.cpp`, 3.12. With AVX-512 they are those that
direct kernels refuse, see `direct_convolutions`; with AVX2 it was measured with `ONEDNN_VERBOSE=1` which they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

from pytest_modelbudget.backends.torch.kernels.convolution_scratch import ConvolutionShape
from pytest_modelbudget.backends.torch.kernels.cpus import CPUS, FLOAT, SECOND_CACHE, THREADS
from pytest_modelbudget.backends.torch.kernels.direct_convolutions import (
    refuses_forward,
    refuses_input_gradient,
    refuses_weight_gradient,
)
from pytest_modelbudget.backends.torch.kernels.thread_shares import most_of

_ALIGNED = 128  # what lies between the parts of a scratch
_CACHE = SECOND_CACHE // FLOAT
_LEAST_FILTERS = 8
_LEAST_IN_GROUPS = 4  # channels of a group, a multiple of which direct kernels take
_NO_CACHE = 20  # how much more memory costs than a cache
_SMALL_PRODUCT = 64 * 1024
_LIMIT = 15


def forward_columns(shape: ConvolutionShape) -> int:
    """Bytes of a forward pass that runs as products of matrices, 0 for one that does not."""
    if shape.is_depthwise or shape.is_pointwise:
        return 0
    if shape.cpu.is_wide:
        is_gemm = shape.splits_blocks(_LEAST_IN_GROUPS) or refuses_forward(shape)
    else:
        is_gemm = (shape.kernel[-1] >= 14 and shape.padding[-1] > 0) or shape.splits_blocks(shape.cpu.lanes)
    return FLOAT * _forward_elements(shape) + _ALIGNED if is_gemm else 0


def input_gradient_columns(shape: ConvolutionShape) -> int:
    """The same of the gradient of its input."""
    if shape.is_depthwise:
        is_gemm = shape.is_deep_or_dilated
    elif shape.cpu.is_wide:
        is_gemm = shape.splits_blocks(_LEAST_IN_GROUPS) or refuses_input_gradient(shape)
    else:
        is_gemm = shape.splits_blocks(shape.cpu.lanes) or shape.kernel[-1] - 1 - shape.padding[-1] > 7
    if shape.is_strided or not is_gemm:
        return 0
    rows_are_few = _places(shape) // THREADS < 512 or prod(shape.kernel) < 64
    threads = THREADS if rows_are_few and (shape.batch > 1 or shape.groups > 2) else 1
    return _limited(shape, FLOAT * threads * _columns(shape), FLOAT * threads, 0, 0.1) + _ALIGNED


def weight_gradient_products(shape: ConvolutionShape) -> int:
    """The same of the gradient of its weights, on the CPU that `of_weight_gradient` says."""
    if shape.is_pointwise and shape.groups == 1:
        return 0
    if not (shape.is_wide_depthwise if shape.is_depthwise else refuses_weight_gradient(shape)):
        return 0
    return columns_and_sums(shape, FLOAT) + 2 * _ALIGNED


def of_weight_gradient(shape: ConvolutionShape) -> ConvolutionShape:
    """The same on the CPU whose kernel makes the gradient of its weights: AVX2's takes some that AVX-512's refuses."""
    narrow = replace(shape, cpu=CPUS["cpu-avx2"])
    is_direct = not (shape.is_depthwise or (shape.is_pointwise and shape.groups == 1))
    return narrow if is_direct and refuses_weight_gradient(shape) and not refuses_weight_gradient(narrow) else shape


def columns_and_sums(shape: ConvolutionShape, itemsize: int) -> int:
    """Bytes of what the windows of one group see, of elements of `itemsize`, and four times the weights, by thread."""
    threads = THREADS if _places(shape) // THREADS < 256 and (shape.batch > 1 or shape.groups > 2) else 1
    weight_bytes = FLOAT * shape.filters * (shape.channels // shape.groups) * prod(shape.kernel)
    sums = threads * 4 * weight_bytes
    return sums + _limited(shape, itemsize * threads * _columns(shape), itemsize * threads, sums, 0.05)


def _limited(shape: ConvolutionShape, columns: int, of_each: int, others: int, share: float) -> int:
    """Bytes of `columns` of `of_each` bytes, or of a `share` of the places that fit in what a scratch is limited to.

    That is thirty times, for two threads, what operands and result have, `others` included.
    """
    elements = shape.batch * (shape.channels * prod(shape.size) + shape.filters * prod(shape.windows))
    weights = shape.filters * (shape.channels // shape.groups) * prod(shape.kernel)
    room = min(2**30, _LIMIT * THREADS * FLOAT * (elements + weights)) - others
    if columns <= room:
        return columns
    of_place = of_each * (_columns(shape) // _places(shape))
    return of_place * max(shape.cpu.lanes, int(room // of_place * share))


def _places(shape: ConvolutionShape) -> int:
    """Places in a plane of the result."""
    return prod(shape.windows[-2:])


def _columns(shape: ConvolutionShape) -> int:
    """Elements of what the windows of one group see, written out for a plane."""
    return shape.channels // shape.groups * prod(shape.kernel) * _places(shape)


def _forward_elements(shape: ConvolutionShape) -> int:
    """Columns of a forward pass, in parts for each thread, but in three dimensions and for few places."""
    lanes, places = shape.cpu.lanes, _places(shape)
    spatial = shape.batch * shape.groups * places
    if len(shape.size) < 3 and (spatial >= THREADS * lanes or places < shape.batch * shape.groups):
        parts = _best_parts(shape)
        return THREADS * parts.channels * prod(shape.kernel) * parts.places
    depth, per_group = shape.windows[0] if len(shape.size) == 3 else 1, shape.channels // shape.groups
    outer, filters = shape.batch * shape.groups * depth, shape.filters // shape.groups
    inner = -(-places // lanes) * -(-filters // lanes)
    is_shared = places // THREADS < 512 and (depth > 1 or shape.batch > 1 or shape.groups > 2)
    is_even = _busy_share(outer) >= _busy_share(inner) or places * per_group * filters // THREADS < _SMALL_PRODUCT
    return _columns(shape) * (THREADS if is_shared and is_even else 1)


def _busy_share(work: int) -> float:
    return work / (most_of(work, THREADS) * THREADS)


@dataclass(frozen=True, slots=True)
class _Parts:
    """Filters, places and channels of the products that a thread makes one after the other, and what they are worth."""

    filters: int
    places: int
    channels: int
    worth: float


@dataclass(frozen=True, slots=True)
class _Products:
    """The products of a convolution of which `sharing` threads share the filters: of one group, with `taps` points."""

    shape: ConvolutionShape
    sharing: int

    @property
    def channels(self) -> int:
        """Channels of a group."""
        return self.shape.channels // self.shape.groups

    @property
    def _all_filters(self) -> int:
        return self.shape.filters // self.shape.groups

    @property
    def filters(self) -> int:
        """Filters of a thread."""
        return most_of(self._all_filters, self.sharing)

    @property
    def _all_places(self) -> int:
        return self.shape.batch * self.shape.groups * _places(self.shape)

    @property
    def places(self) -> int:
        """Places of a thread, in all samples and groups."""
        return most_of(self._all_places, THREADS // self.sharing)

    @property
    def taps(self) -> int:
        """Points of a window."""
        return prod(self.shape.kernel)

    @property
    def step(self) -> int:
        """Places of the input for one of the result."""
        return prod(self.shape.strides[-2:])

    def parts(self, filters: int, places: int) -> _Parts:
        """Parts of about so many filters and places, with the channels that then fit in a cache."""
        lanes = self.shape.cpu.lanes
        filters = min(self.filters, max(_LEAST_FILTERS, filters))
        most_places = min(_places(self.shape), self.places)
        places = min(most_places, max(lanes, min(self.places, places)))
        fitting = self._fitting_channels(filters, places)
        cost, fitting = (1, fitting) if fitting >= 1 else (_NO_CACHE, 1)
        channels = max(1, self.channels // most_of(self.channels, fitting))
        taps = channels * self.taps
        products = filters * places * taps / (self.filters * self.places * self.channels * self.taps)
        rows = _rounded(places, lanes)
        of_part = places / lanes * filters * taps / (rows * taps + filters * _rounded(taps, lanes) + filters * rows)
        worth = (
            self._balance() ** 8
            * (self.filters / _rounded(self.filters, filters))
            * (most_places / _rounded(most_places, places))
            * (self.channels / _rounded(self.channels, channels))
            * (places / _rounded(places, 3 * lanes))
            * self._products_for_memory(channels, places, cost)
            * products**0.5
            * of_part
        )
        return _Parts(filters, places, channels, worth)

    def _fitting_channels(self, filters: int, places: int) -> int:
        read, columns, of_weights = self.step * places, self.taps * places, self.taps * self.filters
        rest = (_CACHE - filters * places) // (read + columns + of_weights)
        if places < self.places:
            return rest
        fitting = _CACHE // (read + columns)
        if filters < self.filters:
            fitting = min(fitting, (_CACHE - filters * places) // (columns + self.taps * filters))
        return rest if fitting < self.channels else fitting

    def _balance(self) -> float:
        """How much less the least loaded thread does than the most loaded."""
        fewest_filters = max(1, self._all_filters // self.sharing)
        groups = THREADS // self.sharing
        least = min(self.filters * max(1, self._all_places // groups), fewest_filters * (self._all_places // groups))
        most = max(self.filters * self.places, fewest_filters * self.places)
        return least / most

    def _products_for_memory(self, channels: int, places: int, cost: int) -> float:
        """Multiplications for what is read and written, with AVX-512's or AVX2's width."""
        lanes, all_taps = self.shape.cpu.lanes, self.channels * self.taps
        written = cost * self.filters * _rounded(self.places, lanes)
        if channels < self.channels:
            written *= 2 * most_of(self.channels, channels) - 1
        read = cost * self.taps * self.channels * _rounded(self.places * self.step, lanes)
        columns = 2 * read * _rounded(places, lanes) / places * (8 if self.shape.strides[-1] > 1 else 1)
        weights = cost * self.filters * _rounded(all_taps, lanes)
        return self.places / lanes * self.filters * all_taps / (read + columns + weights + written)

    def choices(self) -> Iterator[tuple[int, int]]:
        """Filters and places of the parts that are weighed once all of them together are not the best."""
        lanes, room = self.shape.cpu.lanes, self.step + self.taps
        weights = self.taps * self.filters
        filters = (_CACHE - room * self.channels * lanes - weights * self.channels) // lanes
        filters = max(_LEAST_FILTERS, min(self.filters, filters))
        free = _CACHE - weights * self.channels
        yield from _around(filters, max(lanes, min(self.places, free // (room * self.channels + filters))), lanes)
        most_channels = max(1, _CACHE // (2 * _LEAST_FILTERS * room + 2 * weights))
        if most_channels < self.channels:
            yield from _around(*self._of_fewer_channels(most_channels, room, weights), lanes)
        places = free // (room * self.channels + self.filters) // lanes * lanes
        yield from _around(self.filters, max(lanes, places), lanes)

    def _of_fewer_channels(self, most_channels: int, room: int, weights: int) -> tuple[int, int]:
        lanes = self.shape.cpu.lanes
        channels = self.channels // max(1, self.channels // most_channels)
        places = max(1, (_CACHE - 2 * weights * channels) // (2 * channels * room))
        filters = _CACHE // 2 // places
        free = _CACHE - weights * channels
        if filters > self.filters:
            filters = self.filters
            places = max(lanes, min(self.places, free // (room * channels + filters)))
        elif places > self.places:
            places = self.places
            filters = max(_LEAST_FILTERS, min(self.filters, (free - room * channels * places) // places))
        return filters, places


@lru_cache(maxsize=4096)
def _best_parts(shape: ConvolutionShape) -> _Parts:
    """The parts that are worth most, of those that oneDNN weighs."""
    best = _Parts(1, 1, shape.channels // shape.groups, 0.0)
    for sharing in range(1, THREADS + 1):
        products = _Products(shape, sharing)
        best = max(best, products.parts(products.filters, products.places), key=_worth)
        if (best.filters, best.places, best.channels) == (products.filters, products.places, products.channels):
            continue
        for filters, places in products.choices():
            best = max(best, products.parts(filters, places), key=_worth)
    return best


def _worth(parts: _Parts) -> float:
    return parts.worth


def _around(filters: int, places: int, lanes: int) -> Iterator[tuple[int, int]]:
    """The same, and in whole numbers of what products of matrices are fast with."""
    yield filters, places
    yield filters // 8 * 8, places // 48 * 48
    yield _rounded(filters, 8), places // 48 * 48
    yield _rounded(filters, 8), _rounded(places, lanes)
    yield _rounded(filters, 8), _rounded(places, 48)


def _rounded(count: int, step: int) -> int:
    return -(-count // step) * step
