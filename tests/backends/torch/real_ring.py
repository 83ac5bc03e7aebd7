"""Real training under torch's context parallelism on several processes: run as a module, as `real_ranks`.

`python -m tests.backends.torch.real_ring RANKS CASE...` prints, as JSON by case, what each rank measured.

torch's ring attention knows kernels of GPUs alone. So the operators of two of them get a stand-in on the CPU, its own
flash attention, which gives tensors of the same sizes and whose own memory nobody counts: all else is torch's, the
exchange of keys and values by gloo included.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.experimental._attention import set_rotate_method
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn import functional

from tests.backends.torch import real_ranks

aten = torch.ops.aten
WIDTH, TOKENS = real_ranks.WIDTH, 512
"""Tokens of a whole sequence: half the part of one of four ranks are rows that memory-efficient attention need not pad."""


class Attention(real_ranks.Attention):
    """Causal attention in one function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, 16)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


def transformer(dtype: torch.dtype = torch.float32) -> nn.Module:
    """The small language model with that attention."""
    model = real_ranks.Transformer()
    for layer in model.layers:
        layer.attention = Attention()
    return model.to(dtype)


def recomputed(model: nn.Module, ranks: int) -> nn.Module:
    for block in model.layers:
        block.forward = real_ranks.recomputed(block.forward)
    return real_ranks.ddp(model, ranks)


def sharded(model: nn.Module, ranks: int) -> nn.Module:
    for block in model.layers:
        fully_shard(block)
    fully_shard(model)
    return model


def norms_by_sequence(model: nn.Module, make_mesh: Callable[..., Any]) -> None:
    """Tensor parallelism whose norms work on a part of each sequence, as torch's tutorial has it."""
    mesh, part = make_mesh(tp=2), Shard(1)
    plan: dict[str, Any] = {"embed_tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=part)}
    plan |= {"norm": SequenceParallel(), "lm_head": ColwiseParallel(input_layouts=part, output_layouts=Replicate())}
    for index in range(real_ranks.LAYERS):
        layer = f"layers.{index}"
        plan |= dict.fromkeys((f"{layer}.norm1", f"{layer}.norm2"), SequenceParallel())
        plan |= {f"{layer}.attention": PrepareModuleInput(input_layouts=part, desired_input_layouts=Replicate())}
        plan |= {f"{layer}.attention.{name}_proj": ColwiseParallel() for name in "qkv"}
        plan |= {f"{layer}.up_proj": ColwiseParallel(input_layouts=part)}
        plan |= {f"{layer}.{name}": RowwiseParallel(output_layouts=part) for name in ("attention.o_proj", "down_proj")}
    parallelize_module(model, mesh, plan)


def sequence_parallel(model: nn.Module, ranks: int) -> nn.Module:
    norms_by_sequence(model, real_ranks._mesh)
    return model


half = partial(transformer, torch.bfloat16)
CASES = {
    "efficient": (transformer, real_ranks.ddp),
    "efficient, alltoall": (transformer, real_ranks.ddp),
    "efficient, recomputed": (transformer, recomputed),
    "efficient, fsdp": (transformer, sharded),
    "flash": (half, sharded),
}


def attention(query: Any, key: Any, value: Any, is_causal: bool = False) -> torch.Tensor:
    """As a GPU chooses it: flash attention in half precision, else memory-efficient attention."""
    if query.dtype is torch.float32:
        return aten._scaled_dot_product_efficient_attention(query, key, value, None, True, 0.0, is_causal)[0]
    return aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal)[0]


attention.__name__ = functional.scaled_dot_product_attention.__name__


def _on_cpu(query: Any, key: Any, value: Any, causal: bool, scale: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    out, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)
    return out, logsumexp.contiguous()


def _seeds() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty((), dtype=torch.int64, device="meta"), torch.empty((), dtype=torch.int64, device="meta")


def efficient(q: Any, k: Any, v: Any, bias: Any, lse: bool, dropout: float = 0.0, causal: bool = False, *, scale: Any = None) -> Any:  # fmt: skip
    return *_on_cpu(q, k, v, causal, scale), *_seeds()


def flash(q: Any, k: Any, v: Any, dropout: float = 0.0, causal: bool = False, debug: bool = False, *, scale: Any = None) -> Any:  # fmt: skip
    return (
        *_on_cpu(q, k, v, causal, scale),
        None,
        None,
        q.shape[2],
        k.shape[2],
        *_seeds(),
        torch.empty(0, dtype=q.dtype),
    )


def backward(gradient: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, causal: bool, scale: Any) -> Any:
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(gradient, q, k, v, out, lse, 0.0, causal, scale=scale)  # fmt: skip


def efficient_backward(gradient: Any, q: Any, k: Any, v: Any, bias: Any, out: Any, lse: Any, seed: Any, offset: Any, dropout: float, mask: Any, causal: bool = False, *, scale: Any = None) -> Any:  # fmt: skip
    return *backward(gradient, q, k, v, out, lse, causal, scale), None


def flash_backward(gradient: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, sums_q: Any, sums_k: Any, most_q: int, most_k: int, dropout: float, causal: bool, seed: Any, offset: Any, *, scale: Any = None) -> Any:  # fmt: skip
    return backward(gradient, q, k, v, out, lse, causal, scale)


def _kernels_on_cpu() -> torch.library.Library:
    library = torch.library.Library("aten", "IMPL", "CPU")
    for kernel in (efficient, flash):
        library.impl(f"_scaled_dot_product_{kernel.__name__}_attention", kernel)
    library.impl("_scaled_dot_product_efficient_attention_backward", efficient_backward)
    library.impl("_scaled_dot_product_flash_attention_backward", flash_backward)
    return library


def _measure(case: str, ranks: int) -> dict[str, int]:
    if case == "sequence parallel":
        real_ranks.CASES[case] = real_ranks.Transformer, sequence_parallel
        return real_ranks.measure(case, ranks)
    real_ranks.CASES[case] = CASES[case]
    with ExitStack() as stack:

        def ids() -> torch.Tensor:
            whole = torch.zeros(2, TOKENS, dtype=torch.int64)
            mesh = real_ranks._mesh(cp=ranks)
            ring = context_parallel(mesh, buffers=[whole], buffer_seq_dims=[1], no_restore_buffers={whole})
            stack.enter_context(ring)
            return whole

        real_ranks.INPUTS[case] = ids
        set_rotate_method("alltoall" if "alltoall" in case else "allgather")
        return real_ranks.measure(case, ranks)


def _measured(rank: int, ranks: int, cases: list[str]) -> dict[str, dict[str, int]]:
    functional.scaled_dot_product_attention = attention
    library = _kernels_on_cpu()
    peaks = {case: _measure(case, ranks) for case in cases}
    library._destroy()
    return peaks


def main() -> None:
    cases = sys.argv[2:]
    by_rank = real_ranks.on_ranks(_measured, int(sys.argv[1]), cases)
    print(json.dumps({case: [peaks[case] for peaks in by_rank] for case in cases}))


if __name__ == "__main__":
    main()
