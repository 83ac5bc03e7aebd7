"""Real pipelines on several processes of this machine, with every storage of each rank followed: run as a module.

`python -m tests.backends.torch.real_pipeline RANKS CASE...` prints, as JSON by case, for each rank the highest number of
bytes alive in a step after the first one. It knows nothing of the package under test: the model is cut by hand, as
torchtitan does it.
"""

from __future__ import annotations

import json
import sys

import torch
from torch import nn
from torch.nn import functional

from tests.backends.torch.real_ranks import TOKENS, VOCABULARY, WIDTH, Block, Follow, on_ranks, unhurried

LAYERS, BATCH, STEPS = 6, 8, 4
CASES: dict[str, tuple[str, int, bool]] = {
    "gpipe": ("GPipe", 4, True),
    "gpipe, outputs dropped": ("GPipe", 2, False),
    "1f1b": ("1F1B", 4, True),
    "1f1b, outputs dropped": ("1F1B", 4, False),
    "interleaved1f1b": ("Interleaved1F1B", 4, False),
    "interleavedzerobubble": ("InterleavedZeroBubble", 4, False),
    "zbvzerobubble": ("ZBVZeroBubble", 4, False),
}
"""The schedule, the number of microbatches, and whether outputs are returned, by case."""


class Deep(nn.Module):
    """A language model whose ends may be missing."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens: nn.Module | None = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleDict({str(index): Block() for index in range(LAYERS)})
        self.norm: nn.Module | None = nn.LayerNorm(WIDTH)
        self.lm_head: nn.Module | None = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(x) if self.embed_tokens else x
        for layer in self.layers.values():
            x = layer(x)
        return self.lm_head(self.norm(x)) if self.lm_head and self.norm else x


def part(stage: int, stages: int) -> nn.Module:
    """What a stage has: the ends count as a layer each."""
    each, more = divmod(LAYERS + 2, stages)
    counts = [each + (index < more) - (index == 0) - (index == stages - 1) for index in range(stages)]
    first = sum(counts[:stage])
    model = Deep()
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


def measure(case: str, rank: int, ranks: int) -> int:
    """Steps of AdamW on this rank; the first one, which makes its states, does not count."""
    from torch.distributed.pipelining import PipelineStage, schedules  # takes a second

    name, microbatches, returned = CASES[case]
    kind = schedules.get_schedule_class(name)
    several = issubclass(kind, schedules.PipelineScheduleMulti)
    stages = 2 * ranks if several else ranks
    own = [rank, stages - 1 - rank] if name == "ZBVZeroBubble" else list(range(rank, stages, ranks))
    parts = [part(stage, stages) for stage in own]
    pairs = zip(parts, own, strict=True)
    own_stages = [PipelineStage(module, stage, stages, torch.device("cpu")) for module, stage in pairs]
    schedule = kind(own_stages if several else own_stages[0], microbatches, loss)
    params = [parameter for module in parts for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(params, foreach=True)
    follow = Follow()
    follow.see(params)
    inputs, ends = [], {}
    if 0 in own:
        inputs = [torch.zeros(BATCH, TOKENS, dtype=torch.int64)]
    if stages - 1 in own:
        ends = {"target": torch.zeros(BATCH * TOKENS, dtype=torch.int64), "losses": []}
    follow.see((inputs, ends))
    out, peaks = None, []
    with unhurried(), follow:
        for _ in range(STEPS):
            torch.distributed.barrier()
            follow.peak = follow.alive
            optimizer.zero_grad()
            out = schedule.step(*inputs, **ends, return_outputs=returned)  # noqa: F841
            optimizer.step()
            peaks.append(follow.peak)
    return min(peaks[1:])


def _measured(rank: int, ranks: int, cases: list[str]) -> dict[str, int]:
    return {case: measure(case, rank, ranks) for case in cases}


def main() -> None:
    ranks, cases = int(sys.argv[1]), sys.argv[2:]
    by_rank = on_ranks(_measured, ranks, cases)
    print(json.dumps({case: [peaks[case] for peaks in by_rank] for case in cases}))


if __name__ == "__main__":
    main()
