"""Lines end between words: at blanks first, then between the parts of a path, then between the words of a name."""

from __future__ import annotations

import re

import pytest

from pytest_modelbudget.summary import Layer, Summary, Weight
from pytest_modelbudget.summary.show import table
from pytest_modelbudget.summary.show.folding import column_widths, folded, hanging
from tests.builders import spec


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        pytest.param("dense (Dense)", 13, ["dense (Dense)"], id="just fits"),
        pytest.param("dense (Dense)", 12, ["dense", "(Dense)"], id="the type moves below"),
        pytest.param("h.0.norm (RMSNorm)", 10, ["h.0.norm", "(RMSNorm)"], id="before the type, not in the path"),
        pytest.param(
            "2 (AdaptiveAvgPool2d)", 20, ["2", "(AdaptiveAvgPool2d)"], id="the type is not parted for a short path"
        ),
        pytest.param("tower/block/dense", 12, ["tower/block/", "dense"], id="between parts of a path"),
        pytest.param("layers.10.attention", 12, ["layers.10.", "attention"], id="a number stays with its name"),
        pytest.param("depthwise_separable", 12, ["depthwise_", "separable"], id="between the words of a name"),
        pytest.param("QuantizableLinear", 12, ["Quantizable", "Linear"], id="between words in capitals"),
        pytest.param("12.20 kFLOPs, 2,048", 9, ["12.20", "kFLOPs,", "2,048"], id="never in a number"),
        pytest.param("x" * 7, 3, ["xxx", "xxx", "x"], id="a word that is longer than a line"),
        pytest.param("层层层 层", 6, ["层层层", "层"], id="wide characters take two columns"),
        pytest.param("", 3, [""], id="nothing"),
    ],
)
def test_folded(text: str, width: int, lines: list[str]) -> None:
    """By hand."""
    assert folded(text, width) == lines


def test_what_goes_on_is_further_in() -> None:
    """A long line of a list, below which the next one begins where it did."""
    assert list(hanging("  18.6%  layers.0.feedforward.gate_proj", 26)) == [
        "  18.6%  layers.0.", "      feedforward.", "      gate_proj",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("room", "widths"),
    [
        pytest.param(30, [11, 7, 11], id="as wide as the cells"),
        pytest.param(24, [9, 7, 8], id="the widest give way first"),
        pytest.param(20, [7, 7, 6], id="down to the longest word, and numbers stay whole"),
        pytest.param(16, [5, 7, 4], id="then words are parted"),
        pytest.param(14, [5, 5, 4], id="and numbers at last"),
    ],
)
def test_columns_share_the_room(room: int, widths: list[int]) -> None:
    """Longest cells of 11, 7 and 11 characters, longest words of 7, 7 and 5."""
    columns = [["block.dense", "x"], ["123,456"], ["dense, act,"]]
    assert column_widths(columns, room, numbers=(1,)) == widths
    assert sum(widths) <= room


def test_the_longest_name_gives_way_before_other_words() -> None:
    """22 columns for words of 14, 5 and 8: what a state is called stays whole."""
    assert column_widths([["snapshot-files", "b"], ["1,234"], ["OBSOLETE"]], 22, numbers=(1,)) == [9, 5, 8]


NAMES = (
    "feature_extraction_backbone_of_image_tower",
    "inverted_residual_block_with_bottlenecks",
    "depthwise_separable_convolution_layer_one",
)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_table_of_long_names_tears_no_word(width: int) -> None:
    """Each run of letters of the table is a word of a name, a type or a heading, and no line is too long."""
    paths = [".".join(NAMES[: depth + 1]) for depth in range(3)]
    rows = tuple(
        Layer(
            path,
            "QuantizableLinear",
            ((spec("B", 64, 32, 32),),),
            ((source,),),
            (Weight("weight", (64, 64)),),
            container=path != paths[-1],
        )
        for path, source in zip(paths, ["image", *paths], strict=False)
    )
    text = table.summary_text(Summary("net", "torch", rows), width=width)
    cells = text[: text.index("\n---")]
    words = {*re.findall("[A-Za-z]+", " ".join((*paths, "image B Quantizable Linear QuantizableLinear")))}
    words |= {*["Model", "net", "torch", "Layer", "type", "Output", "Shape", "Param", "Connected", "to"]}
    assert {*re.findall("[A-Za-z]+", cells)} <= words
    assert max(map(len, text.splitlines())) <= width
