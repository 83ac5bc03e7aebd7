"""Rows for joins: sums, concatenations and products that a module's own code makes of the work of several layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_modelbudget.backends.torch.trace.joins import MAX_JOINS
from pytest_modelbudget.snapshot import render
from pytest_modelbudget.summary import Layer, Summary

Count = Callable[..., Summary]


def row(summary: Summary, path: str) -> Layer:
    return next(layer for layer in summary.layers if layer.path == path)


def edges(summary: Summary) -> dict[str, tuple[tuple[str, ...], ...]]:
    """What each leaf is fed by, in the order of the rows."""
    return {layer.path: layer.connected_to for layer in summary.leaves}


class Pair(nn.Module):
    """Two layers on one input, and code that makes one tensor of their outputs."""

    def __init__(self, code: Callable[[torch.Tensor, torch.Tensor], Any], width: int = 4) -> None:
        super().__init__()
        self.a, self.b, self.code = nn.Linear(4, width), nn.Linear(4, width), code

    def forward(self, x: torch.Tensor) -> Any:
        return self.code(self.a(x), self.b(x))


def test_the_classic_of_two_inputs_reads_like_keras_own_table(count: Count) -> None:
    """User (100) and item (20) to 50 each, concatenated, to 1: 5,050 + 1,050 + 0 + 101 params."""

    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.dense_1, self.dense_2 = nn.Linear(100, 50), nn.Linear(20, 50), nn.Linear(100, 1)

        def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            return self.dense_2(torch.cat([self.dense(user), self.dense_1(item)], 1))

    summary = count(Towers, {"user": "float32[B, 100]", "item": "float32[B, 20]"}, B=2)
    assert [(one.path, one.type, one.output_text, one.params, one.connected_to) for one in summary.layers] == [
        ("dense", "Linear", "[B, 50]", 5_050, (("user",),)),
        ("dense_1", "Linear", "[B, 50]", 1_050, (("item",),)),
        ("cat", "cat", "[B, 100]", 0, (("dense", "dense_1"),)),
        ("dense_2", "Linear", "[B, 1]", 101, (("cat",),)),
    ]
    assert [str(spec) for spec in row(summary, "cat").inputs[0]] == ["float32[B, 50]", "float32[B, 50]"]
    assert len(summary.leaves) == 4


def _assigned(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    out = torch.empty(2, *a.shape)
    out[0] = a
    out[1] = b
    return out


def _in_place(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a += b
    return a


@pytest.mark.parametrize(
    ("code", "name", "shape"),
    [
        pytest.param(lambda a, b: a + b, "add", "[B, 4]", id="sum"),
        pytest.param(_in_place, "add", "[B, 4]", id="sum in place"),
        pytest.param(lambda a, b: a - b, "sub", "[B, 4]", id="difference"),
        pytest.param(lambda a, b: F.silu(a) * b, "mul", "[B, 4]", id="gate"),
        pytest.param(lambda a, b: torch.maximum(a, b), "maximum", "[B, 4]", id="maximum"),
        pytest.param(lambda a, b: torch.cat([a, b], 1), "cat", "[B, 8]", id="concatenation"),
        pytest.param(lambda a, b: torch.hstack([a, b]), "cat", "[B, 8]", id="concatenation by another name"),
        pytest.param(lambda a, b: torch.stack([a, b]), "stack", "[2, B, 4]", id="stack"),
        pytest.param(lambda a, b: torch.where(a > 0, a, b), "where", "[B, 4]", id="choice"),
        pytest.param(lambda a, b: a @ b.T, "matmul", "[B, B]", id="product"),
        pytest.param(lambda a, b: a.view(-1, 2, 2) @ b.view(-1, 2, 2), "matmul", "[B, 2, 2]", id="batched product"),
        pytest.param(
            lambda a, b: a.view(-1, 2, 1, 2) @ b.view(-1, 2, 2, 1), "matmul", "[B, 2, 1, 1]", id="product of four axes"
        ),
        pytest.param(lambda a, b: torch.einsum("bi,bj->bij", a, b), "einsum", "[B, 4, 4]", id="einsum"),
        pytest.param(_assigned, "copy", "[B, 4]", id="two writes into one buffer"),
    ],
)
def test_what_joins_two_layers_is_one_row(code: Any, name: str, shape: str, count: Count) -> None:
    """It comes last, names both layers in their order, has no weights, and is the source of what follows."""
    summary = count(lambda: nn.Sequential(Pair(code), nn.ReLU()), "float32[B, 4]", B=3)
    assert [layer.path for layer in summary.layers] == ["0", "0.a", "0.b", f"0.{name}", "1"]
    join = row(summary, f"0.{name}")
    assert join.type == name
    assert join.connected_to == (("0.a", "0.b"),)
    assert join.output_text == shape
    assert (join.params, join.calls, join.container) == (0, 1, False)
    assert row(summary, "1").connected_to == ((f"0.{name}",),)


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(lambda a, b: a * 2 + 1, id="plain numbers"),
        pytest.param(lambda a, b: torch.relu(a) + a, id="one source, twice"),
        pytest.param(lambda a, b: a + nn.Parameter(torch.zeros(4)), id="a weight"),
        pytest.param(lambda a, b: a + torch.ones(4), id="a constant"),
        pytest.param(lambda a, b: a + torch.zeros_like(b), id="only the shape of the other"),
        pytest.param(lambda a, b: a[:, torch.tensor([0, 1])], id="ids"),
        pytest.param(lambda a, b: a.masked_fill(b > 0, 0.0), id="a mask"),
        pytest.param(lambda a, b: (a, b), id="two outputs"),
        pytest.param(
            lambda a, b: F.scaled_dot_product_attention(a[None], a[None], a[None]), id="attention of one source"
        ),
    ],
)
def test_what_does_not_join_has_no_row(code: Any, count: Count) -> None:
    """Only the two layers are there."""
    summary = count(lambda: nn.Sequential(Pair(code)), "float32[B, 4]", B=3)
    assert [layer.path for layer in summary.leaves] == ["0.a", "0.b"]


def test_a_leaf_keeps_its_joins_to_itself(count: Count) -> None:
    """What runs inside a module without children, or inside one of torch's attention, is that module's own."""

    class Leaf(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.cat([x * y, x + y], 1)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.leaf, self.attend = Leaf(), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            joined = self.leaf(x, y)[None]
            return self.attend(joined, joined, joined)[0]

    summary = count(Model, ["float32[B, 4]", "float32[B, 4]"], B=3)
    assert [layer.type for layer in summary.layers] == ["Leaf", "MultiheadAttention", "NonDynamicallyQuantizableLinear"]
    assert row(summary, "leaf").connected_to == (("0", "1"),)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (one(x).unflatten(-1, (2, 4)).transpose(1, 2) for one in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A block of a transformer with its norms in front."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = nn.LayerNorm(8), Attention(), nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Language(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(10, 8), nn.Embedding(6, 8)
        self.h = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        return x


def test_a_transformer_names_its_two_sums_and_its_attention(count: Count) -> None:
    """Each sum is fed by the one before and by the branch beside it; the attention has its FLOPs: 2 * 2*2*T*T*4."""
    summary = count(lambda: Language(2), "int64[B, T]", B=1, T=5)
    assert edges(summary) == {
        "words": (("0",),),
        "places": (),
        "add": (("words", "places"),),
        "h.0.norm1": (("add",),),
        "h.0.attn.q": (("h.0.norm1",),),
        "h.0.attn.k": (("h.0.norm1",),),
        "h.0.attn.v": (("h.0.norm1",),),
        "h.0.attn.attention": (("h.0.attn.q", "h.0.attn.k", "h.0.attn.v"),),
        "h.0.attn.out": (("h.0.attn.attention",),),
        "h.0.add": (("add", "h.0.attn.out"),),
        "h.0.norm2": (("h.0.add",),),
        "h.0.mlp": (("h.0.norm2",),),
        "h.0.add_1": (("h.0.add", "h.0.mlp"),),
        "h.1.norm1": (("h.0.add_1",),),
        "h.1.attn.q": (("h.1.norm1",),),
        "h.1.attn.k": (("h.1.norm1",),),
        "h.1.attn.v": (("h.1.norm1",),),
        "h.1.attn.attention": (("h.1.attn.q", "h.1.attn.k", "h.1.attn.v"),),
        "h.1.attn.out": (("h.1.attn.attention",),),
        "h.1.add": (("h.0.add_1", "h.1.attn.out"),),
        "h.1.norm2": (("h.1.add",),),
        "h.1.mlp": (("h.1.norm2",),),
        "h.1.add_1": (("h.1.add", "h.1.mlp"),),
    }
    attention = row(summary, "h.0.attn.attention")
    assert attention.flops == 2 * (2 * 2 * 5 * 5 * 4)
    assert attention.output_text == "[B, 2, T, 4]"
    assert row(summary, "h.0.attn").flops == 0


def test_blocks_with_joins_fold_in_a_snapshot(count: Count) -> None:
    """32 blocks: the first reads the embedding, the other 31 their neighbour, so they are written once."""
    text = render(count(lambda: Language(32), "int64[B, T]", B=1, T=5), declared="modelbudget.yaml")
    assert "- repeat: h.1-31 x31\n" in text
    assert '  - {path: h.*.add, type: add, out: "[B, T, 8]", from: [h.*-1.add_1, h.*.attn.out]}\n' in text
    assert text.count("type: add,") == 1 + 2 + 2


def test_a_loop_in_the_root_numbers_its_sums_and_no_list_grows(count: Count) -> None:
    """`x = x + layer(x)` in one forward: a row for each turn, after the layers, with two sources each."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(100))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = x + layer(x)
            return x

    summary = count(Chain, {"x": "float32[B, 4]"}, B=1)
    assert [layer.path for layer in summary.leaves][100:103] == ["add", "add_1", "add_2"]
    assert row(summary, "add").connected_to == (("x", "layers.0"),)
    assert row(summary, "add_99").connected_to == (("add_98", "layers.99"),)
    assert row(summary, "layers.99").connected_to == (("add_98",),)


