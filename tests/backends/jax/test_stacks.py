"""Stacks of layers that one loop runs, each against counts by hand."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import flax.linen as linen
import jax
import pytest
from flax import nnx

from pytest_modelbudget import compare, summarize
from pytest_modelbudget.summary import Layer, Summary

PRODUCT = 2 * 4 * 4
"""FLOPs of one row of 4 numbers through a layer of 4 units."""


def by_path(summary: Summary) -> dict[str, Layer]:
    return {layer.path: layer for layer in summary.layers}


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm, self.linear = nnx.LayerNorm(4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return x + self.linear(self.norm(x))


class NnxStack(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.blocks = nnx.split_rngs(splits=3)(nnx.vmap(Block))(rngs)

    def __call__(self, x: Any) -> Any:
        body = nnx.scan(nnx.remat(lambda x, block: block(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return body(x, self.blocks)


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x: Any, _: None) -> Any:
        return x + linen.Dense(4, name="linear")(linen.LayerNorm(name="norm")(x)), None


class LinenStack(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        axes, rngs = {"params": 0}, {"params": True}
        block = linen.scan(linen.remat(LinenBlock), variable_axes=axes, split_rngs=rngs, length=3)
        return block(name="blocks")(x, None)[0]


class EquinoxBlock(eqx.Module):
    norm: Any
    linear: Any

    def __init__(self, key: Any) -> None:
        self.norm, self.linear = eqx.nn.LayerNorm(4), eqx.nn.Linear(4, 4, key=key)

    def __call__(self, x: Any) -> Any:
        return x + self.linear(self.norm(x))


class EquinoxStack(eqx.Module):
    blocks: Any

    def __init__(self, key: Any) -> None:
        self.blocks = eqx.filter_vmap(EquinoxBlock)(jax.random.split(key, 3))

    def __call__(self, x: Any) -> Any:
        arrays, rest = eqx.partition(self.blocks, eqx.is_array)
        body = jax.checkpoint(lambda x, arrays: (eqx.combine(arrays, rest)(x), None))
        return jax.lax.scan(body, x, arrays)[0]


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        pytest.param(NnxStack, "float32[B, 4]", id="nnx"),
        pytest.param(LinenStack, "float32[B, 4]", id="linen"),
        pytest.param(EquinoxStack, "float32[4]", id="equinox"),
    ],
)
def test_a_stack_of_layers_in_one_scan(build: Any, inputs: str) -> None:
    """Its rows have the weights of all layers, the calls and the FLOPs of all steps, and the path that they have."""
    summary = summarize(build, inputs)
    rows = by_path(summary)
    assert list(rows) == ["blocks", "blocks.norm", "blocks.linear", "blocks.add"]
    assert summary.params == 3 * (2 * 4 + 4 * 4 + 4)
    assert {row.calls for row in rows.values()} == {3}
    assert summary.flops.value == rows["blocks.linear"].flops == 3 * PRODUCT
    assert rows["blocks.add"].connected_to == (("0", "blocks.linear"),)
    assert summary.activation_bytes == 3 * 4 * 4  # what each step begins with: the rest is made anew


class Deep(linen.Module):
    layers: int

    @linen.compact
    def __call__(self, x: Any) -> Any:
        axes, rngs = {"params": 0}, {"params": True}
        block = linen.scan(LinenBlock, variable_axes=axes, split_rngs=rngs, length=self.layers)
        return linen.Dense(4)(block(name="blocks")(x, None)[0])


def test_a_deeper_stack_is_one_change() -> None:
    """Two more layers of a scan are told where the stack is, with all their params, and not row by row."""
    shallow, deep = (summarize(lambda layers=layers: Deep(layers), "float32[B, 4]", name="deep") for layers in (4, 6))
    changes = [change for change in compare(shallow, deep) if not change.of_the_model]
    each = 2 * 4 + 4 * 4 + 4
    assert [str(change) for change in changes] == [
        f"~ blocks  weights  4 layers in one stack -> 6 layers in one stack  (+{2 * each}): 4 x {each} -> 6 x {each}"
    ]
