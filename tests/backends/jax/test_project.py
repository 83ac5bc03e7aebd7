"""A user's project with models of all three libraries, from the manifest to the reports."""

from __future__ import annotations

import json

import equinox  # noqa: F401 - a run inside a test drops what it imported, and JAX is not imported twice
import flax.linen
import flax.nnx  # noqa: F401
import pytest

NETS = """
import equinox as eqx
import flax.linen as nn
from flax import nnx


class Block(nnx.Module):
    def __init__(self, width, rngs):
        self.norm, self.linear = nnx.LayerNorm(width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x):
        return x + self.linear(self.norm(x))


class Tagger(nnx.Module):
    def __init__(self, depth, *, rngs):
        self.embed = nnx.Embed(100, 8, rngs=rngs)
        self.blocks = nnx.split_rngs(splits=depth)(nnx.vmap(lambda rngs: Block(8, rngs)))(rngs)

    def __call__(self, tokens):
        run = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.embed.attend(run(self.embed(tokens), self.blocks))


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(10)(nn.Dropout(0.1, deterministic=not train)(x.mean((1, 2))))


def perceptron(key):
    return eqx.nn.MLP(8, 3, 16, 1, key=key)
"""

MANIFEST = """
version: 1
defaults: {framework: jax}
models:
  tagger:
    build: nets:Tagger
    kwargs: {depth: 4}
    inputs: "int32[B, T]"
    dims: {T: 16}
    training: {batch: 8}
    budgets: {params: 1200, growth_in: {T: {flops: linear}}}
  classifier:
    build: nets:Classifier
    inputs: {x: "float32[B, 28, 28, 1]", train: false}
    budgets: {flops: 1 MFLOPs, layers: {"Conv*": {params: 40}}}
  perceptron:
    build: nets:perceptron
    inputs: "float32[8]"
    inference: {compile: xla}
    budgets: {inference_peak_bytes: 10 kB}
"""
EACH = 2 * 8 + 8 * 8 + 8


def test_models_of_jax_are_checked_like_any_other(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots, limits, growth, reports, and a stack that is two layers deeper than what is committed."""
    monkeypatch.delenv("CI", raising=False)
    pytester.makefile(".ini", pytest="[pytest]\n")
    pytester.makepyfile(nets=NETS)
    manifest = pytester.makefile(".yaml", modelbudget=MANIFEST)
    pytester.syspathinsert()
    options = ("-q", "-p", "no:cacheprovider", "--model-budget-report=json:r.json", "--model-budget-report=html:r.html")
    assert pytester.runpytest("--model-budget-update", *options).ret == 0
    report = json.loads((pytester.path / "r.json").read_text(encoding="utf-8"))
    classifier, perceptron, tagger = (model["summary"] for model in report["models"])
    assert tagger["params"] == 100 * 8 + 4 * EACH
    assert tagger["growth"][0]["degree"] == 1
    [step], [called] = tagger["plans"], perceptron["plans"]
    assert step["peak_bytes"] is None
    assert step["low_bytes"] > 3 * 4 * tagger["params"]
    assert called["peak_bytes"] == called["low_bytes"] > 4 * (perceptron["params"] + 8 + 3)
    assert classifier["params"] == 9 * 4 + 4 + 2 * 4 + 4 * 10 + 10
    assert perceptron["flops"]["value"] == 2 * (8 * 16 + 16 * 3)
    page = (pytester.path / "r.html").read_text(encoding="utf-8")
    assert all(text in page for text in ("blocks.linear", "What is known", "gradients", "XLA on this CPU"))
    manifest.write_text(MANIFEST.replace("depth: 4", "depth: 6"), encoding="utf-8")
    result = pytester.runpytest("--model-budget", *options)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "tagger: OVER BUDGET",
            "*params: 1,328 > 1,200*",
            f"*~ blocks  weights  4 layers in one stack -> 6 layers in one stack  (+{2 * EACH})*",
        ]
    )
