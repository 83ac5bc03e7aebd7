"""What changed between two summaries."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_modelbudget import compare
from pytest_modelbudget.summary import Flops, Layer, Summary, Weight
from tests.builders import dense, gpt, spec, towers


def with_layer(path: str, **fields: object) -> Summary:
    """The two-input model with one row changed."""
    summary = towers()
    layers = tuple(replace(layer, **fields) if layer.path == path else layer for layer in summary.layers)  # type: ignore[arg-type]
    return replace(summary, layers=layers)


def test_nothing_changed() -> None:
    """Equal models have no changes."""
    assert compare(towers(), towers()) == ()


FROZEN = (Weight("kernel", (20, 50), trainable=False), Weight("bias", (50,), trainable=False))


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        pytest.param(
            with_layer("dense_1", weights=(Weight("kernel", (20, 60)), Weight("bias", (60,))), outputs=((spec("B", 60),),)),
            [
                "params 6,201 -> 6,411  (+210, +3.39%)",
                "trainable_params 6,201 -> 6,411  (+210, +3.39%)",
                "weight_bytes 24,804 -> 25,644  (+840, +3.39%)",
                "~ dense_1  [B, 50]  1,050 params  kernel 20x50 + bias 50 -> [B, 60]  1,260 params  kernel 20x60 + bias 60",
            ],
            id="widened",
        ),
        pytest.param(
            with_layer("dense_1", weights=FROZEN),
            [
                "trainable_params 6,201 -> 5,151  (-1,050, -16.93%)",
                "non_trainable_params 0 -> 1,050  (+1,050)",
                "~ dense_1  kernel 20x50 + bias 50 -> kernel 20x50 frozen + bias 50 frozen",
            ],
            id="frozen",
        ),
        pytest.param(with_layer("dense_2", connected_to=(("dense",),)), ["~ dense_2  from concatenate -> from dense"], id="connection"),
        pytest.param(with_layer("dense_2", calls=3), ["~ dense_2  called 1 times -> called 3 times"], id="calls"),
        pytest.param(with_layer("concatenate", type="Add"), ["~ concatenate  Concatenate -> Add"], id="type"),
        pytest.param(replace(towers(), flops=Flops(12_400)), ["flops 12,200 -> 12,400  (+200, +1.64%)"], id="flops"),
        pytest.param(replace(towers(), flops=Flops(None)), ["flops 12,200 -> ?"], id="flops no longer known"),
        pytest.param(replace(towers(), flops=Flops(1, rules=2)), [], id="counted by other rules: no change of the model"),
        pytest.param(replace(towers(), outputs=(spec("B", 2),)), ["~ outputs  float32[B, 1] -> float32[B, 2]"], id="outputs"),
        pytest.param(
            replace(towers(), layers=(*towers().layers, Layer("relu", "ReLU", ((spec("B", 1),),), (("dense_2",),)))),
            ["+ relu  ReLU  [B, 1]  0 params"],
            id="added",
        ),
        pytest.param(
            replace(towers(), layers=(towers().layers[1], towers().layers[0], *towers().layers[2:])),
            ["~ order of layers  as in the snapshot -> another"],
            id="order",
        ),
    ],
)  # fmt: skip
def test_changes(after: Summary, expected: list[str]) -> None:
    """Each change explains itself in one line."""
    assert [str(change) for change in compare(towers(), after)] == expected


def test_removed() -> None:
    """A removed row says what went."""
    changes = compare(towers(), replace(towers(), layers=towers().layers[:-1]))
    assert str(changes[-1]) == "- dense_2  Dense  [B, 1]  101 params  kernel 100x1 + bias 1"
    assert changes[-1].delta == -101


def test_tie_lost() -> None:
    """A head that owns its weight again doubles the embedding: 100 x 8 more params."""
    before = gpt()
    head = replace(before.layers[-1], weights=(Weight("weight", (100, 8)),))
    changes = compare(before, replace(before, layers=(*before.layers[:-1], head)))
    assert (changes[0].path, changes[0].delta) == ("params", 800)
    assert "= tokens.weight" in changes[-1].before
    assert "= tokens.weight" not in changes[-1].after


def test_ten_thousand_rows_are_no_problem() -> None:
    """Rows are matched by path, not by trying all pairs."""
    layers = tuple(dense(f"d{index}", 2, 2, "x") for index in range(10_000))
    big = Summary("net", "torch", layers)
    assert compare(big, big) == ()
