"""What changed between two summaries: every kind of change, how it is told, folded and ranked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from pytest_modelbudget import Change, compare
from pytest_modelbudget.summary import Flops, Input, Layer, Summary, Weight
from tests.builders import HOSTILE, dense, gpt, spec, towers


def edited(summary: Summary, path: str, **fields: object) -> Summary:
    """The summary with one row changed."""
    layers = tuple(replace(layer, **fields) if layer.path == path else layer for layer in summary.layers)  # type: ignore[arg-type]
    return replace(summary, layers=layers)


def mapped(summary: Summary, name: Callable[[str], str]) -> Summary:
    """The summary with all rows renamed, wherever they are named."""
    paths = {layer.path for layer in summary.layers}

    def tie(reference: str | None) -> str | None:
        return reference and f"{name(reference.rpartition('.')[0])}.{reference.rpartition('.')[2]}"

    layers = tuple(
        replace(
            layer,
            path=name(layer.path),
            connected_to=tuple(
                tuple(name(one) if one in paths else one for one in call) for call in layer.connected_to
            ),
            weights=tuple(replace(weight, tied_to=tie(weight.tied_to)) for weight in layer.weights),
        )
        for layer in summary.layers
    )
    return replace(summary, layers=layers)


def net(*layers: Layer, framework: str = "torch") -> Summary:
    """A model of these rows."""
    inputs = (Input("x", spec("B", 8)),)
    return Summary("net", framework, layers, inputs, layers[-1].outputs[0] if layers[-1].outputs else ())


def linear(path: str, ins: int, outs: int, source: str = "x") -> Layer:
    """A torch layer with ins * outs weights and no bias."""
    return Layer(path, "Linear", ((spec("B", outs),),), ((source,),), (Weight("weight", (outs, ins)),))


def relu(path: str, width: int, source: str) -> Layer:
    """An activation."""
    return Layer(path, "ReLU", ((spec("B", width),),), ((source,),))


def chain(*widths: int, name: Callable[[int], str] = str) -> Summary:
    """Linear layers one after the other."""
    sources = ["x", *(name(index) for index in range(len(widths)))]
    pairs = pairwise(widths)
    return net(*(linear(name(index), ins, outs, sources[index]) for index, (ins, outs) in enumerate(pairs)))


def repeated(calls: int, rest: tuple[int, ...], framework: str = "torch") -> Summary:
    """A layer that is called as often as its weight is long."""
    return net(
        Layer("loop", "Loop", ((spec("B", 8),),), (("x",),), (Weight("w", (calls, *rest)),), calls), framework=framework
    )


def rows(changes: tuple[Change, ...]) -> list[Change]:
    """Without totals and ports."""
    return [change for change in changes if not change.of_the_model]


MLP = net(linear("stem", 8, 16), relu("act", 16, "stem"), linear("head", 16, 4, "act"))
BLOCK = net(
    linear("stem", 8, 8),
    Layer("body", "Block", ((spec("B", 8),),), container=True),
    linear("body.a", 8, 8, "stem"),
    linear("body.b", 8, 32, "body.a"),
    linear("head", 32, 4, "body.b"),
)
BUFFERED = net(
    Layer("mask", "Mask", ((spec("B", 8),),), (("x",),), (Weight("mask", (64,), role="buffer", trainable=False),))
)
FROZEN = (Weight("kernel", (20, 50), trainable=False), Weight("bias", (50,), trainable=False))


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


def test_the_cause_upstream() -> None:
    """A head that grew with what feeds it says so: 128 -> 640 in its input, 128*255 + 255 -> 640*255 + 255."""

    def detector(width: int) -> Summary:
        return net(linear("neck.out", 8, width), dense("head.conv", width, 255, "neck.out"))

    changes = rows(compare(detector(128), detector(640)))
    assert [change.path for change in changes] == ["neck.out", "head.conv"]
    assert changes[1].delta == 163_455 - 32_895
    assert (
        changes[1].why
        == "in*out + out: 128*255 + 255 = 32,895 -> 640*255 + 255 = 163,455; input from neck.out widened 128 -> 640"
    )


def test_the_cause_upstream_through_a_flatten() -> None:
    """The elements of the map before it are the inputs of the layer: 4*4*8 = 128, 5*5*8 = 200."""

    def classifier(side: int) -> Summary:
        maps = Layer("conv", "Conv2D", ((spec("B", side, side, 8),),), (("x",),), (Weight("kernel", (3, 3, 1, 8)),))
        return net(maps, dense("dense", side * side * 8, 10, "conv"))

    changes = rows(compare(classifier(4), classifier(5)))
    assert [(change.kind, change.path) for change in changes] == [("output", "conv"), ("widened", "dense")]
    assert changes[1].why.endswith("input from conv widened [B, 4, 4, 8] -> [B, 5, 5, 8]")


def test_a_total_is_split_by_cause() -> None:
    """Width 8 -> 16 and a tie lost: 100*8 more in the embedding, 4 blocks of 8 + 192 more, and a head of 100*16."""
    before, after = gpt(), gpt(width=16)
    after = edited(after, "head", weights=(Weight("weight", (100, 16)),))
    total = compare(before, after)[0]
    assert total.path == "params"
    assert total.delta == 800 + 4 * (8 + 192) + 1600
    assert total.why == "8 -> 16 in 9 rows +1,600, tie lost at head +1,600"
    assert total.parts == (("8 -> 16 in 9 rows", 800 + 4 * (8 + 192)), ("tie lost at head", 1600))
    page = compare(before, after)._repr_html_()
    assert (
        page.count('<rect class="after more"') == 4 + 2 + 1
    )  # params, trainable, buffers, bytes; two causes, one of the buffers
    assert "<script" not in page


def kernel(side: int, dtype: str = "float32", packed_bytes: int | None = None, *, trainable: bool = True) -> Summary:
    """A convolution of 64 * 64 windows of that side: 36,864 elements for 3, 102,400 for 5."""
    weight = Weight("weight", (64, 64, side, side), dtype, trainable, packed_bytes=packed_bytes)
    return net(Layer("conv", "Conv2d", ((spec("B", 64),),), (("x",),), (weight,)))


@pytest.mark.parametrize(
    ("before", "after", "metric", "delta", "why"),
    [
        pytest.param(
            kernel(3), kernel(5, "float16"), "weight_bytes", 57_344,
            "conv 3 -> 5 +262,144, conv float32 -> float16 -204,800", id="smaller elements",
        ),
        pytest.param(
            kernel(5), kernel(3, "float64"), "weight_bytes", -114_688,
            "conv 5 -> 3 -262,144, conv float32 -> float64 +147,456", id="larger elements",
        ),
        pytest.param(
            kernel(3, "int4", 18_432), kernel(5), "weight_bytes", 391_168,
            "conv int4 in 51,200 bytes -> float32 +358,400, conv 3 -> 5 +32,768", id="unpacked",
        ),
        pytest.param(
            kernel(3), kernel(5, "int4", 51_200), "weight_bytes", -96_256,
            "conv float32 -> int4 in 51,200 bytes -358,400, conv 3 -> 5 +262,144", id="packed",
        ),
        pytest.param(
            kernel(3), kernel(5, trainable=False), "trainable_params", -36_864,
            "conv frozen -102,400, conv 3 -> 5 +65,536", id="frozen",
        ),
    ],
)  # fmt: skip
def test_what_changed_together_has_its_own_part(
    before: Summary, after: Summary, metric: str, delta: int, why: str
) -> None:
    """By hand: resized as it was stored, 65,536 elements of 4 (packed: 1/2) bytes, then cast in its new size."""
    [total] = [change for change in compare(before, after) if change.path == metric]
    assert (total.delta, total.why) == (delta, why)


def test_blocks_are_told_as_blocks() -> None:
    """32 blocks that grew alike are one line with the sum of one and of all: (16*16 + 16) - (8*8 + 8) = 200."""
    changes = rows(compare(gpt(32), gpt(32, width=16)))
    block = next(change for change in changes if change.path == "h.0-31")
    assert (block.count, block.rows, block.delta) == (32, 64, 32 * 200)
    assert str(block).startswith(
        "~ h.0-31  widened  72 params in 2 rows of each -> 272  (32 x +200 = +6,400): experts.0.up in*out: 8*8 = 64 -> 16*16 = 256; norm"
    )
    assert [change.kind for change in changes] == ["widened", "widened", "widened", "follows"]
    assert changes[2].path == "head"  # tied: wider too, and nothing to count
    assert changes[2].delta is None


def test_experts_in_blocks_fold_twice() -> None:
    """Of 16 experts in each of 6 blocks 8 are gone: 48 rows, one line."""
    changes = rows(compare(gpt(6, 16), gpt(6, 8)))
    assert (changes[0].kind, changes[0].path, changes[0].count) == ("removed", "h.0-5.experts.8-15.up", 48)
    assert {change.kind for change in changes[1:]} <= {"connection", "follows"}
    assert len(changes) <= 4


def test_a_sweep_over_the_model_is_one_line() -> None:
    """A frozen backbone names the modules that are frozen as a whole, with their params."""
    deep = gpt(6)
    frozen = replace(deep, layers=tuple(
        replace(layer, weights=tuple(replace(weight, trainable=False) for weight in layer.weights)) if layer.path.startswith("h.") else layer
        for layer in deep.layers
    ))  # fmt: skip
    changes = compare(deep, frozen)
    assert [str(change) for change in rows(changes)] == ["~ h  frozen  432 params in 12 rows trainable -> frozen"]
    half = replace(deep, layers=tuple(
        replace(layer, weights=tuple(replace(weight, dtype="float16" if weight.dtype == "float32" else weight.dtype) for weight in layer.weights))
        for layer in deep.layers
    ))  # fmt: skip
    assert [change.kind for change in rows(compare(deep, half))] == ["dtype"]


def test_causes_come_before_what_follows() -> None:
    """The one edit is first, however many rows it moved, and the shapes that follow are one line with their count."""
    changes = rows(
        compare(chain(8, 8, 8, 8, name=lambda index: f"fc{index}"), chain(64, 8, 8, 8, name=lambda index: f"fc{index}"))
    )
    assert [change.path for change in changes] == ["fc0"]
    wide = net(
        linear("stem", 8, 64),
        *(relu(f"act.{index}", 64, f"act.{index - 1}" if index else "stem") for index in range(50)),
    )
    slim = net(
        linear("stem", 8, 16),
        *(relu(f"act.{index}", 16, f"act.{index - 1}" if index else "stem") for index in range(50)),
    )
    assert [str(change) for change in rows(compare(slim, wide))][1:] == ["~ act  50 rows follow  output 16 -> 64"]


def test_a_renamed_module_that_also_changed() -> None:
    """A rename is found by what stayed, and the edit inside it is told beside it."""
    after = mapped(BLOCK, lambda path: path.replace("body", "trunk"))
    after = replace(
        after,
        layers=(
            *after.layers[:3],
            replace(after.layers[3], weights=(Weight("weight", (32, 8), "float16"),)),
            after.layers[4],
        ),
    )
    assert [(change.kind, change.path) for change in rows(compare(BLOCK, after))] == [
        ("dtype", "trunk.b"),
        ("renamed", "trunk"),
    ]


def test_a_wrapper_around_a_model_that_grew() -> None:
    """All paths gain a prefix and all widths change: one rename beside the widened rows, nothing removed."""
    after = mapped(gpt(6, width=16), lambda path: f"model.{path}")
    kinds = [change.kind for change in rows(compare(gpt(6), after))]
    assert "removed" not in kinds
    assert "added" not in kinds
    assert kinds.count("renamed") == 1


def test_a_tie_follows_a_rename() -> None:
    """The owner of a tied weight may have another name without that the tie changed."""
    after = mapped(gpt(), lambda path: "wte" if path == "tokens" else path)
    assert [(change.kind, change.was, change.path) for change in rows(compare(gpt(), after))] == [
        ("renamed", "tokens", "wte")
    ]


def test_renumbered_names_fold_to_a_range() -> None:
    """A second model in one process gets other numbers from Keras: twenty rows, one line."""
    before, after = (
        replace(chain(*[4] * 21, name=lambda index, first=first: f"dense_{index + first}"), framework="keras")
        for first in (1, 21)
    )
    assert [str(change) for change in rows(compare(before, after))] == [
        "~ dense_21-40  renamed from dense_1-20  (20 rows)"
    ]


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


def scaled(rows: int) -> tuple[Summary, Summary]:
    """A flat model whose every row changed in width and name, and the same before."""

    def model(first: int, width: int) -> Summary:
        return chain(*[width + index % 11 for index in range(rows + 1)], name=lambda index: f"m.layer_{index + first}")

    return model(0, 8), model(7, 9)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(gpt(660), gpt(660, width=16), id="every row widened"),
        pytest.param(
            gpt(660),
            mapped(gpt(660, width=16), lambda path: f"model.{path}"),
            id="wrapped and widened",
            marks=pytest.mark.slow,
        ),
        pytest.param(*scaled(2_000), id="every row widened and renumbered"),
        pytest.param(gpt(660), replace(gpt(660), layers=gpt(660).layers[::-1]), id="in reverse"),
    ],
)
def test_two_thousand_rows_are_compared_alike_twice(before: Summary, after: Summary) -> None:
    """Tenths of a second each (`tests/benchmarks/many_rows.py`)."""
    assert min(len(before.layers), len(after.layers)) > 1_900
    changes = compare(before, after)
    assert changes
    assert changes == compare(before, after)


def test_ten_thousand_equal_rows_are_no_problem() -> None:
    """Equal models are not matched at all."""
    layers = tuple(dense(f"d{index}", 2, 2, "x") for index in range(10_000))
    big = Summary("net", "torch", layers)
    assert compare(big, big) == ()
