"""Rows, totals, and text forms of weights and tensors."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from pytest_modelbudget import compare
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Flops, Layer, Plan, Summary, TensorSpec, Weight, parse_weight, weight_text
from tests.builders import HOSTILE, gpt, towers, training


def test_totals_of_the_two_input_model() -> None:
    """5,050 + 1,050 + 101 = 6,201 params, 4 bytes each."""
    summary = towers()
    assert [layer.params for layer in summary.layers] == [0, 0, 5050, 1050, 0, 101]
    assert (summary.params, summary.trainable_params, summary.non_trainable_params) == (6201, 6201, 0)
    assert summary.weight_bytes == 24_804
    assert summary.largest_layer_share == Fraction(5050, 6201)
    assert summary.params_per_sample is None
    assert replace(summary, samples=2067).params_per_sample == 3


def test_tied_weights_and_buffers() -> None:
    """A tied weight counts once, and a buffer is no param: 100*8 + 4*(8 + 64) params, 4*8 buffers of one byte."""
    summary = gpt(depth=4)
    assert summary.params == 800 + 4 * 72
    assert summary.buffers == 32
    assert summary.weight_bytes == 4 * (800 + 4 * 72) + 32


def test_a_model_without_params_has_no_largest_layer() -> None:
    """A share of nothing is unknown, not zero."""
    empty = Summary("net", "torch", (Layer("relu", "ReLU"),))
    assert empty.params == 0
    assert empty.largest_layer_share is None


def test_the_same_path_twice_is_refused() -> None:
    """Rows are told apart by their path."""
    with pytest.raises(ModelBudgetError, match="same path"):
        Summary("net", "torch", (Layer("a", "ReLU"), Layer("a", "ReLU")))


@pytest.mark.parametrize(
    ("weight", "size"),
    [
        pytest.param(Weight("w", (3, 5), "float16"), 30, id="half"),
        pytest.param(Weight("w", ()), 4, id="scalar"),
        pytest.param(Weight("w", (0, 7)), 0, id="empty"),
        pytest.param(Weight("w", (5,), "int4"), 3, id="two in a byte, rounded up"),
        pytest.param(Weight("w", (10, 10), "int8", packed_bytes=140), 140, id="packed"),
        pytest.param(Weight("w", (2,), "complex64"), 16, id="complex"),
    ],
)
def test_bytes(weight: Weight, size: int) -> None:
    """Bytes are those of the weight's own dtype, or what a packed weight says it stores."""
    assert weight.bytes == size


def test_bytes_of_an_unknown_dtype_are_an_error() -> None:
    """Never zero."""
    with pytest.raises(ModelBudgetError, match=r"'w'.*'float3'"):
        _ = Weight("w", (2,), "float3").bytes


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        (Weight("kernel", (3, 3, 3, 32)), "kernel 3x3x3x32"),
        (Weight("count", (), "int64", False, "buffer"), "count scalar int64 buffer"),
        (Weight("mean", (64,), trainable=False), "mean 64 frozen"),
        (Weight("weight", (9, 4), "bfloat16", tied_to="wte.weight"), "weight 9x4 bfloat16 = wte.weight"),
        (Weight("w", (9, 4), "int8", packed_bytes=40, trainable=False), "w 9x4 int8 40B frozen"),
        (Weight("a + b", (1,)), "a%20%2B%20b 1"),
    ],
)
def test_weight_text(weight: Weight, text: str) -> None:
    """A weight reads as its name, shape and what is not the rule, and can be read back."""
    assert weight_text(weight) == text
    assert parse_weight(text) == weight


@pytest.mark.parametrize("name", [name for name in HOSTILE if name])
def test_hostile_weight_names_are_read_back(name: str) -> None:
    """No name breaks the text form."""
    weight = Weight(name, (2, 3), tied_to=f"x.{name}")
    assert parse_weight(weight_text(weight)) == weight


@pytest.mark.parametrize("text", ["float32[B, 28, 28, 3]", "int64[]", "bool[?, 2*B, T-4]", "float32[B*T, 7]"])
def test_tensor_text(text: str) -> None:
    """A tensor reads back as it was written."""
    assert str(TensorSpec.parse(text)) == text


@pytest.mark.parametrize("summary", [towers(), gpt(2, 2)], ids=["towers", "gpt"])
def test_dict_and_back(summary: Summary) -> None:
    """Plain data loses nothing."""
    assert Summary.from_dict(summary.to_dict()) == summary


def test_faces() -> None:
    """A summary prints as a table and shows itself in notebooks."""
    assert "Total params: 6,201" in str(towers())
    assert "<table>" in towers()._repr_html_()


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        pytest.param(
            replace(towers(), flops=Flops(12_200)),
            f"<Summary {towers().model!r} (keras): 6,201 params, 12.20 kFLOPs, 6 layers>",
            id="a summary",
        ),
        pytest.param(
            Summary("net", "torch", (Layer("relu", "ReLU"),), flops=Flops(10, (("aten.new", 1),))),
            "<Summary 'net' (torch): 0 params, >= 10 FLOPs, 1 layer>",
            id="a lower bound",
        ),
        pytest.param(
            Summary("a\nb", "torch", ()), "<Summary 'a\\nb' (torch): 0 params, ? FLOPs, 0 layers>", id="unknown"
        ),
        pytest.param(
            replace(towers(), plans=(training(), Plan("inference", "fp32", None))),
            "<Summary 'two-towers' (keras): 6,201 params, 12.20 kFLOPs, 6 layers, "
            "training peak 40.00 MiB, inference peak ?>",
            id="a summary with plans",
        ),
        pytest.param(
            towers().layers[2],
            "<Layer 'dense' (Dense) [B, 50]: 5,050 params>",
            id="a layer",
        ),
        pytest.param(
            compare(towers(), replace(towers(), layers=towers().layers[:-1])),
            "<Changes: params 6,201 -> 6,100 (-101), 1 row changed>",
            id="what compare gives",
        ),
        pytest.param(compare(towers(), towers()), "<Changes: none>", id="nothing changed"),
        pytest.param(
            training(), "<Plan training (batch 32, adamw, bf16-mixed): peak 40.00 MiB in backward>", id="a plan"
        ),
        pytest.param(Plan("inference", "fp32", None), "<Plan inference (fp32): peak ?>", id="an unknown plan"),
    ],
)
def test_repr_is_one_short_line(shown: object, expected: str) -> None:
    """For lists, debuggers and failing asserts; the rows are for `print`."""
    assert repr(shown) == expected


@pytest.mark.parametrize("name", HOSTILE)
def test_repr_stays_short_whatever_the_name(name: str) -> None:
    """Cut, and on one line of what prints."""
    large = replace(gpt(200, 8), model=name * 100)
    for shown in (large, Plan("training", name * 100, 10**15)):
        assert len(repr(shown)) < 120
        assert repr(shown).isprintable()


def test_a_plan_shows_itself_in_notebooks() -> None:
    """Its sentences, the curve and what is alive at the peak; without a peak the reason."""
    page = training()._repr_html_()
    assert "peak 40.00 MiB" in page
    assert "<svg" in page
    assert "<td>dense_2</td>" in page
    unknown = Plan("training", "sgd", None, notes=("not planned: no <inputs>",))._repr_html_()
    assert "<svg" not in unknown
    assert "not planned: no &lt;inputs&gt;" in unknown
