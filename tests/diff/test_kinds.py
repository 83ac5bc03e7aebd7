"""What changed between two summaries: every kind of change, and how it is told in one line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_modelbudget import compare
from pytest_modelbudget.summary import Flops, Layer, Summary, Weight
from tests.builders import HOSTILE, gpt, spec, towers
from tests.diff.nets import BLOCK, BUFFERED, FROZEN, MLP, chain, edited, linear, mapped, net, relu, repeated, rows


@pytest.mark.parametrize(
    ("before", "after", "kinds"),
    [
        pytest.param(MLP, net(linear("stem", 8, 16), relu("act", 16, "stem"), relu("more", 16, "act"), linear("head", 16, 4, "more")), [("added", "more"), ("follows", "head")], id="inserted"),
        pytest.param(MLP, net(linear("stem", 8, 16), linear("head", 16, 4, "stem")), [("removed", "act"), ("follows", "head")], id="removed"),
        pytest.param(MLP, mapped(MLP, lambda path: "classifier" if path == "head" else path), [("renamed", "classifier")], id="renamed"),
        pytest.param(BLOCK, mapped(BLOCK, lambda path: path.replace("body", "trunk")), [("renamed", "trunk")], id="renamed module"),
        pytest.param(BLOCK, mapped(BLOCK, lambda path: f"module.{path}"), [("renamed", "module")], id="wrapped"),
        pytest.param(mapped(BLOCK, lambda path: f"module.{path}"), BLOCK, [("renamed", "(the top)")], id="unwrapped"),
        pytest.param(BLOCK, mapped(BLOCK, lambda path: path.replace("body", "body.inner")), [("renamed", "body.inner")], id="wrapped inside"),
        pytest.param(towers(), mapped(towers(), lambda path: {"dense": "dense_3", "dense_1": "dense_4", "dense_2": "dense_5", "concatenate": "concatenate_1"}.get(path, path)), [("renamed", "dense_3"), ("renamed", "dense_4-5"), ("renamed", "concatenate_1")], id="renumbered by Keras"),
        pytest.param(MLP, net(linear("stem", 8, 16), relu("act", 16, "stem"), Layer("top", "Top", ((spec("B", 4),),), container=True), linear("top.out", 16, 4, "act")), [("added", "top"), ("moved", "top.out")], id="moved"),
        pytest.param(MLP, net(linear("stem", 8, 32), relu("act", 32, "stem"), linear("head", 32, 4, "act")), [("widened", "stem"), ("widened", "head"), ("follows", "act")], id="widened"),
        pytest.param(MLP, net(linear("stem", 8, 4), relu("act", 4, "stem"), linear("head", 4, 4, "act")), [("narrowed", "stem"), ("narrowed", "head"), ("follows", "act")], id="narrowed"),
        pytest.param(MLP, edited(MLP, "head", weights=(Weight("weight", (4, 16)), Weight("bias", (4,)))), [("weights", "head")], id="bias gained"),
        pytest.param(MLP, edited(MLP, "head", weights=(Weight("kernel", (4, 16)),)), [("weights", "head")], id="weight renamed"),
        pytest.param(towers(), edited(towers(), "dense", weights=towers().layers[2].weights[::-1]), [("weights", "dense")], id="weights in another order"),
        pytest.param(MLP, edited(MLP, "head", weights=(Weight("weight", (16, 4)),)), [("weights", "head")], id="weight transposed"),
        pytest.param(MLP, edited(MLP, "act", type="GELU"), [("type", "act")], id="type"),
        pytest.param(MLP, edited(MLP, "head", type="Bilinear", weights=(Weight("weight", (4, 16, 16)),)), [("type", "head")], id="type with its weights"),
        pytest.param(MLP, edited(MLP, "head", weights=(Weight("weight", (4, 16), "bfloat16"),)), [("dtype", "head")], id="dtype"),
        pytest.param(MLP, edited(MLP, "head", weights=(Weight("weight", (4, 16), packed_bytes=99),)), [("dtype", "head")], id="packed"),
        pytest.param(towers(), edited(towers(), "dense_1", weights=FROZEN), [("frozen", "dense_1")], id="frozen"),
        pytest.param(edited(towers(), "dense_1", weights=FROZEN), towers(), [("unfrozen", "dense_1")], id="unfrozen"),
        pytest.param(gpt(), edited(gpt(), "head", weights=(Weight("weight", (100, 8)),)), [("untied", "head")], id="tie lost"),
        pytest.param(edited(gpt(), "head", weights=(Weight("weight", (100, 8)),)), gpt(), [("tied", "head")], id="tie gained"),
        pytest.param(gpt(), edited(gpt(), "head", weights=(Weight("weight", (100, 8), tied_to="h.0.norm.weight"),)), [("tied", "head")], id="tied to another"),
        pytest.param(MLP, edited(MLP, "act", calls=3), [("calls", "act")], id="called more often"),
        pytest.param(MLP, edited(MLP, "act", calls=None), [("calls", "act")], id="calls no longer known"),
        pytest.param(towers(), edited(towers(), "dense_2", connected_to=(("dense",),)), [("connection", "dense_2")], id="connection"),
        pytest.param(MLP, edited(MLP, "act", outputs=((spec("B", 4, 4),),)), [("output", "act")], id="output shape"),
        pytest.param(BUFFERED, edited(BUFFERED, "mask", weights=(Weight("mask", (128,), role="buffer", trainable=False),)), [("buffer", "mask")], id="buffer grown"),
        pytest.param(BLOCK, edited(BLOCK, "body", container=False), [("nesting", "body")], id="nesting"),
        pytest.param(BLOCK, replace(BLOCK, layers=(BLOCK.layers[0], BLOCK.layers[1], BLOCK.layers[3], BLOCK.layers[2], BLOCK.layers[4])), [("order", "order of layers")], id="order"),
        pytest.param(chain(8, 8, 16, 4), net(linear("0", 8, 8), linear("1", 8, 8, "0"), linear("2", 8, 16, "1"), linear("3", 16, 4, "2")), [("added", "1"), ("renamed", "2-3"), ("follows", "2")], id="inserted into numbered layers"),
        pytest.param(gpt(12), gpt(9), [("removed", "h.9-11"), ("follows", "head")], id="blocks removed"),
        pytest.param(gpt(3), gpt(9), [("added", "h.3-8"), ("follows", "head")], id="blocks added"),
        pytest.param(repeated(4, (8, 8), framework="jax"), repeated(6, (8, 8), framework="jax"), [("weights", "loop")], id="deeper stack"),
        pytest.param(repeated(4, (8,), framework="jax"), repeated(6, (8,), framework="jax"), [("widened", "loop"), ("calls", "loop")], id="table read once for each of its rows"),
        pytest.param(repeated(4, (8, 3)), repeated(6, (8, 3)), [("widened", "loop"), ("calls", "loop")], id="torch layer called once for each of its filters"),
    ],
)  # fmt: skip
def test_kinds(before: Summary, after: Summary, kinds: list[tuple[str, str]]) -> None:
    """Each edit is told as what it is, once, and its parts sum to the difference of the params."""
    changes = compare(before, after)
    assert [(change.kind, change.path) for change in rows(changes)] == kinds
    assert sum(change.delta or 0 for change in rows(changes)) == after.params - before.params


@pytest.mark.parametrize("summary", [towers(), gpt(), MLP, BLOCK, BUFFERED], ids=lambda summary: summary.model)
def test_nothing_changed(summary: Summary) -> None:
    """Equal models have no changes."""
    assert compare(summary, replace(summary, notes=("counted elsewhere",), sizes=(("B", 7),))) == ()


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        pytest.param(
            edited(towers(), "dense_1", weights=(Weight("kernel", (20, 60)), Weight("bias", (60,))), outputs=((spec("B", 60),),)),
            [
                "params 6,201 -> 6,411  (+210, +3.39%)",
                "trainable_params 6,201 -> 6,411  (+210, +3.39%)",
                "weight_bytes 24,804 -> 25,644  (+840, +3.39%)",
                "~ dense_1  widened  1,050 params [B, 50] -> 1,260 params [B, 60]  (+210): in*out + out: 20*50 + 50 = 1,050 -> 20*60 + 60 = 1,260",
            ],
            id="widened",
        ),
        pytest.param(
            edited(towers(), "dense_1", weights=FROZEN),
            [
                "trainable_params 6,201 -> 5,151  (-1,050, -16.93%)",
                "non_trainable_params 0 -> 1,050  (+1,050)",
                "~ dense_1  frozen  1,050 params trainable -> frozen",
            ],
            id="frozen",
        ),
        pytest.param(edited(towers(), "dense_2", connected_to=(("dense",),)), ["~ dense_2  connection  from concatenate -> from dense"], id="connection"),
        pytest.param(edited(towers(), "dense_2", calls=3), ["~ dense_2  calls  called once -> called 3 times"], id="calls"),
        pytest.param(edited(towers(), "concatenate", type="Add"), ["~ concatenate  type  Concatenate [B, 100], 0 params -> Add [B, 100], 0 params"], id="type"),
        pytest.param(replace(towers(), flops=Flops(12_400)), ["flops 12,200 -> 12,400  (+200, +1.64%)"], id="flops"),
        pytest.param(replace(towers(), flops=Flops(None)), ["flops 12,200 -> ?"], id="flops no longer known"),
        pytest.param(replace(towers(), flops=Flops(12_200, (("aten.cumsum", 2),))), ["flops 12,200 -> >=12,200: not counted none -> aten.cumsum x2"], id="flops a lower bound"),
        pytest.param(replace(towers(), flops=Flops(1, rules=0)), [], id="counted by other rules: no change of the model"),
        pytest.param(replace(towers(), outputs=(spec("B", 2),)), ["~ outputs  float32[B, 1] -> float32[B, 2]"], id="outputs"),
        pytest.param(replace(towers(), framework="torch"), ["~ framework  keras -> torch"], id="framework"),
        pytest.param(
            replace(towers(), layers=(*towers().layers, Layer("relu", "ReLU", ((spec("B", 1),),), (("dense_2",),)))),
            ["+ relu  ReLU [B, 1], 0 params"],
            id="added",
        ),
        pytest.param(
            replace(towers(), layers=(towers().layers[1], towers().layers[0], *towers().layers[2:])),
            ["~ order of layers  as before -> item in another place"],
            id="order",
        ),
        pytest.param(
            replace(towers(), layers=towers().layers[:-1]),
            [
                "params 6,201 -> 6,100  (-101, -1.63%)",
                "trainable_params 6,201 -> 6,100  (-101, -1.63%)",
                "weight_bytes 24,804 -> 24,400  (-404, -1.63%)",
                "- dense_2  Dense [B, 1], 101 params: in*out + out: 100*1 + 1 = 101",
            ],
            id="removed",
        ),
    ],
)  # fmt: skip
def test_a_change_explains_itself_in_one_line(after: Summary, expected: list[str]) -> None:
    """Sign, place, what, from where to where, the difference, and why."""
    assert [str(change) for change in compare(towers(), after)] == expected


def test_repr_of_a_change_is_short() -> None:
    """What and by how much; the reasons are for `print`."""
    changes = compare(net(linear("fc", 8, 8)), net(linear("fc", 8, 9)))
    assert [repr(change) for change in rows(changes)] == [
        "<Change ~ fc  widened  64 params [B, 8] -> 72 params [B, 9] (+8)>"
    ]
    assert repr(changes[0]) == "<Change params 64 -> 72 (+8)>"


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_change_is_one_line_whatever_the_names(name: str) -> None:
    """No name breaks the line or makes it endless, in any place where a name is told."""
    before = net(linear(name, 8, 8), relu("act", 8, name), linear("tied", 8, 8, "act"))
    after = net(
        linear(f"m.{name}", 8, 9),
        replace(relu("act", 9, f"m.{name}"), type=name),
        replace(
            linear("tied", 8, 8, "act"),
            weights=(Weight("weight", (8, 8), tied_to=f"m.{name}.weight"), Weight(name, (3,))),
        ),
        linear(f"{name}2", 1, 1, name),
    )
    for one, other in ((before, after), (after, before)):
        for change in compare(one, other):
            assert str(change).isprintable()
            assert len(str(change)) < 1_300
            assert repr(change).isprintable()
            assert len(repr(change)) < 200
            assert change.why.isprintable()
