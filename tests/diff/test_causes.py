"""Why rows and totals changed: the cause upstream, parts of a total, and what only follows."""

from __future__ import annotations

import pytest

from pytest_modelbudget import compare
from pytest_modelbudget.summary import Layer, Summary, Weight
from tests.builders import dense, gpt, spec
from tests.diff.nets import chain, edited, linear, net, relu, rows


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
