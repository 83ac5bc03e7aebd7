"""Planned bytes of JAX models against real steps on the CPU: `python tests/benchmarks/jax_step_truth.py [MODEL ...]`.

The truth is what live arrays hold plus the high-water mark of memory (VmHWM) of one jitted step with Adam and donated
arguments, or of one pass without gradients, above what was there: the lowest of four, after two to warm up, with every
allocation of 16 KB and more in a mapping of its own: each model runs in a process of its own that gets glibc's settings.
It contains what kernels take. Steps are written as users of each library write them, apart from the planner's. A line
says the truth, what XLA assigns (`compile: xla`), at most with what is in its libraries, and whether that is
said to be the peak; then the bounds of a plan that does not compile, how far XLA's sum is off, and whether the truth is
outside of what is promised.
Needs `pip install flax equinox optax`.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
if __name__ == "__main__":
    os.environ.update(JAX_PLATFORMS="cpu")

import equinox as eqx  # noqa: E402
import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
from flax import nnx  # noqa: E402

from pytest_modelbudget import plan  # noqa: E402

MALLOC = {"MMAP_THRESHOLD_": 16384, "MMAP_MAX_": 100_000_000, "TRIM_THRESHOLD_": 0, "TOP_PAD_": 0, "ARENA_MAX": 1}
MIB = 2**20


class NnxMLP(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        sizes = [784, 1024, 1024, 1024, 1024, 10]
        self.layers = nnx.List([nnx.Linear(*pair, rngs=rngs) for pair in pairwise(sizes)])

    def __call__(self, x: Any) -> Any:
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


class NnxCNN(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        sizes = [3, 64, 64, 128, 128]
        pairs = list(pairwise(sizes))
        self.convs = nnx.List([nnx.Conv(*pair, (3, 3), use_bias=False, rngs=rngs) for pair in pairs])
        self.norms = nnx.List([nnx.BatchNorm(out, rngs=rngs) for _, out in pairs])
        self.head = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return self.head(x.mean((1, 2)))


class NnxBlock(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.norm, self.norm2 = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.att = nnx.MultiHeadAttention(8, width, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = x + self.att(self.norm(x))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class NnxTransformer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, scanned: bool = False, remat: bool = False) -> None:
        self.embed, self.head = nnx.Embed(10_000, 256, rngs=rngs), nnx.Linear(256, 10_000, rngs=rngs)
        self.scanned, self.remat = scanned, remat
        if scanned:
            self.blocks = nnx.split_rngs(splits=4)(nnx.vmap(lambda rngs: NnxBlock(256, rngs)))(rngs)
        else:
            self.blocks = nnx.List([NnxBlock(256, rngs) for _ in range(2)])

    def __call__(self, tokens: Any) -> Any:
        x = self.embed(tokens)
        if not self.scanned:
            for block in self.blocks:
                x = block(x)
            return self.head(x)
        body = nnx.remat(lambda x, block: block(x)) if self.remat else lambda x, block: block(x)
        return self.head(nnx.scan(body, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks))


class LinenMLP(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(4):
            x = nn.relu(nn.Dense(1024)(x))
        return nn.Dense(10)(x)


class LinenResNet(nn.Module):
    """ResNet-18 with the first convolution and pooling of the paper."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        norm = partial(nn.BatchNorm, use_running_average=not train)
        x = nn.relu(norm()(nn.Conv(64, (7, 7), (2, 2), use_bias=False)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, width in enumerate((64, 128, 256, 512)):
            for block in range(2):
                strides = (2, 2) if stage and not block else (1, 1)
                y = nn.relu(norm()(nn.Conv(width, (3, 3), strides, use_bias=False)(x)))
                y = norm()(nn.Conv(width, (3, 3), use_bias=False)(y))
                if x.shape != y.shape:
                    x = norm()(nn.Conv(width, (1, 1), strides, use_bias=False)(x))
                x = nn.relu(x + y)
        return nn.Dense(1000)(x.mean((1, 2)))


class LinenLSTM(nn.Module):
    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        x = nn.Embed(20_000, 128)(tokens)
        for _ in range(2):
            x = nn.RNN(nn.OptimizedLSTMCell(128))(x)
        return nn.Dense(10)(x[:, -1])


class LinenTransformer(nn.Module):
    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        x = nn.Embed(10_000, 256)(tokens)
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(8)(nn.LayerNorm()(x))
            x = x + nn.Dense(256)(nn.gelu(nn.Dense(1024)(nn.LayerNorm()(x))))
        return nn.Dense(10_000)(x)


class EqxBatched(eqx.Module):
    """A model of one example, called with a batch through `jax.vmap`."""

    net: Any

    def __call__(self, x: Any) -> Any:
        return jax.vmap(self.net)(x)


class EqxLSTM(eqx.Module):
    embed: eqx.nn.Embedding
    cell: eqx.nn.LSTMCell
    head: eqx.nn.Linear

    def __init__(self, key: Any) -> None:
        keys = jax.random.split(key, 3)
        self.embed = eqx.nn.Embedding(20_000, 128, key=keys[0])
        self.cell = eqx.nn.LSTMCell(128, 128, key=keys[1])
        self.head = eqx.nn.Linear(128, 10, key=keys[2])

    def __call__(self, tokens: Any) -> Any:
        start = (jnp.zeros(128), jnp.zeros(128))
        (hidden, _), _ = jax.lax.scan(lambda c, x: (self.cell(x, c), None), start, jax.vmap(self.embed)(tokens))
        return self.head(hidden)


class EqxCNN(eqx.Module):
    convs: list[eqx.nn.Conv2d]
    head: eqx.nn.Linear

    def __init__(self, key: Any) -> None:
        keys, sizes = jax.random.split(key, 5), [3, 64, 64, 128, 128]
        pairs = zip(sizes, sizes[1:], keys, strict=False)
        self.convs = [eqx.nn.Conv2d(i, o, 3, padding=1, key=key) for i, o, key in pairs]
        self.head = eqx.nn.Linear(128, 10, key=keys[4])

    def __call__(self, x: Any) -> Any:
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        return self.head(x.mean((1, 2)))


def eqx_mlp(key: Any) -> Any:
    return EqxBatched(eqx.nn.MLP(784, 10, 1024, 4, key=key))


def eqx_lstm(key: Any) -> Any:
    return EqxBatched(EqxLSTM(key))


def eqx_cnn(key: Any) -> Any:
    return EqxBatched(EqxCNN(key))


FLAT, IMAGE, TOKENS, WORDS = "float32[B, 784]", "float32[B, {0}, {0}, 3]", "int32[B, 256]", "int32[B, 200]"
SMALL = IMAGE.format(64)
MODELS: dict[str, tuple[Callable[..., Any], Any, int]] = {
    "nnx-mlp": (NnxMLP, FLAT, 4096),
    "nnx-cnn": (NnxCNN, SMALL, 16),
    "nnx-transformer": (NnxTransformer, TOKENS, 8),
    "nnx-scan": (lambda rngs: NnxTransformer(rngs, scanned=True), TOKENS, 8),
    "nnx-scan-remat": (lambda rngs: NnxTransformer(rngs, scanned=True, remat=True), TOKENS, 8),
    "linen-mlp": (LinenMLP, FLAT, 4096),
    "linen-resnet18": (LinenResNet, IMAGE.format(128), 8),
    "linen-lstm": (LinenLSTM, WORDS, 32),
    "linen-transformer": (LinenTransformer, TOKENS, 8),
    "eqx-mlp": (eqx_mlp, FLAT, 4096),
    "eqx-cnn": (eqx_cnn, "float32[B, 3, 64, 64]", 16),
    "eqx-lstm": (eqx_lstm, WORDS, 32),
}
"""Builder, inputs, batch."""


def loss_of(scores: Any, targets: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(scores, targets).mean()


def _arrays(inputs: str, batch: int) -> Any:
    dtype, _, sizes = inputs.rstrip("]").partition("[")
    return jnp.zeros([batch if size == "B" else int(size) for size in sizes.split(", ")], dtype)


def parts_of(name: str, x: Any) -> tuple[Any, Any, Callable[..., Any]]:
    """What is trained, what else there is, and (trained, rest, x, training) -> (scores, rest)."""
    build = MODELS[name][0]
    if name.startswith("nnx"):
        graph, params, rest = nnx.split(build(rngs=nnx.Rngs(0)), nnx.Param, ...)

        def call(params: Any, rest: Any, x: Any, training: bool) -> Any:
            model = nnx.merge(graph, params, jax.tree.map(lambda leaf: leaf, rest))  # variables of this trace
            (model.train if training else model.eval)()
            return model(x), nnx.state(model, nnx.Not(nnx.Param))

        return params, rest, call
    if name.startswith("linen"):
        module = build()
        flags = (lambda training: {"train": training}) if name == "linen-resnet18" else lambda training: {}
        variables = jax.jit(partial(module.init, **flags(False)))(jax.random.key(0), x)
        params, rest = variables["params"], {name: tree for name, tree in variables.items() if name != "params"}

        def apply(params: Any, rest: Any, x: Any, training: bool) -> Any:
            mutable = list(rest) if training else []
            out, rest_after = module.apply({"params": params, **rest}, x, mutable=mutable, **flags(training))
            return out, rest_after if training else rest

        return params, rest, apply
    model = build(jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return params, (), lambda params, rest, x, training: (eqx.combine(params, static)(x), rest)


def measured(name: str, *, training: bool) -> int:
    _, inputs, batch = MODELS[name]
    x = _arrays(inputs, batch)
    params, rest, call = parts_of(name, x)
    if not training:
        forward = jax.jit(lambda params, rest, x: call(params, rest, x, False)[0])
        return _held() + _high_water(lambda: forward(params, rest, x).block_until_ready())
    optimizer = optax.adam(1e-3)
    targets = jnp.zeros(jax.eval_shape(partial(call, training=True), params, rest, x)[0].shape[:-1], jnp.int32)

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params: Any, rest: Any, state: Any, x: Any, targets: Any) -> Any:
        def loss(params: Any) -> Any:
            scores, after = call(params, rest, x, True)
            return loss_of(scores, targets), after

        (value, after), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), after, state, value

    current = [params, rest, jax.jit(optimizer.init)(params)]

    def run() -> None:
        current[:] = jax.block_until_ready(step(*current, x, targets))[:3]

    mark = _high_water(run)
    return _held() + mark


def _held() -> int:
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


def _high_water(run: Callable[[], Any]) -> int:
    """The lowest of four high-water marks above what was there, after two runs that compile and warm up."""
    marks = []
    for _ in range(6):
        gc.collect()
        before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        Path("/proc/self/clear_refs").write_text("5")
        result = run()
        status = Path("/proc/self/status").read_text()
        del result
        marks.append(
            next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")) - before
        )
    return min(marks[2:])


def declared(name: str, *, training: bool) -> Any:
    """The inputs of a model, with what tells it that it trains."""
    inputs = MODELS[name][1]
    return {"x": inputs, "train": training} if name == "linen-resnet18" else inputs


def planned(name: str, *, training: bool) -> dict[str, Any]:
    build, _, batch = MODELS[name]
    inputs = declared(name, training=training)
    run = {"batch": batch, "compile": "xla"}
    if training:
        result = plan(build, inputs, training={**run, "optimizer": "adam", "loss": "cross_entropy"})
        bounds = plan(build, inputs, training={"batch": batch, "optimizer": "adam", "loss": "cross_entropy"})
    else:
        result, bounds = plan(build, inputs, inference=run), plan(build, inputs, inference={"batch": batch})
    assert result.low_bytes is not None, result.notes
    known = result.peak_bytes is not None
    return {
        "xla": result.low_bytes,
        "most": result.high_bytes,
        "known": known,
        "low": bounds.low_bytes,
        "high": bounds.high_bytes,
    }


def _child(name: str, case: str, what: str) -> Any:
    environment = {
        **os.environ,
        **({f"MALLOC_{key}": str(value) for key, value in MALLOC.items()} if what == "real" else {}),
    }
    command = [sys.executable, __file__, name, case, what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main(names: list[str]) -> None:
    print("model,case,truth,xla,xla_high,known,low,high")
    for name in names or MODELS:
        for case in ("training", "inference"):
            truth, ours = _child(name, case, "real"), _child(name, case, "plan")
            row = {"truth": truth, **ours}
            text = ",".join(str(size) if isinstance(size, bool) else f"{size / MIB:.1f}" for size in row.values())
            off, inside = 100 * (ours["xla"] / truth - 1), ours["low"] <= truth <= min(ours["high"], ours["most"])
            print(f"{name},{case},{text}", f"# {off:+.1f} %{'' if inside else ' OUTSIDE'}", flush=True)


if __name__ == "__main__":
    if sys.argv[3:] == ["real"]:
        print(json.dumps(measured(sys.argv[1], training=sys.argv[2] == "training")))
    elif sys.argv[3:] == ["plan"]:
        print(json.dumps(planned(sys.argv[1], training=sys.argv[2] == "training")))
    else:
        main(sys.argv[1:])