def test_a_loop_over_time_is_one_row_called_many_times(count: Count) -> None:
    """A recurrent cell by hand: the sum of its two layers runs at each of 9 steps."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x2h, self.h2h = nn.Linear(3, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = x.new_zeros(x.shape[0], 4)
            for step in range(x.shape[1]):
                h = torch.tanh(self.x2h(x[:, step]) + self.h2h(h))
            return h

    summary = count(Recurrent, {"x": "float32[B, T, 3]"}, B=2, T=9)
    assert edges(summary) == {"x2h": (("x",),), "h2h": (("add",),), "add": (("x2h", "h2h"),)}
    assert row(summary, "add").calls == 9


def test_joins_beyond_the_most_share_the_last_row(count: Count) -> None:
    """A state that changes with each turn makes new joins without end; their calls are all counted."""

    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            for _ in range(MAX_JOINS + 10):
                y = y + x
            return y

    summary = count(Long, {"x": "float32[B, 4]"}, B=1)
    joins = summary.leaves[1:]
    assert len(joins) == MAX_JOINS
    assert sum(join.calls or 0 for join in joins) == MAX_JOINS + 10
    assert joins[-1].connected_to == ((f"add_{MAX_JOINS - 2}", "x"), (f"add_{MAX_JOINS - 1}", "x"))


def test_a_module_called_twice_has_one_row_for_its_join(count: Count) -> None:
    """The calls are counted, and both ways in are named."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair, self.last = Pair(torch.add), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.pair(self.pair(x)))

    summary = count(Model, {"x": "float32[B, 4]"}, B=2)
    assert edges(summary) == {
        "pair.a": (("x",), ("pair.add",)),
        "pair.b": (("x",), ("pair.add",)),
        "pair.add": (("pair.a", "pair.b"),),
        "last": (("pair.add",),),
    }
    assert row(summary, "pair.add").calls == 2


