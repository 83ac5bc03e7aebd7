"""A tagger of tokens in flax.nnx, whose blocks are one stack that a loop runs through."""

from __future__ import annotations

import jax
from flax import nnx


class Block(nnx.Module):
    """A perceptron of one hidden layer beside its input."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens `(B, T, width)` to the same shape."""
        return x + self.down(nnx.gelu(self.up(self.norm(x))))


class Tagger(nnx.Module):
    """Embeddings, `depth` blocks, and scores of tags."""

    def __init__(self, depth: int = 4, width: int = 64, *, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(1000, width, rngs=rngs)
        self.blocks = stack(depth, width, rngs)
        self.head = nnx.Linear(width, 17, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens `(B, T)` to scores `(B, T, 17)`."""
        run = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        scores: jax.Array = self.head(run(self.embed(tokens), self.blocks))
        return scores


def stack(depth: int, width: int, rngs: nnx.Rngs) -> Block:
    """Blocks in one, with the weights of all of them behind each other."""
    blocks: Block = nnx.split_rngs(splits=depth)(nnx.vmap(lambda rngs: Block(width, rngs=rngs)))(rngs)
    return blocks
