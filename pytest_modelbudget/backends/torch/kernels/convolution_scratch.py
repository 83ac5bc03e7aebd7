"""Scratch of oneDNN's convolutions on the CPU in float32, by the kernel that it chooses for their sizes.

After the sources of oneDNN 3.13 below `src/cpu`: `gemm_convolution_utils.cpp`, `x64/jit_brgemm_conv_bwd_utils.cpp` and
`x64/jit_avx512_common_conv_kernel.cpp`. Which sizes go to products of matrices was measured with `ONEDNN_VERBOSE=1`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from pytest_modelbudget.backends.torch.kernels.cpus import FLOAT, THREADS, Cpu
from pytest_modelbudget.backends.torch.kernels.thread_shares import (
    Shares,
    best_divider,
    most_of,
    pointwise_shares,
    shares_each_sum,
)

_ALIGNED = 128  # what lies between the parts of a scratch
_PAGE = 4096
_PRODUCT = 40  # bytes of an entry in the list of products that are summed up
_BARRIER = 8_320
_LEAST_ROWS = 9  # rows of a result from which two threads may share them
PLAIN_CHANNELS = 3  # images are read as they are
_WIDEST_DEPTHWISE = 3


@dataclass(frozen=True, slots=True)
class ConvolutionShape:
    """A convolution that makes `filters` channels of `windows` from `channels` of `size`, as a transposed one reverses.

    `kernel`, `strides`, `padding`, `dilation`, `size` and `windows` have a number for each dimension.
    """

    cpu: Cpu
    batch: int
    channels: int
    filters: int
    groups: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    size: tuple[int, ...]
    windows: tuple[int, ...]

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel has a group of its own, with one filter."""
        return 1 < self.groups == self.channels == self.filters

    @property
    def is_strided(self) -> bool:
        """Whether windows are more than a point apart, in other kernels than those of depthwise ones."""
        return max(self.strides) > 1 and not self.is_depthwise

    @property
    def has_strided_gradient(self) -> bool:
        """Whether the gradient of its input is made with channels last; with AVX-512 not that of groups of few filters.

        `jit_brgemm_conv_bwd_utils.cpp`, `is_grouped_small_oc`; AVX2's takes what other kernels refuse.
        """
        least = 8 if self.splits_blocks(4) else self.cpu.lanes
        return self.is_strided and (self.groups == 1 or not self.cpu.is_wide or self.filters // self.groups > least)

    def splits_blocks(self, block: int) -> bool:
        """Whether a group is no whole number of `block` channels."""
        per_group = self.channels // self.groups, self.filters // self.groups
        return self.groups > 1 and not self.is_depthwise and any(count % block for count in per_group)

    @property
    def is_wide_depthwise(self) -> bool:
        """Whether a depthwise one is more than the kernel of its gradients takes: three wide in a plane."""
        is_far = any(padding > width // 2 for padding, width in zip(self.padding, self.kernel, strict=True))
        return self.kernel[-1] > _WIDEST_DEPTHWISE or self.is_deep_or_dilated or is_far

    @property
    def summed_copies(self) -> int:
        """Copies of the weights that a depthwise one, channels last, sums up: one where its own kernel takes it.

        That wants maps that are at least as large as the window: `jit_uni_dw_conv_kernel_utils.cpp`.
        """
        fits = all(size >= length for size, length in zip(self.size, self.kernel, strict=True))
        return 1 if fits and not self.is_wide_depthwise else self.cpu.copies

    @property
    def is_deep_or_dilated(self) -> bool:
        return len(self.kernel) == 3 or max(self.dilation) > 1

    @property
    def is_pointwise(self) -> bool:
        """Whether it reads single points, without padding."""
        return prod(self.kernel) == 1 and not any(self.padding)

    @property
    def reads_plain_channels(self) -> bool:
        """Whether it reads its input as it is: an image, and with AVX-512 what has less than a block of channels."""
        most = self.cpu.lanes - 1 if self.cpu.is_wide else PLAIN_CHANNELS
        return self.channels <= most and self.groups == 1 and not self.is_pointwise

    @property
    def is_gathered(self) -> bool:
        """Whether a pointwise one has the places that it reads gathered first: `jit_uni_1x1_conv_utils.hpp`, rtus."""
        reached = tuple(count * stride for count, stride in zip(self.windows, self.strides, strict=True))
        return (
            self.is_strided and self.is_pointwise and self.groups == 1 and len(self.size) < 3 and reached == self.size
        )

    def gathered_places(self) -> int:
        """The places that a strided pointwise one reads, of all channels, for each thread."""
        return self._gathered(self.cpu.round_up(self.channels))

    def gathered_for_weights(self) -> int:
        """The same for the gradient of its weights, with AVX2 of the channels that are read at once."""
        lanes = self.cpu.lanes
        channels = self.cpu.round_up(self.channels)
        return self._gathered(channels if self.cpu.is_wide else _halved(channels // lanes, 9) * lanes)

    def _gathered(self, channels: int) -> int:
        return FLOAT * THREADS * channels * prod(self.windows) if self.is_gathered else 0

    def strided_gradient(self, itemsize: int = FLOAT) -> int:
        """Scratch of the gradient of a strided one's input: for each thread the result's, with channels last.

        Where rows of the input are no multiple of the stride, a row of it, too; long rows of one dimension may be made
        in parts, so that this is the most.
        """
        if not self.has_strided_gradient:
            return 0
        reach = prod(map(_reached, self.windows, self.size, self.kernel, self.strides, self.padding))
        width, stride = self.size[-1], self.strides[-1]
        row = (
            _whole_pages(-(-width // stride) * stride * stride * self.channels // self.groups) if width % stride else 0
        )
        elements = _whole_pages(self.filters * reach) + row
        products = -(-_whole_pages(prod(self.kernel) * _PRODUCT) // _PRODUCT) * _PRODUCT
        lists_and_masks = THREADS * (products + _PAGE) + (4 if row else 3) * _PAGE  # and what lies between them
        return itemsize * THREADS * elements + lists_and_masks

    def summed_weights(self) -> int:
        """The weights once more, where two threads share samples or rows, with what they wait at.

        With the bias, but for pointwise ones.
        """
        if self.groups > 1:
            return 0
        if not self.cpu.is_wide:
            return self._reduced_weights()
        filters = self.cpu.round_up(self.filters)
        if prod(self.kernel) == 1:
            channels = self.cpu.round_up(self.channels)
            return FLOAT * filters * channels + _BARRIER if self._pointwise_shares().samples > 1 else 0
        if not self._shares_samples():
            return 0
        return FLOAT * filters * (self._padded_channels * prod(self.kernel) + 1) + _BARRIER

    def _reduced_weights(self) -> int:
        """Sums of each thread for a pointwise one's weights, with AVX2: `jit_avx2_1x1_convolution.hpp`."""
        if not self.is_pointwise or not (self.is_gathered or max(self.strides) == 1):
            return 0
        filters, channels = (self.cpu.round_up(count) // self.cpu.lanes for count in (self.filters, self.channels))
        jobs = filters // _halved(filters, 32) * (channels // _halved(channels, 9))
        if not shares_each_sum(jobs, self.batch * prod(self.windows), most=8):
            return 0
        return THREADS * FLOAT * filters * channels * self.cpu.lanes**2 + _BARRIER

    def summed_bias(self) -> int:
        """The gradient of a bias in whole blocks, and once more where two threads share samples of it.

        See `jit_avx512_common_1x1_convolution.hpp`, `jit_avx512_common_convolution.hpp` and `cpu_reducer.cpp`; with
        AVX2 it is known of pointwise ones.
        """
        if self.groups > 1 or not (self.is_pointwise or self.cpu.is_wide):
            return 0
        filters = self.cpu.round_up(self.filters)
        padded = FLOAT * filters + _ALIGNED if filters > self.filters else 0
        is_shared = not (self.is_pointwise and self.cpu.is_wide) or self._pointwise_shares().threads > 1
        is_shared = is_shared and shares_each_sum(filters // self.cpu.lanes, self.batch)
        return padded + (FLOAT * filters + _PAGE + 2 * _PAGE if is_shared else 0)

    def _pointwise_shares(self) -> Shares:
        """What threads share of the gradient of a pointwise one's weights: `jit_avx512_common_1x1_conv_kernel.cpp`."""
        places, width, lanes = prod(self.windows), self.windows[-1], self.cpu.lanes
        run = best_divider(places, 7, 16, largest=True)
        if places % run:
            run = best_divider(width, 4, width, largest=False)
        run = run if run <= 256 else 1
        filters, channels = (self.cpu.round_up(count) // lanes for count in (self.filters, self.channels))
        return pointwise_shares(self.batch * most_of(places, run), run, filters, channels, lanes, 12)

    @property
    def _padded_channels(self) -> int:
        is_plain = self.channels <= PLAIN_CHANNELS
        return self.channels if is_plain else self.cpu.round_up(self.channels)

    def _shares_samples(self) -> bool:
        """Whether the two threads share samples, not channels: what moves fewer bytes, or is done sooner.

        The search of `jit_avx512_common_conv_bwd_weights_kernel_f32_t::balance`.
        """
        rows = (1, *self.windows)[-2]
        shares_rows = len(self.windows) == 2 and rows > _LEAST_ROWS and self.dilation[0] == 1
        parts = self.batch * (rows if shares_rows else 1)
        depth = self.windows[0] if len(self.windows) == 3 else 1
        blocks = self.cpu.round_up(self.filters) // self.cpu.lanes
        channels = self._padded_channels
        input_blocks = max(channels // self.cpu.lanes, 1)
        block = channels // input_blocks
        image = prod(self.size) // (self.size[-2] if shares_rows else 1)
        result = prod(self.windows) // (rows if shares_rows else 1)

        def moved(samples: int, outputs: int, inputs: int) -> int:
            of_input, of_output = most_of(input_blocks, inputs) * block, most_of(blocks, outputs) * self.cpu.lanes
            input_rows = self.batch * (self.size[-2] if shares_rows else 1)
            return (
                most_of(input_rows, samples) * of_input * image // prod(self.strides)
                + most_of(parts, samples) * of_output * result
                + 8 * of_input * of_output * prod(self.kernel)
            )

        def computed(samples: int, outputs: int, inputs: int) -> int:
            return most_of(parts, samples) * most_of(blocks, outputs) * most_of(input_blocks, inputs)

        most = min(THREADS, self.batch * depth * (max(1, rows // _LEAST_ROWS) if shares_rows else 1))
        choices = [(1, 1, min(THREADS, input_blocks)), *([(1, THREADS, 1)] if blocks >= THREADS else [])]
        choices += [(THREADS, 1, 1)] if most >= THREADS else []
        best = (1, 1, 1)
        least = moved(*best)
        for choice in choices:
            if moved(*choice) <= least:
                best, least = choice, moved(*choice)
        soonest = computed(*best)
        for choice in choices:
            is_near = computed(*choice) <= soonest and moved(*choice) < 1.1 * least
            if is_near or 4 * computed(*choice) <= 3 * soonest:
                best, soonest = choice, computed(*choice)
        return best[0] > 1


def _reached(windows: int, size: int, kernel: int, stride: int, padding: int) -> int:
    """Windows in one dimension, with those beyond either end that reach into it."""
    behind = (windows - 1) * stride + kernel - size - padding
    return windows + max(0, kernel - 1 - padding) // stride + max(0, kernel - 1 - behind) // stride


def _halved(blocks: int, most: int) -> int:
    """Blocks that are read at once: by two or three parted, while they are more than `most`."""
    while blocks > most and (blocks % 2 == 0 or blocks % 3 == 0):
        blocks //= 2 if blocks % 2 == 0 else 3
    return blocks


def _whole_pages(elements: int) -> int:
    return -(-elements // _PAGE) * _PAGE
