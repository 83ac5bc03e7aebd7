"""Real training with experts on several processes: run as a module, as `real_ranks`.

`python -m tests.backends.torch.real_experts RANKS CASE...` prints, as JSON by case, what rank 0 measured. Rows go to the
ranks of their experts by their values; the router chooses experts in turn, so that each gets as many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_module, distribute_tensor
from torch.nn import functional

from tests.backends.torch import real_ranks
from tests.backends.torch.real_ranks import LAYERS, VOCABULARY, WIDTH

EXPERTS, CHOSEN, INNER, TOKENS = 8, 2, 96, 64


class Experts(nn.Module):
    """Grouped weights, and rows that are sorted by expert."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(EXPERTS, INNER, WIDTH) * 0.02)
        self.w2 = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER) * 0.02)

    def forward(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        w1, w2 = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in (self.w1, self.w2))
        parts = torch.split(rows, [int(count) for count in counts.tolist()])
        weights = zip(parts, w1.unbind(), w2.unbind(), strict=True)
        return torch.cat([functional.silu(part @ up.T) @ down.T for part, up, down in weights])


class Routed(nn.Module):
    """Experts behind a router."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = Experts()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(0, 1)
        scores = self.gate(tokens).softmax(1)
        chosen = self.choose(scores)
        counts = torch.histc(chosen.view(-1).float(), bins=EXPERTS, min=0, max=EXPERTS)
        order = torch.argsort(chosen.view(-1), stable=True)
        weights, token = scores.gather(1, chosen).view(-1)[order], order // CHOSEN
        out = self.experts(tokens[token] * weights[:, None], counts)
        return torch.zeros_like(tokens).index_add(0, token, out).view_as(x)

    def choose(self, scores: torch.Tensor) -> torch.Tensor:
        return torch.topk(scores, CHOSEN, dim=1)[1]


class Block(nn.Module):
    """One of them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.routed = nn.LayerNorm(WIDTH), Routed()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.routed(self.norm(x))


class Mixture(nn.Module):
    """A small language model of experts."""

    def __init__(self, layers: int = LAYERS) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(layers))
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


def in_turn(scores: torch.Tensor) -> torch.Tensor:
    """Experts one after the other, whatever the scores."""
    return torch.arange(scores.shape[0] * CHOSEN).view(-1, CHOSEN) % EXPERTS


class Exchange:
    """What goes in front of and behind the experts of one layer."""

    def __init__(self, mesh: Any) -> None:
        self.group, self.ranks = mesh.get_group(), mesh.size()

    def dispatch(self, module: nn.Module, inputs: Any, mesh: Any) -> Any:
        rows, counts = inputs
        received = torch.empty_like(counts)
        torch.distributed.all_to_all_single(received, counts, group=self.group)
        by_rank = received.view(self.ranks, -1)
        self.to = [int(n) for n in counts.view(self.ranks, -1).sum(1).tolist()]
        self.came = [int(n) for n in by_rank.sum(1).tolist()]
        rows = all_to_all_single_autograd(rows, self.came, self.to, self.group)
        experts = torch.arange(by_rank.shape[1]).repeat(self.ranks).repeat_interleave(received.long())
        self.order = torch.argsort(experts, stable=True).int()
        return torch.index_select(rows, 0, self.order), by_rank.sum(0)

    def combine(self, module: nn.Module, rows: torch.Tensor, mesh: Any) -> torch.Tensor:
        back = rows.new_empty(rows.shape).index_copy_(0, self.order.long(), rows)
        return all_to_all_single_autograd(back, self.to, self.came, self.group)


def _deal_out(name: str, module: nn.Module, mesh: Any) -> None:
    for key, weight in list(module.named_parameters(recurse=False)):
        module.register_parameter(key, nn.Parameter(distribute_tensor(weight, mesh, [Shard(0)])))


def deal_out(layer: Any, mesh: Any) -> None:
    """Deal the experts of a block out over the ranks of `mesh`."""
    exchange = Exchange(mesh)
    distribute_module(layer.routed.experts, mesh, _deal_out, exchange.dispatch, exchange.combine)


def experts_over(
    model: nn.Module, ranks: int, share: int, make_mesh: Callable[..., Any] = real_ranks._mesh
) -> nn.Module:
    """FSDP over all ranks, with experts over `share` of them."""
    mesh = make_mesh(fsdp=ranks // share, ep=share)
    for layer in model.layers:
        deal_out(layer, mesh["ep"])
        fully_shard(layer.routed.experts, mesh=mesh["fsdp"])
    real_ranks._shard_blocks(model, make_mesh(dense=ranks))
    return model


CASES = {
    "ep 2": (Mixture, lambda model, ranks: experts_over(model, ranks, 2)),
    "ep 4": (Mixture, lambda model, ranks: experts_over(model, ranks, 4)),
}


def _measured(rank: int, ranks: int, cases: list[str]) -> dict[str, dict[str, int]]:
    Routed.choose = lambda self, scores: in_turn(scores)
    return measured_on_tokens(CASES, ranks, cases)


def measured_on_tokens(known: dict[str, Any], ranks: int, cases: list[str]) -> dict[str, dict[str, int]]:
    """What `real_ranks` measures of `cases` of those `known`, whose models take ids `(2, TOKENS)`."""
    real_ranks.CASES.update(known)
    real_ranks.INPUTS.update(dict.fromkeys(known, lambda: torch.zeros(2, TOKENS, dtype=torch.int64)))
    return {case: real_ranks.measure(case, ranks) for case in cases}


if __name__ == "__main__":
    real_ranks.main(_measured)
