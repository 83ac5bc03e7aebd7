"""Real pipelines on several processes of this machine, with every storage of each rank followed: run as a module.

`python -m tests.backends.torch.real_pipeline RANKS CASE... [-- RANKS CASE...]` prints, as JSON by number of ranks and
case, for each rank the highest number of bytes alive in a step after the first one. It knows nothing of the package
under test: the model is cut by hand, as torchtitan does it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.pipelining import PipelineStage, schedules
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn import functional

from tests.backends.torch import real_experts
from tests.backends.torch.real_ranks import (
    TENSOR_PARALLEL,
    TENSOR_PARALLEL_BLOCK,
    TOKENS,
    VOCABULARY,
    WIDTH,
    Block,
    Follow,
    groups,
    on_ranks,
    recomputed,
    resizes_followed,
    unhurried,
)

LAYERS, BATCH, STEPS = 6, 8, 4


@dataclass(frozen=True)
class Case:
    """A pipeline: `returned` are outputs, `passes` those of the schedule before a step of the optimizer.

    Each stage is shared by ranks of `fsdp` and `tp`; `half` is FSDP's policy, autocast without it. `extra` is what the
    model does with its embedding beside handing it to the first block. With `chunked` the loss runs the head in parts.
    With `experts` blocks are mixtures, whose experts are dealt out over `ep` of the ranks of `fsdp`.
    A head that is `tied` to the embedding is so where one rank has both.
    """

    schedule: str
    microbatches: int
    returned: bool = False
    fsdp: int = 1
    tp: int = 1
    half: bool = False
    recomputed: bool = False
    passes: int = 1
    extra: str = ""
    chunked: bool = False
    experts: bool = False
    ep: int = 1
    tied: bool = False

    @property
    def ranks_of_a_stage(self) -> int:
        return self.fsdp * self.tp


CASES: dict[str, Case] = {
    "gpipe": Case("GPipe", 4, returned=True),
    "gpipe, outputs dropped": Case("GPipe", 2),
    "1f1b": Case("1F1B", 4, returned=True),
    "1f1b, outputs dropped": Case("1F1B", 4),
    "interleaved1f1b": Case("Interleaved1F1B", 4),
    "interleavedzerobubble": Case("InterleavedZeroBubble", 4),
    "zbvzerobubble": Case("ZBVZeroBubble", 4),
    "autocast": Case("1F1B", 4, half=True),
    "autocast, recomputed": Case("1F1B", 4, half=True, recomputed=True),
    "accumulated": Case("1F1B", 2, passes=3),
    "chunked loss": Case("1F1B", 4, chunked=True),
    "chunked loss, zbvzerobubble": Case("ZBVZeroBubble", 4, chunked=True),
    "skip connection": Case("1F1B", 4, extra="skipped"),
    "skip connection, interleaved1f1b": Case("Interleaved1F1B", 4, extra="skipped"),
    "read by all blocks": Case("1F1B", 4, extra="read by blocks"),
    "read by all blocks, autocast": Case("1F1B", 4, extra="read by blocks", half=True),
    "read by all blocks, zbvzerobubble": Case("ZBVZeroBubble", 4, extra="read by blocks"),
    "tied": Case("1F1B", 4, tied=True),
    "tied, zbvzerobubble": Case("ZBVZeroBubble", 4, tied=True),
    "experts": Case("1F1B", 4, experts=True),
    "fsdp": Case("1F1B", 4, fsdp=2),
    "fsdp, interleaved1f1b": Case("Interleaved1F1B", 4, fsdp=2),
    "fsdp, zbvzerobubble": Case("ZBVZeroBubble", 4, fsdp=2),
    "fsdp, mixed precision": Case("1F1B", 4, fsdp=2, half=True),
    "fsdp, recomputed": Case("1F1B", 4, fsdp=2, recomputed=True),
    "fsdp, accumulated": Case("1F1B", 2, fsdp=2, passes=3),
    "fsdp, chunked loss": Case("1F1B", 4, fsdp=2, chunked=True),
    "fsdp, read by all blocks": Case("1F1B", 4, fsdp=2, extra="read by blocks"),
    "ep": Case("1F1B", 4, fsdp=2, experts=True, ep=2),
    "ep, interleaved1f1b": Case("Interleaved1F1B", 4, fsdp=2, experts=True, ep=2),
    "tp": Case("1F1B", 4, tp=2),
}


class Reading(Block):
    """A block that reads what it takes over and a second tensor."""

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        return super().forward(x + memory)


def block_of(case: Case) -> type[nn.Module]:
    return real_experts.Block if case.experts else Reading if case.extra == "read by blocks" else Block


class Deep(nn.Module):
    """A language model whose ends may be missing; with `extra` stages hand on the embedding, too."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.extra, self.has_head = case.extra, not case.chunked
        kind = block_of(case)
        self.embed_tokens: nn.Module | None = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleDict({str(index): kind() for index in range(LAYERS)})
        self.norm: nn.Module | None = nn.LayerNorm(WIDTH)
        self.lm_head: nn.Module | None = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, x: torch.Tensor, embedded: torch.Tensor | None = None) -> Any:
        if self.embed_tokens:
            x = embedded = self.embed_tokens(x)
        for layer in self.layers.values():
            x = layer(x, embedded) if self.extra == "read by blocks" else layer(x)
        if not (self.lm_head and self.norm):
            return (x, embedded) if self.extra else x
        x = self.norm(x + embedded if self.extra == "skipped" else x)
        return self.lm_head(x) if self.has_head else x


