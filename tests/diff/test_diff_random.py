"""Random edits of random models: the changes account for every param, and the same pair gives the same changes."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from pytest_modelbudget import compare
from pytest_modelbudget.diff.facts import compared_fields
from pytest_modelbudget.summary import Layer, Summary, Weight
from pytest_modelbudget.summary.metrics import STORED
from tests.builders import spec

_TYPES = ("Linear", "Conv2d", "LayerNorm", "ReLU", "Embedding", "add")
_NAMES = ("fc", "conv", "norm", "0", "1", "2", "block", "dense_1", "add", "head")


def weights(rng: random.Random, owners: list[str]) -> tuple[Weight, ...]:
    """Up to three weights of any role and dtype, some tied to an earlier row."""
    return tuple(
        Weight(
            name,
            tuple(rng.choice((1, 2, 3, 8)) for _ in range(rng.randrange(3))),
            rng.choice(("float32", "float32", "bfloat16")),
            role != "buffer" and rng.random() < 0.8,
            role,
            f"{rng.choice(owners)}.weight" if owners and rng.random() < 0.1 else None,
        )
        for name in ("weight", "bias", "running_mean")[: rng.randrange(4)]
        for role in [rng.choice(("param", "param", "buffer"))]
    )


def layer(rng: random.Random, path: str, owners: list[str], *, container: bool = False) -> Layer:
    """A row with everything it may have."""
    kind = "Block" if container else rng.choice(_TYPES)
    source = ((rng.choice(owners),),) if owners else (("x",),)
    outputs = ((spec("B", rng.choice((4, 8, 16))),),)
    return Layer(path, kind, outputs, source, weights(rng, owners), rng.choice((0, 1, 1, 2, None)), container=container)


def tree(rng: random.Random, rows: int) -> Summary:
    """Rows at any depth, each below a row that was there or at the top."""
    layers: list[Layer] = []
    paths: list[str] = []
    while len(layers) < rows:
        above = rng.choice(["", "", *[path for path in paths if path.count(".") < 3]])
        path = f"{above}.{rng.choice(_NAMES)}".lstrip(".")
        if path not in paths:
            layers.append(layer(rng, path, paths, container=rng.random() < 0.3))
            paths.append(path)
    return Summary("net", "torch", tuple(layers))


def insert(rng: random.Random, layers: list[Layer]) -> None:
    """A row that was not there."""
    path = f"new{rng.randrange(10**9)}"
    layers.insert(rng.randrange(len(layers) + 1), layer(rng, path, []))


def remove(rng: random.Random, layers: list[Layer]) -> None:
    """A row less."""
    del layers[rng.randrange(len(layers))]


def rename(rng: random.Random, layers: list[Layer]) -> None:
    """A module under another name, with all its rows."""
    old = rng.choice(layers).path
    new = f"{old}{rng.randrange(10**6)}x"
    for index, one in enumerate(layers):
        if one.path == old or one.path.startswith(f"{old}."):
            layers[index] = replace(one, path=new + one.path[len(old) :])


def wrap(rng: random.Random, layers: list[Layer]) -> None:
    """All rows below another module."""
    layers[:] = [replace(one, path=f"module.{one.path}") for one in layers]


def reweigh(rng: random.Random, layers: list[Layer]) -> None:
    """Other weights in a row."""
    index = rng.randrange(len(layers))
    layers[index] = replace(layers[index], weights=weights(rng, [layers[0].path]))


def retype(rng: random.Random, layers: list[Layer]) -> None:
    """Another type, and other weights with it."""
    index = rng.randrange(len(layers))
    layers[index] = replace(layers[index], type=rng.choice(_TYPES), weights=weights(rng, []))


def swap(rng: random.Random, layers: list[Layer]) -> None:
    """Two rows in each other's place."""
    one, two = rng.randrange(len(layers)), rng.randrange(len(layers))
    layers[one], layers[two] = layers[two], layers[one]


def recall(rng: random.Random, layers: list[Layer]) -> None:
    """Called, fed, shaped and nested in another way."""
    index = rng.randrange(len(layers))
    sources = ((rng.choice(layers).path,),)
    layers[index] = replace(
        layers[index],
        calls=rng.choice((0, 1, 5)),
        connected_to=sources,
        outputs=((spec("B", 3),),),
        container=not layers[index].container,
    )


EDITS: tuple[Callable[[random.Random, list[Layer]], None], ...] = (
    insert, remove, rename, wrap, reweigh, reweigh, retype, swap, recall,
)  # fmt: skip


@pytest.mark.parametrize("seed", range(150))
def test_changes_account_for_every_param(seed: int) -> None:
    """After any edits the changes of rows sum to the difference of the params, and none is missed or made up."""
    rng = random.Random(seed)
    before = tree(rng, rng.choice((1, 2, 5, 20, 60)))
    layers = list(before.layers)
    for _ in range(rng.randrange(1, 8)):
        if layers:
            rng.choice(EDITS)(rng, layers)
    after = replace(before, layers=tuple(layers))
    for one, other in ((before, after), (after, before)):
        changes = compare(one, other)
        moved = [change for change in changes if not change.of_the_model]
        assert sum(change.delta or 0 for change in moved) == other.params - one.params
        same = [(row.path, *compared_fields(row)) for row in one.layers] == [
            (row.path, *compared_fields(row)) for row in other.layers
        ]
        assert bool(moved) != same
        totals = {change.path: change.delta for change in changes if change.kind == "total"}
        expected = {name: getattr(other, name) - getattr(one, name) for name in STORED}
        assert totals == {name: delta for name, delta in expected.items() if delta}
        for change in changes:
            assert str(change).isprintable()
            assert not change.parts or sum(moved for _, moved in change.parts) == change.delta
            if change.kind == "total" and change.why:  # a split by cause, and nothing is left out
                parts = re.findall(r" ([+-][0-9,]*[0-9])(?=, |$)", change.why)
                assert sum(int(part.replace(",", "")) for part in parts) == change.delta
        assert compare(one, other) == changes


@pytest.mark.parametrize("seed", range(40))
def test_a_renamed_tree_is_only_renamed(seed: int) -> None:
    """Whatever the rows are, one new name for one module is told as names alone, in both directions."""
    rng = random.Random(seed)
    before = tree(rng, 40)
    before = replace(
        before,
        layers=tuple(
            replace(one, connected_to=(), weights=tuple(replace(weight, tied_to=None) for weight in one.weights))
            for one in before.layers
        ),
    )
    layers = list(before.layers)
    wrap(rng, layers)
    after = replace(before, layers=tuple(layers))
    for one, other in ((before, after), (after, before)):
        assert {change.kind for change in compare(one, other)} == {"renamed"}
