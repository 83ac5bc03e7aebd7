"""Optimizers with states of few bits, as memory alone: those of bitsandbytes and of torchao."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

import torch

from pytest_modelbudget.backends.torch.training.published_optimizers import PublishedOptimizer


class Bitsandbytes(PublishedOptimizer):
    """Adam or AdamW of bitsandbytes with states of 8 or 32 bits, as in Dettmers et al. 2022 (arXiv 2110.02861).

    Each state holds as many averages as `STATES` says, with 8 `bits` as a byte for each element and a float32 for each
    block of 256; tensors of fewer than 4,096 elements keep float32 states. The table of the 256 values of each state is
    there once. The update is one kernel without temporaries.

    `paged` states of tensors of 100,000 elements and more are in unified memory, which is not torch's: it holds them on
    the device while there is room, else on the host. They are in `unified_bytes`.
    """

    BLOCK, SMALL, PAGED = 256, 4_096, 100_000
    TABLE = 256
    STATES: tuple[int, ...] = (1, 1)

    def __init__(self, params: Iterable[Any], *, bits: int, paged: bool, **options: Any) -> None:
        super().__init__(params, **options)
        self._bits, self._paged = bits, paged
        self._tables: list[torch.Tensor] = []

    def update(self, param: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], names: Any) -> None:
        """See `PublishedOptimizer.update`."""
        if state:
            return
        state["step"] = 0
        in_blocks = self._bits == 8 and param.numel() >= self.SMALL
        if in_blocks and not self._tables:
            self._tables = [torch.zeros(self.TABLE, device=param.device) for _ in self.STATES]
        kind = torch.uint8 if in_blocks else torch.float32
        for number, averages in enumerate(self.STATES, start=1):
            if self._paged and param.numel() >= self.PAGED:
                self.unified_bytes += averages * param.numel() * kind.itemsize
            else:
                state[f"state{number}"] = torch.zeros((averages, *param.shape), dtype=kind, device=param.device)
            if in_blocks:
                scales = (averages, -(-param.numel() // self.BLOCK))
                state[f"absmax{number}"] = torch.zeros(scales, device=param.device)
                state[f"qmap{number}"] = self._tables[number - 1]


class BitsandbytesLion(Bitsandbytes):
    """Lion of bitsandbytes: one average."""

    STATES = (1,)
    WITHOUT_SIZE = ("lr", "betas", "weight_decay")


class BitsandbytesAdEMAMix(Bitsandbytes):
    """AdEMAMix (Pagliardini et al. 2024, arXiv 2409.03137) of bitsandbytes: a fast and a slow average in one state."""

    STATES = (2, 1)
    WITHOUT_SIZE = (*PublishedOptimizer.WITHOUT_SIZE, "alpha", "t_alpha", "t_beta3")


class AdamW4bit(PublishedOptimizer):
    """AdamW of torchao 0.18 with states of 4 bits, as in Li et al. 2023 (arXiv 2309.01507).

    Each of two states has half a byte for each element, a float32 for each block, and a table of 16 float32. Tensors of
    fewer than 4,096 elements, or of a number that blocks do not divide, keep states in the dtype of the parameter. The
    update is compiled; what the code takes is counted for CPUs alone, see `_compiled_update`.
    """

    SMALL, TABLE = 4_096, 16

    def __init__(self, params: Iterable[Any], *, block_size: int = 128, on_cpu: bool, **options: Any) -> None:
        super().__init__(params, **options)
        self._block, self._on_cpu = block_size, on_cpu

    @property
    def notes(self) -> tuple[str, ...]:
        """What the update takes depends on the compiler; the bound is that of a run in torchao's `optim/README.md`.

        Llama 2 7B in bfloat16 on an A100 took 33.2 GiB, 1.43 GiB above weights, gradients and states (and 1.40 GiB
        above them with torch's fused AdamW); its largest parameter has 131,072,000 elements.
        """
        if self._on_cpu:
            return ()
        return (
            "adamw-4bit: what its compiled update takes is not counted (in a published run at most 12 bytes for each "
            "element of the largest parameter)",
        )

    def update(self, param: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], names: Any) -> None:
        """See `PublishedOptimizer.update`."""
        quantized = param.numel() >= self.SMALL and param.numel() % self._block == 0
        if not state:
            state["step"] = torch.tensor(0.0)
            for number in range(2):
                state[f"state{number}"] = self._quantized(param) if quantized else torch.zeros_like(param)
        if quantized and self._on_cpu:
            _compiled_update(param, self._block)

    def _quantized(self, param: torch.Tensor) -> list[torch.Tensor]:
        codes = torch.zeros(param.numel() // 2, dtype=torch.uint8, device=param.device)
        scales = torch.zeros(param.numel() // self._block, device=param.device)
        return [codes, scales, torch.zeros(self.TABLE, device=param.device)]


def _compiled_update(param: torch.Tensor, block: int) -> None:
    """What the code that torch 2.14 compiles for CPUs takes while it writes two states.

    Measured for 512 x 1024 elements in float32 and bfloat16, for each state: packed codes of both states unpacked to a
    byte an element, then a scale for each block, the state in float32 and its codes in int64.
    """
    elements = prod(param.shape)
    unpacked = [torch.empty(elements, dtype=torch.uint8, device=param.device) for _ in range(2)]
    made = [
        torch.empty(size, dtype=kind, device=param.device)
        for size, kind in ((elements // block, torch.float32), (elements, torch.float32), (elements, torch.int64))
        for _ in range(2)
    ]
    del unpacked, made
