"""Why a change moved a count, and what a summary says as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_modelbudget.explain import reading, why_changed
from pytest_modelbudget.reports import html, json, table
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.summary import Flops, Input, Layer, Summary, Weight
from tests.builders import HOSTILE, dense, gpt, spec, towers


def layer(kind: str, **weights: tuple[int, ...]) -> Layer:
    """A layer with these weights."""
    return Layer("x", kind, weights=tuple(Weight(name, shape) for name, shape in weights.items()))


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        pytest.param(layer("Dense", kernel=(128, 255), bias=(255,)), layer("Dense", kernel=(640, 255), bias=(255,)), "in*out + out: 128*255 + 255 = 32,895 -> 640*255 + 255 = 163,455", id="more inputs"),
        pytest.param(layer("Conv2d", weight=(8, 3, 3, 3)), layer("Conv2d", weight=(8, 3, 5, 5)), "k*k*in/groups*out: 3*3*3*8 = 216 -> 5*5*3*8 = 600", id="larger window"),
        pytest.param(layer("Linear", weight=(4, 8)), layer("Linear", weight=(4, 8), bias=(4,)), "in*out: 8*4 = 32 -> in*out + out: 8*4 + 4 = 36", id="bias gained: another formula"),
        pytest.param(layer("Linear", weight=(4, 8)), layer("Conv1d", weight=(4, 8, 1)), "in*out: 8*4 = 32 -> k*in/groups*out: 1*8*4 = 32", id="another type"),
        pytest.param(layer("Custom", a=(2, 3)), layer("Custom", a=(2, 5)), "a 2x3 = 6 -> a 2x5 = 10", id="no formula"),
        pytest.param(layer("Linear", weight=(4, 8)), layer("ReLU"), "in*out: 8*4 = 32 -> no params", id="no params left"),
        pytest.param(layer("Linear", weight=(4, 8)), layer("Linear", weight=(4, 8)), "", id="the same"),
        pytest.param(layer("ReLU"), layer("GELU"), "", id="none on either side"),
    ],
)  # fmt: skip
def test_the_arithmetic_of_both_counts(before: Layer, after: Layer, text: str) -> None:
    """The words once where they are the same, and both sums."""
    assert why_changed(before, after) == text


def conv(path: str, source: str, side: int, *, window: int = 3, channels: int = 8) -> Layer:
    """A torch convolution with an output of side x side."""
    return Layer(
        path,
        "Conv2d",
        ((spec("B", channels, side, side),),),
        ((source,),),
        (Weight("weight", (channels, channels, window, window)),),
        flops=1,
    )


def model(*layers: Layer, **fields: object) -> Summary:
    """A torch model of these rows."""
    return replace(Summary("net", "torch", layers), **fields)  # type: ignore[arg-type]


EVEN = tuple(dense(name, 8, 8, "x", activation_bytes=1) for name in "abcde")


@pytest.mark.parametrize(
    ("summary", "sentences"),
    [
        pytest.param(model(*EVEN), [], id="nothing stands out"),
        pytest.param(
            model(*EVEN, dense("big", 8, 100, "e", activation_bytes=1000, flops=10_000)),
            [
                "big has 71.4% of the params: 900 of 1,260",
                "big has 94.0% of the FLOPs: 10.00 kFLOPs of 10.64 kFLOPs",
                "big has 99.5% of the memory held for the backward pass: 1000 B of 1005 B",
            ],
            id="one layer holds most: 8*100 + 100 of 5*(8*8 + 8) + 900",
        ),
        pytest.param(model(*EVEN, replace(dense("big", 8, 100, "e"), flops=None)), ["big has 71.4% of the params: 900 of 1,260"], id="FLOPs and memory that are not known are not shared out"),
        pytest.param(model(*EVEN, flops=Flops(5, (("aten.cumsum", 1),))), [], id="a lower bound is not shared out"),
        pytest.param(model(*EVEN, samples=100), ["3.6 params for each of 100 samples: more params than samples"], id="more params than samples: 360 to 100"),
        pytest.param(model(*EVEN, samples=1_000), ["0.36 params for each of 1,000 samples: fewer params than samples"], id="fewer params than samples"),
        pytest.param(
            model(*EVEN[:4], replace(EVEN[4], weights=(Weight("kernel", (8, 8), trainable=False), Weight("bias", (8,))))),
            ["64 of 360 params (17.8%) are frozen, in 1 layer: e"],
            id="frozen",
        ),
        pytest.param(
            model(*EVEN, Layer("norm", "BatchNormalization", weights=(Weight("moving_mean", (8,), trainable=False),), activation_bytes=1, flops=0)),
            [],
            id="moving averages are not frozen",
        ),
        pytest.param(
            model(*EVEN[:4], replace(EVEN[4], calls=0, outputs=())),
            ["1 layer with 72 params is never called (the code around may use their weights): e"],
            id="never called",
        ),
        pytest.param(
            model(*EVEN, *(Layer(f"drop{index}", "Dropout", calls=0, flops=0, activation_bytes=0) for index in range(5))),
            ["5 layers with no params are never called: drop0, drop1, drop2, 2 more"],
            id="never called and nothing lost",
        ),
        pytest.param(
            model(*EVEN, Layer("out", "NonDynamicallyQuantizableLinear", calls=0, flops=0, activation_bytes=0)),
            [],
            id="the output layer of torch's attention is used, not called",
        ),
        pytest.param(
            model(*(conv(f"c{index}", f"c{index - 1}", side) for index, side in enumerate((8, 4, 2, 1, 1, 1)))),
            ["the spatial size is down to 1 before c4: 2 layers with a wider window see padding around one position"],
            id="a map of one position, and convolutions go on",
        ),
        pytest.param(
            model(*(conv(f"c{index}", f"c{index - 1}", side, window=1 if side == 1 else 3) for index, side in enumerate((8, 4, 2, 1, 1, 1)))),
            [],
            id="windows of 1 are at home on one position",
        ),
        pytest.param(
            model(dense("enc", 64, 32, "x"), dense("code", 32, 4, "enc"), dense("dec", 4, 32, "code"), dense("out", 32, 64, "dec"), inputs=(Input("x", spec("B", 64)),)),
            ["the narrowest layer is code: 4 values between 64 and 64"],
            id="the code of an autoencoder",
        ),
        pytest.param(model(*(dense(str(index), 8, width, "x") for index, width in enumerate((64, 64, 64, 8)))), [], id="a classifier ends narrow"),
        pytest.param(Summary("empty", "torch", ()), [], id="no layers"),
    ],
)  # fmt: skip
def test_a_reading(summary: Summary, sentences: list[str]) -> None:
    """A sentence for each thing that stands out, with its numbers, and none for what does not or is not known."""
    told = [sentence for sentence in reading(summary) if " has " not in sentence or sentence.startswith("big ")]
    assert told == sentences


def test_the_largest_layer_of_a_language_model() -> None:
    """An embedding of 100*8 in a model of 800 + 4*(8 + 64) params."""
    assert reading(gpt())[0] == "tokens has 73.5% of the params: 800 of 1,088"


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_reading_is_one_line_whatever_the_names(name: str) -> None:
    """Each sentence is a line of some words."""
    for sentence in reading(model(*EVEN[:2], replace(dense(name, 8, 100, "b"), calls=0), samples=7)):
        assert sentence.isprintable()
        assert len(sentence) < 300


def test_a_reading_is_only_for_those_who_ask() -> None:
    """The plain table is silent; the explained one, the page and the JSON have it."""
    sentence = "dense has 81.4% of the params: 5,050 of 6,201"
    result = Result("towers", State.OK, towers())
    assert sentence not in table.summary_text(towers(), width=200)
    assert f"Reading: {sentence}" in table.summary_text(towers(), width=200, explain=True)
    assert sentence in html.page([result])
    assert sentence in json.page([result])
