"""Changes of many rows: matched through renames and told as blocks, sweeps and ranges."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_modelbudget import compare
from pytest_modelbudget.summary import Summary, Weight
from tests.builders import dense, gpt
from tests.diff.nets import BLOCK, chain, mapped, rows


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