def test_a_join_makes_way_for_modules_of_its_name(count: Count) -> None:
    """A model that has an `add` and an `add_2` of its own keeps them; so does an input called like a join."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add, self.add_2 = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, add_1: torch.Tensor) -> torch.Tensor:
            return self.add_2(self.add(add_1) + add_1) + add_1

    summary = count(Model, {"add_1": "float32[B, 4]"}, B=2)
    assert edges(summary) == {
        "add": (("input add_1",),),
        "add_1": (("add", "input add_1"),),
        "add_2": (("add_1",),),
        "add_3": (("add_2", "input add_1"),),
    }


def test_joins_stand_below_what_their_module_called_last(count: Count) -> None:
    """Code before any layer comes first, code between two layers between them, whatever a child holds."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
            self.unused = nn.Linear(4, 4)
            self.second = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            x = x * y
            x = x + self.first(x)
            return torch.cat([x, self.second(x)], 1)

    summary = count(Model, {"x": "float32[B, 4]", "y": "float32[B, 4]"}, B=2)
    order = [layer.path for layer in summary.layers]
    assert order == ["mul", "first", "first.0", "first.1", "add", "unused", "second", "cat"]


def test_concatenated_features_name_every_layer(count: Count) -> None:
    """As in DenseNet: each layer reads all before it, and each list is as long as that."""

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4 * (depth + 1), 4) for depth in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            features = [x]
            for layer in self.layers:
                features.append(layer(torch.cat(features, 1)))
            return torch.cat(features, 1)

    summary = count(Dense, {"x": "float32[B, 4]"}, B=1)
    assert row(summary, "layers.0").connected_to == (("x",),)
    assert row(summary, "cat").connected_to == (("x", "layers.0"),)
    assert row(summary, "cat_3").connected_to == (("x", "layers.0", "layers.1", "layers.2", "layers.3"),)


