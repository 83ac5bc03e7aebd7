"""Edits of real torch models, each told as what it is; from a summary as from its snapshot."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_modelbudget import compare
from pytest_modelbudget.snapshot.text import read, render
from pytest_modelbudget.summary import Summary

Count = Callable[..., Summary]


class Net(nn.Module):
    """A convolution, blocks, and a head, with what an edit may change as an argument."""

    def __init__(
        self,
        *,
        width: int = 8,
        depth: int = 4,
        classes: int = 10,
        trunk: str = "body",
        act: type = nn.ReLU,
        stride: int = 1,
        twice: bool = False,
        window: int = 16,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=stride, padding=1)
        self.place = trunk
        setattr(self, trunk, nn.Sequential(*(self.block(width, act) for _ in range(depth))))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, classes)
        self.twice = twice
        self.register_buffer("window", torch.zeros(window))

    @staticmethod
    def block(width: int, act: type) -> nn.Module:
        return nn.Sequential(
            OrderedDict(conv=nn.Conv2d(width, width, 3, padding=1, bias=False), norm=nn.BatchNorm2d(width), act=act())
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        body = getattr(self, self.place)
        x = body(self.stem(x))
        x = body(x) if self.twice else x
        return self.head(self.pool(x).flatten(1))


class Language(nn.Module):
    """An embedding and a head, tied or not."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.wte = nn.Embedding(50, 16)
        self.mix = nn.Linear(16, 16)
        self.head = nn.Linear(16, 50, bias=False)
        if tied:
            self.head.weight = self.wte.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(self.wte(ids)))


class Skip(nn.Module):
    """Two layers whose second is fed by the first, or by the input."""

    def __init__(self, *, skip: bool) -> None:
        super().__init__()
        self.one, self.two, self.skip = nn.Linear(8, 8), nn.Linear(8, 8), skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.one(x)
        return self.two(x) + first if self.skip else self.two(first) + first


def frozen(model: nn.Module, *parts: str) -> nn.Module:
    """The model with these modules frozen."""
    for part in parts:
        model.get_submodule(part).requires_grad_(False)
    return model


class Adapter(nn.Module):
    """A layer with a low-rank addition."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


def low_rank(model: Net) -> nn.Module:
    """The model with an adapter around its head."""
    model.head = Adapter(model.head)
    return model


def stack(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def wrapped(model: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(module=model))


IMAGE, VECTOR, IDS = "float32[B, 3, 16, 16]", "float32[B, 8]", "int64[B, 4]"


@pytest.mark.parametrize(
    ("before", "after", "inputs", "kinds"),
    [
        pytest.param(Net, Net, IMAGE, [], id="nothing"),
        pytest.param(Net, lambda: Net(classes=20), IMAGE, [("widened", "head"), ("follows", "(root)")], id="classes"),
        pytest.param(Net, lambda: Net(width=16), IMAGE, [("widened", "stem"), ("widened", "body.0-3"), ("widened", "head"), ("follows", "body, pool")], id="width"),
        pytest.param(Net, lambda: Net(depth=6), IMAGE, [("added", "body.4-5"), ("follows", "pool")], id="depth"),
        pytest.param(Net, lambda: Net(depth=3), IMAGE, [("removed", "body.3"), ("follows", "pool")], id="less depth"),
        pytest.param(Net, lambda: Net(trunk="trunk"), IMAGE, [("renamed", "trunk")], id="renamed module"),
        pytest.param(Net, lambda: wrapped(Net()), IMAGE, [("renamed", "module")], id="wrapped"),
        pytest.param(lambda: wrapped(Net()), lambda: wrapped(Net(classes=20)), IMAGE, [("widened", "module.head"), ("follows", "module")], id="classes in a wrapper"),
        pytest.param(Net, lambda: wrapped(Net(width=16)), IMAGE, [("widened", "module.stem"), ("widened", "module.body.0-3"), ("widened", "module.head"), ("renamed", "module"), ("follows", "module.body, module.pool")], id="wrapped and widened"),
        pytest.param(Net, lambda: Net(act=nn.GELU), IMAGE, [("type", "body.0-3.act")], id="type"),
        pytest.param(Net, lambda: Net(stride=2), IMAGE, [("output", "stem"), ("follows", "body")], id="output"),
        pytest.param(Net, lambda: Net(twice=True), IMAGE, [("calls", "body"), ("calls", "body.0-3"), ("calls", "body.0-3.conv"), ("calls", "body.0-3.norm"), ("calls", "body.0-3.act")], id="calls"),
        pytest.param(Net, lambda: frozen(Net(), "stem", "body"), IMAGE, [("frozen", "stem, body")], id="frozen"),
        pytest.param(lambda: frozen(Net(), "body.0", "body.1"), Net, IMAGE, [("unfrozen", "body.0-1")], id="unfrozen"),
        pytest.param(lambda: nn.Linear(8, 8, bias=False), lambda: nn.Linear(8, 8), VECTOR, [("weights", "(root)")], id="a model that is one layer"),
        pytest.param(lambda: stack(nn.Linear(8, 8), nn.Linear(8, 4)), lambda: stack(nn.Linear(8, 8), nn.Linear(8, 4, bias=False)), VECTOR, [("weights", "1")], id="bias lost"),
        pytest.param(lambda: stack(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), lambda: stack(nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 4)), VECTOR, [("added", "1"), ("renamed", "2-3"), ("follows", "2")], id="inserted into a Sequential"),
        pytest.param(lambda: stack(nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 4)), lambda: stack(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), VECTOR, [("removed", "1"), ("renamed", "1-2"), ("follows", "1")], id="removed from a Sequential"),
        pytest.param(lambda: stack(nn.Linear(8, 8), nn.Linear(8, 4)), lambda: stack(stack(nn.Linear(8, 8)), nn.Linear(8, 4)), VECTOR, [("added", "0"), ("renamed", "0.0")], id="into a container"),
        pytest.param(Net, lambda: low_rank(Net()), IMAGE, [("added", "head.up"), ("added", "head.down"), ("added", "head"), ("added", "head.add"), ("renamed", "head.base")], id="an adapter around a layer"),
        pytest.param(lambda: low_rank(Net()), Net, IMAGE, [("removed", "head.up"), ("removed", "head.down"), ("removed", "head"), ("removed", "head.add"), ("renamed", "head")], id="an adapter taken off"),
        pytest.param(lambda: Language(tied=True), lambda: Language(tied=False), IDS, [("untied", "head")], id="tie lost"),
        pytest.param(lambda: Language(tied=False), lambda: Language(tied=True), IDS, [("tied", "head")], id="tie gained"),
        pytest.param(lambda: Language(tied=True), lambda: Language(tied=True).bfloat16(), IDS, [("dtype", "wte, mix, head")], id="dtype"),
        pytest.param(lambda: Skip(skip=False), lambda: Skip(skip=True), VECTOR, [("connection", "two")], id="connection"),
    ],
)  # fmt: skip
def test_an_edit_is_told_as_what_it_is(
    count: Count, before: Callable[[], Any], after: Callable[[], Any], inputs: str, kinds: list[tuple[str, str]]
) -> None:
    """One edit, its kinds and places; the parts sum to the difference, and a snapshot says the same as a summary."""
    old, new = count(before, inputs, B=2), count(after, inputs, B=2)
    changes = compare(old, new)
    moved = [change for change in changes if not change.of_the_model]
    assert [(change.kind, change.path) for change in moved] == kinds
    assert sum(change.delta or 0 for change in moved) == new.params - old.params
    assert compare(read(render(old, declared="models.py")), new) == changes
