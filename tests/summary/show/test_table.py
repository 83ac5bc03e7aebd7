"""The layer table of one model as text."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from pytest_modelbudget import summarize
from pytest_modelbudget.summary import Flops, Layer, Summary, Weight
from pytest_modelbudget.summary.show import cells, notebook, table
from tests.builders import gpt, towers


def test_the_layer_table_has_the_familiar_shape() -> None:
    """Layer (type), Output Shape, Param #, Connected to, and the totals; nothing is wider than 80 columns."""
    lines = table.summary_text(towers()).splitlines()
    assert re.split(r"  +", lines[3]) == ["Layer (type)", "Output Shape", "Param #", "Connected to"]
    rows = [re.split(r"  +", line.strip()) for line in lines[5:11]]
    assert rows == [
        ["user (InputLayer)", "[B, 100]", "0", "-"],
        ["item (InputLayer)", "[B, 20]", "0", "-"],
        ["dense (Dense)", "[B, 50]", "5,050", "user"],
        ["dense_1 (Dense)", "[B, 50]", "1,050", "item"],
        ["concatenate (Concatenate)", "[B, 100]", "0", "dense, dense_1"],
        ["dense_2 (Dense)", "[B, 1]", "101", "concatenate"],
    ]
    assert "Total params: 6,201 (24.22 KiB)" in lines
    assert "Trainable params: 6,201" in lines
    assert "Non-trainable params: 0" in lines
    assert "FLOPs, forward at B=1: 12.20 kFLOPs (6.100 kMACs)" in lines
    assert max(map(len, lines)) <= 80


def test_unknown_is_a_question_mark() -> None:
    """Never 0; a lower bound says so and names what was not counted."""
    assert "FLOPs, forward at B=1: ?" in table.summary_text(replace(towers(), flops=Flops()))
    bounded = table.summary_text(replace(towers(), flops=Flops(5000, (("my::op", 2),))))
    assert ">= 5.000 kFLOPs" in bounded
    assert "Not counted: my::op x2" in bounded


def test_rows_can_be_limited() -> None:
    """The rest is counted."""
    shown = table.summary_text(gpt(30), most=10)
    assert "... 82 more rows; -vv shows all" in shown


def test_a_layer_that_holds_others_has_their_sum_in_parentheses() -> None:
    """Beside its own params, where it has some; a line says what it is, so that nobody adds it up again."""
    weights = (Weight("scale", (3,)),)
    layers = (
        Layer("(root)", "Net", weights=weights, container=True),
        Layer("a", "Block", container=True),
        Layer("a.b", "Block", weights=weights, container=True),
        Layer("a.b.c", "Scale", weights=(Weight("scale", (1_000,)),)),
        Layer("a.d", "Scale", weights=weights),
        Layer("e", "Block", container=True),
    )
    summary = Summary(model="net", framework="torch", layers=layers)
    assert [row.params for row in cells.rows(summary)] == ["3", "(1,006)", "3 (1,003)", "1,000", "3", "-"]
    words = "(n): the row and all rows inside it together; the totals count each row once"
    assert words in table.summary_text(summary)
    assert words in notebook.summary_fragment(summary)
    assert "(n)" not in table.summary_text(towers())


def test_nested_keras_models_have_the_sum_that_keras_prints() -> None:
    """A Sequential in a Functional model in a Functional model."""
    keras = pytest.importorskip("keras")
    layers = keras.layers
    inner = keras.Sequential([layers.Dense(4), layers.BatchNormalization()], name="inner")
    port = keras.Input((8,))
    middle = keras.Model(port, layers.Dense(2)(inner(port)), name="middle")
    port = keras.Input((8,))
    summary = summarize(keras.Model(port, layers.Dense(1)(middle(port))))
    shown = {row.layer: row.params for row in cells.rows(summary)}
    assert shown["middle (Functional)"] == f"({middle.count_params():,})"
    assert shown["middle/inner (Sequential)"] == f"({inner.count_params():,})"
