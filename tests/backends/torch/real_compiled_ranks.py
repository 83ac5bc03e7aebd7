"""Real training of compiled models on several processes of this machine, measured by torch's own allocator events.

As `real_ranks`, whose models and shardings it has; what is watched there by a mode would not be compiled. Blocks are
recomputed, compiled and sharded in this order, as torchtitan has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from tests.backends.torch.real_ranks import LAYERS, TOKENS, Transformer, ddp, fsdp, main, recomputed
from tests.real_steps import measured

BATCH = 16


def _blocks(model: Any, *, recompute: bool) -> Any:
    for block in model.layers:
        if recompute:
            block.forward = recomputed(block.forward)
        block.compile(fullgraph=True)
    return model


CASES: dict[str, Callable[[Any, int], nn.Module]] = {
    "ddp": lambda model, ranks: ddp(torch.compile(model), ranks),
    "ddp, blocks": lambda model, ranks: ddp(_blocks(model, recompute=False), ranks),
    "fsdp, blocks": lambda model, ranks: fsdp(_blocks(model, recompute=False), ranks),
    "fsdp, blocks recomputed": lambda model, ranks: fsdp(_blocks(model, recompute=True), ranks),
}


def measure(case: str, ranks: int) -> int:
    """Bytes at the peak of two steps of SGD on this rank, after two that compiled."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = CASES[case](Transformer(), ranks)
    batch = torch.zeros(BATCH, TOKENS, dtype=torch.int64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    alive: list[Any] = []

    def step() -> None:
        optimizer.zero_grad()
        alive[:] = [model(batch)]
        torch.autograd.backward(alive, [torch.empty_like(alive[0])])
        optimizer.step()

    step()
    step()
    peaks = []
    for _ in range(6):  # gloo's threads let go of what they sent when they come to it: the lowest is what is needed
        alive.clear()
        optimizer.zero_grad()
        peaks.append(measured(step, 2))
    peak = min(peaks)
    local = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in model.parameters()]
    there = {weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes() for weight in (*local, batch)}
    return peak + sum(there.values())


def _measured(rank: int, ranks: int, cases: list[str]) -> dict[str, int]:
    return {case: measure(case, ranks) for case in cases}


if __name__ == "__main__":
    assert LAYERS > 1
    main(_measured)
