"""How oneDNN lets two threads share the gradient of a convolution's weights: samples, filters or channels.

Its kernels weigh what each choice moves, and differ in the weights: `balance` in oneDNN 3.12, below `src/cpu/x64`
`jit_avx512_common_1x1_conv_kernel.cpp`, `jit_avx512_core_bf16_1x1_conv_kernel.cpp` and
`jit_avx512_core_bf16_conv_kernel.cpp`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pytest_modelbudget.backends.torch.kernels.cpus import THREADS


class Shares(NamedTuple):
    """Threads that share samples (or rows), filters, and channels; those that share samples add up their weights."""

    samples: int
    filters: int
    channels: int

    @property
    def threads(self) -> int:
        """All of them."""
        return self.samples * self.filters * self.channels


def cheapest_shares(cost: Callable[[Shares], float], samples: int, filters: int, channels: int) -> Shares:
    """The last of the choices with the least `cost`, for so many samples, and blocks of filters and of channels."""
    choices = [Shares(1, 1, 1), Shares(1, 1, min(THREADS, channels))]
    choices += [Shares(1, THREADS, 1)] if filters >= THREADS else []
    choices += [Shares(THREADS, 1, 1)] if samples >= THREADS else []
    return min(reversed(choices), key=cost)


def pointwise_shares(samples: int, run: int, filters: int, channels: int, lanes: int, result_weighs: int) -> Shares:
    """The shares of a pointwise convolution, which reads runs of `run` places, `samples` in all.

    `filters` and `channels` are blocks of `lanes`; the weights cost `result_weighs` times what is read does.
    """

    def cost(shares: Shares) -> float:
        of_filters, of_channels = most_of(filters, shares.filters), most_of(channels, shares.channels)
        read = most_of(samples, shares.samples) * (of_filters + of_channels) * lanes * run
        return read + result_weighs * of_filters * of_channels * lanes**2

    return cheapest_shares(cost, samples, filters, channels)


def shares_each_sum(sums: int, samples: int, most: int | None = None) -> bool:
    """Whether two threads share the `samples` of each of so many sums, not the sums: `cpu_reducer.cpp`, `balance`.

    They share those of `most` sums at the most.
    """
    least = max(1, sums // THREADS)
    together = min(THREADS // min(sums // least, THREADS), samples)
    cost = sums * samples
    for of_group in range(least, sums):
        groups = min(sums // of_group, THREADS)
        threads = min(THREADS // groups, samples)
        if most and threads > 1 and most_of(sums, groups) > most:
            continue
        work = most_of(sums, groups) * (most_of(samples, threads) + (threads > 1))
        if work < cost:
            together, cost = threads, work
    return together > 1


def best_divider(value: int, least: int, most: int, *, largest: bool, step: int = 1) -> int:
    """The size of parts, `most` or by steps of `step` less, that adds the least to `value` when it is made whole parts.

    oneDNN's `best_divider` in `jit_uni_1x1_conv_utils.hpp`; of equals the `largest` or the smallest.
    """
    most = max(1, min(most, value))
    least = max(1, min(least, most))
    sizes = range(most, least - 1, -step)
    whole = {size: -(-value // size) * size for size in sizes}
    return min(sizes if largest else reversed(sizes), key=lambda size: (whole[size] - value) / whole[size])


def most_of(count: int, threads: int) -> int:
    """What the most loaded of `threads` has of `count`."""
    return -(-count // threads)
