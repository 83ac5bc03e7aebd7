"""A decoder in PyTorch that keeps keys and values between its passes, with fewer heads of keys than of queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

KeysAndValues = tuple[torch.Tensor, torch.Tensor]
"""What a block keeps of the tokens that it has seen, each `(B, heads, T, size)`."""


class CachedBlock(nn.Module):
    """Causal attention over all tokens so far and a perceptron, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, kept_heads: int) -> None:
        super().__init__()
        self.size = width // heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.queries = nn.Linear(width, width, bias=False)
        self.keys = nn.Linear(width, kept_heads * self.size, bias=False)
        self.values = nn.Linear(width, kept_heads * self.size, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor, kept: KeysAndValues | None) -> tuple[torch.Tensor, KeysAndValues]:
        """New tokens `(B, T, width)` to the same shape, and keys and values with theirs."""
        y = self.norm1(x)
        q, k, v = (layer(y).unflatten(-1, (-1, self.size)).transpose(1, 2) for layer in self.projections())
        if kept is not None:
            k, v = torch.cat([kept[0], k], dim=2), torch.cat([kept[1], v], dim=2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=kept is None, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x)), (k, v)

    def projections(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        """The layers of queries, keys and values."""
        return self.queries, self.keys, self.values


class Chat(nn.Module):
    """Token embeddings, blocks, and a head; positions are known by the causal mask alone."""

    def __init__(self, vocabulary: int = 8192, width: int = 256, depth: int = 4, heads: int = 8, kept_heads: int = 2):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(CachedBlock(width, heads, kept_heads) for _ in range(depth))
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(
        self, ids: torch.Tensor, cache: Sequence[KeysAndValues] | None = None
    ) -> tuple[torch.Tensor, list[KeysAndValues]]:
        """Ids `(B, T)` of new tokens and what is kept of earlier ones to scores `(B, T, vocabulary)` and the cache."""
        x = self.tokens(ids)
        kept_of_all: list[KeysAndValues] = []
        for at, block in enumerate(self.blocks):
            x, kept = block(x, cache[at] if cache else None)
            kept_of_all.append(kept)
        return self.head(x), kept_of_all