def test_products_carry_their_flops_and_the_sum_is_the_total(count: Count) -> None:
    """2 * 4*4 for each linear row, and 2 * 3*3*4 for the product of three rows by three."""
    summary = count(lambda: Pair(lambda a, b: a @ b.T), "float32[3, 4]")
    assert row(summary, "matmul").flops == 2 * 3 * 3 * 4
    assert sum(layer.flops or 0 for layer in summary.layers) == summary.flops.value == 2 * 2 * 3 * 16 + 72


def test_attention_function_is_as_before_afterwards(count: Count) -> None:
    """What is replaced during the pass is put back, also when the model raises."""
    before = F.scaled_dot_product_attention, torch.einsum

    def fail(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        raise ValueError("no")

    with pytest.raises(Exception, match="no"):
        count(lambda: Pair(fail), "float32[B, 4]", B=1)
    assert (F.scaled_dot_product_attention, torch.einsum) == before


def test_inputs_of_rows_keep_their_symbols(count: Count) -> None:
    """Those of a layer, of a container and of a second, different call; a module that is never called has none."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.unused = nn.Sequential(nn.Linear(4, 4)), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(self.body(x).flatten(0, 1))

    summary = count(Model, "float32[B, T, 4]", B=2, T=3)
    for path in ("body", "body.0"):
        assert [[spec.dims for spec in call] for call in row(summary, path).inputs] == [["[B, T, 4]"], ["[B*T, 4]"]]
    assert row(summary, "unused").inputs == ()
    assert Summary.from_dict(summary.to_dict()) == summary
