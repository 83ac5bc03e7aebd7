"""The CPUs whose kernels are known: what of them decides how much memory a kernel takes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

THREADS = 2
"""Threads of the CPU for which scratch is counted; a fixed number, so that plans are the same everywhere."""

FLOAT = 4
"""Bytes of a float32."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """What differs between CPUs: `lanes` are the channels of a block, `copies` those of the weights of a depthwise
    convolution, channels last, whose gradients are then summed up."""

    lanes: int
    copies: int

    @property
    def is_wide(self) -> bool:
        """Whether it has AVX-512."""
        return self.lanes == 16

    def round_up(self, channels: int) -> int:
        """Channels in whole blocks."""
        return -(-channels // self.lanes) * self.lanes

    def blocked_bytes(self, tensor: torch.Tensor) -> int:
        """Bytes of a tensor in blocks of channels."""
        batch, channels, *spatial = map(int, tensor.shape)
        return int(tensor.element_size()) * batch * self.round_up(channels) * prod(spatial)


CPUS = {"cpu": Cpu(16, 256), "cpu-avx2": Cpu(8, 64)}
"""Those whose kernels are known, by their names in recipes: with AVX-512, and with AVX2."""

FIRST_CACHE, SECOND_CACHE = 48 * 1024, 2**20
"""Bytes of a core's caches, as of Zen 5: kernels make parts of a convolution that fit."""