def part(stage: int, stages: int, case: Case) -> Deep:
    """What a stage has: the ends count as a layer each."""
    each, more = divmod(LAYERS + 2, stages)
    counts = [each + (index < more) - (index == 0) - (index == stages - 1) for index in range(stages)]
    first = sum(counts[:stage])
    model = Deep(case)
    for index in range(LAYERS):
        if not first <= index < first + counts[stage]:
            del model.layers[str(index)]
    if stage:
        model.embed_tokens = None
    if stage < stages - 1:
        model.norm = model.lm_head = None
    return model


def loss(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(scores.reshape(-1, VOCABULARY), targets)


def chunked_loss(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """As torchtune's `CEWithChunkedOutputLoss` has it, whose model gives logits in parts."""
    parts, total = [head(chunk) for chunk in hidden.chunk(8, dim=1)], torch.zeros(())
    for part, target in zip(parts, targets.chunk(8, dim=1), strict=True):
        rows = part.reshape(-1, VOCABULARY).float()
        total = total + functional.cross_entropy(rows, target.reshape(-1), reduction="sum")
    return total / (targets != -100).sum()


def shard(model: nn.Module, case: Case, mesh: DeviceMesh, expert_mesh: DeviceMesh | None) -> None:
    """Share a stage as torchtitan does: what was gathered stays to the end of a step."""
    if case.tp > 1:
        plan = {name: style for name, style in TENSOR_PARALLEL.items() if getattr(model, name)}
        for index in model.layers:
            plan |= {f"layers.{index}.{name}": style for name, style in TENSOR_PARALLEL_BLOCK.items()}
        parallelize_module(model, mesh["tp"], plan)
    if case.fsdp > 1:
        half = torch.bfloat16 if case.half else None
        policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32 if half else None)
        for layer in model.layers.values() if expert_mesh else ():
            real_experts.deal_out(layer, expert_mesh["ep"])
            fully_shard(layer.routed.experts, mesh=expert_mesh["fsdp"], reshard_after_forward=False)
        for module in (*model.layers.values(), model):
            fully_shard(module, mesh=mesh["fsdp"], mp_policy=policy, reshard_after_forward=False)


def measure(case: Case, world: int) -> int:
    """Steps of AdamW on this rank; the first one, which makes its states, does not count."""
    dims = {"pp": world // case.ranks_of_a_stage, "fsdp": case.fsdp, "tp": case.tp}
    mesh = init_device_mesh("cpu", tuple(dims.values()), mesh_dim_names=tuple(dims))
    expert_dims = {"pp": dims["pp"], "fsdp": case.fsdp // case.ep, "ep": case.ep}
    expert_mesh = None
    if case.ep > 1:
        expert_mesh = init_device_mesh("cpu", tuple(expert_dims.values()), mesh_dim_names=tuple(expert_dims))
    rank, ranks = mesh["pp"].get_local_rank(), dims["pp"]
    kind = schedules.get_schedule_class(case.schedule)
    several = issubclass(kind, schedules.PipelineScheduleMulti)
    stages = 2 * ranks if several else ranks
    own = [rank, stages - 1 - rank] if case.schedule == "ZBVZeroBubble" else list(range(rank, stages, ranks))
    parts = [part(stage, stages, case) for stage in own]
    if case.tied and parts[0].embed_tokens and parts[-1].lm_head:
        parts[-1].lm_head.weight = parts[0].embed_tokens.weight
    for module in parts:
        for block in module.layers.values() if case.recomputed else ():
            block.forward = recomputed(block.forward)
        shard(module, case, mesh, expert_mesh)
    own_stages = [
        PipelineStage(module, stage, stages, torch.device("cpu"), group=mesh["pp"].get_group())
        for module, stage in zip(parts, own, strict=True)
    ]
    head = next((module.lm_head for module in parts if module.lm_head), None)
    loss_of = partial(chunked_loss, head) if case.chunked and head else loss
    schedule = kind(own_stages if several else own_stages[0], case.microbatches, loss_of)
    params = list(dict.fromkeys(parameter for module in parts for parameter in module.parameters()))
    optimizer = torch.optim.AdamW(groups(params), foreach=True)
    follow = Follow()
    follow.see(params)
    inputs, ends = [], {}
    if 0 in own:
        inputs = [torch.zeros(BATCH, TOKENS, dtype=torch.int64)]
    if stages - 1 in own:
        rows = (BATCH, TOKENS) if case.chunked else (BATCH * TOKENS,)
        ends = {"target": torch.zeros(rows, dtype=torch.int64), "losses": []}
    follow.see((inputs, ends))
    out, peaks = None, []
    with unhurried(), resizes_followed(follow), follow:
        for _ in range(STEPS):
            torch.distributed.barrier()
            follow.peak = follow.alive
            optimizer.zero_grad()
            for _ in range(case.passes):
                with torch.autocast("cpu", torch.bfloat16, enabled=case.half and case.fsdp == 1):
                    out = schedule.step(*inputs, **ends, return_outputs=case.returned)  # noqa: F841
            optimizer.step()
            peaks.append(follow.peak)
    return min(peaks[1:])


def _measured(rank: int, ranks: int, cases: list[str]) -> dict[str, int]:
    real_experts.Routed.choose = lambda self, scores: real_experts.in_turn(scores)
    return {case: measure(CASES[case], ranks) for case in cases}


def main() -> None:
    peaks = {}
    for world in _worlds(sys.argv[1:]):
        ranks, cases = int(world[0]), world[1:]
        by_rank = on_ranks(_measured, ranks, cases)
        peaks[ranks] = {case: [of_rank[case] for of_rank in by_rank] for case in cases}
    print(json.dumps(peaks))


def _worlds(words: list[str]) -> list[list[str]]:
    """The words between dashes."""
    worlds: list[list[str]] = [[]]
    for word in words:
        worlds.append([]) if word == "--" else worlds[-1].append(word)
    return worlds


if __name__ == "__main__":
    main()
