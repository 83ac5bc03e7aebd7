"""Well-known architectures, written for flax.nnx, flax.linen and equinox as their papers have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

listed = getattr(nnx, "List", list)
"""What holds modules in a list: before flax 0.12, a plain one."""


def batch_norm(size: int) -> Any:
    """Equinox' batch norm in the mode of the paper, where there is more than one."""
    mode = {"mode": "batch"} if "mode" in signature(eqx.nn.BatchNorm.__init__).parameters else {}
    return eqx.nn.BatchNorm(size, "batch", **mode)


STAGES: dict[int, tuple[Sequence[int], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
"""Blocks of each stage of a ResNet, and whether they are bottlenecks."""


class LinenResNetBlock(nn.Module):
    filters: int
    stride: int
    bottleneck: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:
        conv = partial(nn.Conv, use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=True)
        width = self.filters * (4 if self.bottleneck else 1)
        strides = (self.stride, self.stride)
        if self.bottleneck:
            y = nn.relu(norm()(conv(self.filters, (1, 1))(x)))
            y = nn.relu(norm()(conv(self.filters, (3, 3), strides, padding=1)(y)))
            y = norm()(conv(width, (1, 1))(y))
        else:
            y = nn.relu(norm()(conv(self.filters, (3, 3), strides, padding=1)(x)))
            y = norm()(conv(width, (3, 3), padding=1)(y))
        if x.shape != y.shape:
            x = norm(name="norm_proj")(conv(width, (1, 1), strides, name="conv_proj")(x))
        return nn.relu(x + y)


class LinenResNet(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        stages, bottleneck = STAGES[self.depth]
        x = nn.Conv(64, (7, 7), (2, 2), padding=3, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(stages):
            for block in range(blocks):
                x = LinenResNetBlock(64 * 2**stage, 2 if stage and not block else 1, bottleneck)(x)
        return nn.Dense(1000)(x.mean((1, 2)))


class NnxResNetBlock(nnx.Module):
    def __init__(self, ins: int, filters: int, stride: int, bottleneck: bool, rngs: nnx.Rngs) -> None:
        width = filters * (4 if bottleneck else 1)
        windows = [(1, ins, filters, 1), (3, filters, filters, stride), (1, filters, width, 1)]
        windows = windows if bottleneck else [(3, ins, filters, stride), (3, filters, width, 1)]
        self.convs = listed(
            nnx.Conv(i, o, (k, k), (s, s), padding=k // 2, use_bias=False, rngs=rngs) for k, i, o, s in windows
        )
        self.norms = listed(nnx.BatchNorm(o, rngs=rngs) for _, _, o, _ in windows)
        self.same = ins == width and stride == 1
        if not self.same:
            self.project = nnx.Conv(ins, width, (1, 1), (stride, stride), use_bias=False, rngs=rngs)
            self.project_norm = nnx.BatchNorm(width, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        y = x
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), 1):
            y = norm(conv(y))
            y = nnx.relu(y) if number < len(self.convs) else y
        return nnx.relu(y + (x if self.same else self.project_norm(self.project(x))))


class NnxResNet(nnx.Module):
    def __init__(self, depth: int, *, rngs: nnx.Rngs) -> None:
        stages, bottleneck = STAGES[depth]
        self.stem = nnx.Conv(3, 64, (7, 7), (2, 2), padding=3, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        blocks, ins = [], 64
        for stage, count in enumerate(stages):
            for block in range(count):
                filters = 64 * 2**stage
                blocks.append(NnxResNetBlock(ins, filters, 2 if stage and not block else 1, bottleneck, rngs))
                ins = filters * (4 if bottleneck else 1)
        self.blocks = listed(blocks)
        self.head = nnx.Linear(ins, 1000, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.max_pool(nnx.relu(self.norm(self.stem(x))), (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class EquinoxResNetBlock(eqx.Module):
    convs: list[Any]
    norms: list[Any]
    project: Any
    project_norm: Any

    def __init__(self, ins: int, filters: int, stride: int, bottleneck: bool, key: Any) -> None:
        width = filters * (4 if bottleneck else 1)
        windows = [(1, ins, filters, 1), (3, filters, filters, stride), (1, filters, width, 1)]
        windows = windows if bottleneck else [(3, ins, filters, stride), (3, filters, width, 1)]
        self.convs = [eqx.nn.Conv2d(i, o, k, s, padding=k // 2, use_bias=False, key=key) for k, i, o, s in windows]
        self.norms = [batch_norm(o) for _, _, o, _ in windows]
        self.project = self.project_norm = None
        if ins != width or stride != 1:
            self.project = eqx.nn.Conv2d(ins, width, 1, stride, use_bias=False, key=key)
            self.project_norm = batch_norm(width)

    def __call__(self, x: Any, state: Any) -> Any:
        y = x
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), 1):
            y, state = norm(conv(y), state)
            y = jax.nn.relu(y) if number < len(self.convs) else y
        if self.project is not None:
            x, state = self.project_norm(self.project(x), state)
        return jax.nn.relu(x + y), state


class EquinoxResNet(eqx.Module):
    stem: Any
    norm: Any
    pool: Any
    blocks: list[Any]
    head: Any

    def __init__(self, depth: int, key: Any) -> None:
        stages, bottleneck = STAGES[depth]
        self.stem = eqx.nn.Conv2d(3, 64, 7, 2, padding=3, use_bias=False, key=key)
        self.norm = batch_norm(64)
        self.pool = eqx.nn.MaxPool2d(3, 2, padding=1)
        self.blocks, ins = [], 64
        for stage, count in enumerate(stages):
            for block in range(count):
                filters = 64 * 2**stage
                self.blocks.append(EquinoxResNetBlock(ins, filters, 2 if stage and not block else 1, bottleneck, key))
                ins = filters * (4 if bottleneck else 1)
        self.head = eqx.nn.Linear(ins, 1000, key=key)

    def __call__(self, x: Any, state: Any) -> Any:
        x, state = self.norm(self.stem(x), state)
        x = self.pool(jax.nn.relu(x))
        for block in self.blocks:
            x, state = block(x, state)
        return self.head(x.mean((1, 2))), state


class LinenEncoderBlock(nn.Module):
    width: int
    heads: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
        y = nn.Dense(4 * self.width)(nn.LayerNorm()(x))
        return x + nn.Dense(self.width)(nn.gelu(y))


class LinenViT(nn.Module):
    """ViT-B/16 for images of 224 pixels, with torchvision's head."""

    width: int = 768
    depth: int = 12
    heads: int = 12

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Conv(self.width, (16, 16), (16, 16), name="patches")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        first = self.param("cls", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, self.width)), x], 1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, x.shape[1], self.width))
        for _ in range(self.depth):
            x = LinenEncoderBlock(self.width, self.heads)(x)
        return nn.Dense(1000)(nn.LayerNorm()(x)[:, 0])


@dataclass(frozen=True)
class Decoder:
    """A decoder of the Llama family: grouped queries, gated feed-forward, experts where there are more than one."""

    width: int
    layers: int
    heads: int
    groups: int
    hidden: int
    words: int
    tied: bool = False
    biases: bool = False
    experts: int = 1

    @property
    def size(self) -> int:
        return self.width // self.heads


class LinenRmsNorm(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale


def attend(q: Any, k: Any, v: Any) -> Any:
    """Causal attention of `(B, T, heads, size)`, keys and values repeated for each group of heads."""
    k, v = (jnp.repeat(part, q.shape[2] // k.shape[2], axis=2) for part in (k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(mask, scores, -1e9)), v)


class LinenDecoderBlock(nn.Module):
    config: Decoder

    @nn.compact
    def __call__(self, x: Any, _: None = None) -> Any:
        c = self.config
        projected = partial(nn.DenseGeneral, use_bias=c.biases)
        h = LinenRmsNorm(name="attention_norm")(x)
        q = projected((c.heads, c.size), name="q")(h)
        k, v = (projected((c.groups, c.size), name=name)(h) for name in "kv")
        x = x + nn.DenseGeneral(c.width, axis=(-2, -1), use_bias=False, name="o")(attend(q, k, v))
        h = LinenRmsNorm(name="mlp_norm")(x)
        if c.experts == 1:
            gate, up = (nn.Dense(c.hidden, use_bias=False, name=name)(h) for name in ("gate", "up"))
            return x + nn.Dense(c.width, use_bias=False, name="down")(nn.silu(gate) * up), None
        router = nn.Dense(c.experts, use_bias=False, name="router")(h)
        init = nn.initializers.normal(0.02)
        gate, up = (self.param(name, init, (c.experts, c.width, c.hidden)) for name in ("gate", "up"))
        down = self.param("down", init, (c.experts, c.hidden, c.width))
        y = nn.silu(jnp.einsum("btd,edh->bteh", h, gate)) * jnp.einsum("btd,edh->bteh", h, up)
        return x + jnp.einsum("bteh,ehd,bte->btd", y, down, jax.nn.softmax(router)), None


class LinenDecoder(nn.Module):
    """All layers in one scan, each made anew in the backward pass, as large models are trained."""

    config: Decoder

    @nn.compact
    def __call__(self, ids: Any) -> Any:
        c = self.config
        table = nn.Embed(c.words, c.width, name="embed")
        block = nn.scan(
            nn.remat(LinenDecoderBlock), variable_axes={"params": 0}, split_rngs={"params": True}, length=c.layers
        )
        x, _ = block(c, name="blocks")(table(ids), None)
        x = LinenRmsNorm(name="norm")(x)
        return table.attend(x) if c.tied else nn.Dense(c.words, use_bias=False, name="head")(x)


DECODERS = {
    "Llama-2-7B": (Decoder(4096, 32, 32, 32, 11008, 32000), 6_738_415_616),
    "Llama-3-8B": (Decoder(4096, 32, 32, 8, 14336, 128256), 8_030_261_248),
    "Mistral-7B": (Decoder(4096, 32, 32, 8, 14336, 32000), 7_241_732_096),
    "Qwen2.5-0.5B": (Decoder(896, 24, 14, 2, 4864, 151936, tied=True, biases=True), 494_032_768),
    "Mixtral-8x7B": (Decoder(4096, 32, 32, 8, 14336, 32000, experts=8), 46_702_792_704),
}
"""The settings of published checkpoints, and the params that their publishers count."""


class NnxDecoderBlock(nnx.Module):
    def __init__(self, c: Decoder, *, rngs: nnx.Rngs) -> None:
        linear = partial(nnx.Linear, use_bias=False, param_dtype=jnp.bfloat16, rngs=rngs)
        self.config = c
        self.attention_norm = nnx.RMSNorm(c.width, param_dtype=jnp.bfloat16, rngs=rngs)
        self.q = linear(c.width, c.heads * c.size)
        self.k, self.v = linear(c.width, c.groups * c.size), linear(c.width, c.groups * c.size)
        self.o = linear(c.heads * c.size, c.width)
        self.mlp_norm = nnx.RMSNorm(c.width, param_dtype=jnp.bfloat16, rngs=rngs)
        self.gate, self.up = linear(c.width, c.hidden), linear(c.width, c.hidden)
        self.down = linear(c.hidden, c.width)

    def __call__(self, x: Any) -> Any:
        c, (batch, steps, _) = self.config, x.shape
        h = self.attention_norm(x)
        q = self.q(h).reshape(batch, steps, c.heads, c.size)
        k, v = (part(h).reshape(batch, steps, c.groups, c.size) for part in (self.k, self.v))
        x = x + self.o(attend(q, k, v).reshape(batch, steps, -1))
        h = self.mlp_norm(x)
        return x + self.down(nnx.silu(self.gate(h)) * self.up(h))


class NnxDecoder(nnx.Module):
    """A layer after the other, in a list."""

    def __init__(self, c: Decoder, *, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(c.words, c.width, param_dtype=jnp.bfloat16, rngs=rngs)
        self.blocks = listed(NnxDecoderBlock(c, rngs=rngs) for _ in range(c.layers))
        self.norm = nnx.RMSNorm(c.width, param_dtype=jnp.bfloat16, rngs=rngs)
        self.head = nnx.Linear(c.width, c.words, use_bias=False, param_dtype=jnp.bfloat16, rngs=rngs)

    def __call__(self, ids: Any) -> Any:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def equinox_resnet(depth: int) -> Callable[[], Any]:
    return lambda key: eqx.nn.make_with_state(EquinoxResNet)(depth, key)  # type: ignore[misc]
