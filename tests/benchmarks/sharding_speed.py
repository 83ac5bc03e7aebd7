"""What it costs to plan the training of language models over many ranks, and what the plans say.

    python tests/benchmarks/sharding_speed.py [CASE...]

Each case runs in a fresh process: CPU seconds without the import of torch, the memory that was added to it, the peak
of one rank, and the bytes that it sends in a step. Models have the published shapes of Llama 3 (8B: 8,030,261,248
parameters, 405B: 405,853,388,800; arXiv 2407.21783, table 3), one sequence a rank, weights in bfloat16, AdamW.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from typing import Any

GIB = 2**30

SHAPES = {"8B": (4096, 32, 8, 14336, 32), "405B": (16384, 128, 8, 53248, 126)}
VOCABULARY = 128_256

CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "8B, fsdp 8": ("8B", 2048, {"sharding": {"fsdp": 8}}),
    "8B, tp 8": ("8B", 2048, {"sharding": {"tp": 8}}),
    "8B, fsdp 64, blocks recomputed": ("8B", 8192, {"sharding": {"fsdp": 64}, "checkpointing": "blocks"}),
    "8B, ddp 8 x fsdp 8": ("8B", 2048, {"sharding": {"ddp": 8, "fsdp": 8}}),
    "405B, fsdp 64 x tp 8, blocks recomputed": (
        "405B",
        8192,
        {"sharding": {"fsdp": 64, "tp": 8}, "checkpointing": "blocks"},
    ),
    "405B, fsdp 512, blocks recomputed": ("405B", 8192, {"sharding": {"fsdp": 512}, "checkpointing": "blocks"}),
}


def llama(size: str) -> Any:
    """A decoder of the published shape: grouped queries, rotated positions, gated feed-forward parts."""
    import torch
    from torch import nn
    from torch.nn import functional

    width, heads, groups, inner, layers = SHAPES[size]
    head = width // heads

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = nn.Linear(width, width, bias=False)
            self.k_proj = nn.Linear(width, groups * head, bias=False)
            self.v_proj = nn.Linear(width, groups * head, bias=False)
            self.o_proj = nn.Linear(width, width, bias=False)

        def forward(self, x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
            q, k, v = (
                part(x).unflatten(-1, (-1, head)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj)
            )
            q, k = (torch.cat((part[..., 1::2] * turn, part[..., ::2] * turn), -1) for part in (q, k))
            k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
            out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.o_proj(out.transpose(1, 2).flatten(2))

    class Forward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj = (nn.Linear(width, inner, bias=False) for _ in range(2))
            self.down_proj = nn.Linear(inner, width, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.mlp = Attention(), Forward()
            self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)

        def forward(self, x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
            x = x + self.attention(self.norm1(x), turn)
            return x + self.mlp(self.norm2(x))

    class Llama(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed_tokens = nn.Embedding(VOCABULARY, width)
            self.layers = nn.ModuleList(Block() for _ in range(layers))
            self.norm = nn.RMSNorm(width)
            self.lm_head = nn.Linear(width, VOCABULARY, bias=False)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.embed_tokens(ids)
            turn = torch.ones(ids.shape[1], head // 2, dtype=x.dtype, device=x.device)
            for layer in self.layers:
                x = layer(x, turn)
            return self.lm_head(self.norm(x))

    return Llama()


def measure(case: str) -> str:
    """Plan one case in this process."""
    import torch  # noqa: F401

    from pytest_modelbudget.backends.torch.distributed.rank import record_sharded
    from pytest_modelbudget.backends.torch.model.build import abstract
    from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
    from pytest_modelbudget.inputs import parse
    from pytest_modelbudget.planner import Training

    size, tokens, options = CASES[case]
    imported, began, wall = _memory(), time.process_time(), time.perf_counter()
    with abstract():
        model = llama(size)
    built = time.process_time()
    params = sum(parameter.numel() for parameter in model.parameters())
    recipe = Training(precision="bf16", loss="cross_entropy", **options)
    found = record_sharded(RunnableModel(case, model, parse(f"int64[1, {tokens}]")), {}, recipe)
    ended = time.process_time()
    peak, shards = found.memory_trace.peak(), found.ranks // options["sharding"].get("ddp", 1)
    sent = ", ".join(f"{kind} {size / GIB:.2f}" for kind, size in found.communication.items())
    return (
        f"{case}: {params:,} params, build {built - began:.1f} + plan {ended - built:.1f} CPU s "
        f"({time.perf_counter() - wall:.1f} s), +{_memory() - imported:.0f} MB, {found.ranks} ranks, "
        f"peak {peak / GIB:.2f} GiB a rank, steady {_steady(found.memory_trace) / GIB:.3f} GiB "
        f"(4 x 2 B x params / shards = {8 * params / shards / GIB:.3f}), sends GiB: {sent}"
    )


def _steady(memory_trace: Any) -> int:
    """Parameters, gradients and states of the optimizer between two steps."""
    sizes = {item.storage: item.bytes for item in memory_trace.held if item.role == "param"}
    for event in memory_trace.events:
        sizes.update(
            (number, size) for number, size in event.made if memory_trace.roles.get(number) in ("gradient", "optimizer")
        )
        for number in event.freed:
            sizes.pop(number, None)
    return sum(sizes.values())


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    """Measure the named cases, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--here", action="store_true", help="in this process, for a profile")
    given = parser.parse_args()
    for case in given.cases:
        if given.here:
            print(measure(case), flush=True)
        else:
            subprocess.run([sys.executable, __file__, "--here", case], check=True)


if __name__ == "__main__":
    main()
