"""Params outside of look-up tables, against counts by hand; what cannot be told is not known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pytest_modelbudget import snapshot, summarize
from pytest_modelbudget.budget import judge, parse
from pytest_modelbudget.summary import Input, Layer, Summary, TensorSpec, Weight
from pytest_modelbudget.summary.embeddings import params_outside, why_unknown

TOKENS, POSITIONS, WIDTH = 50, 16, 8
BLOCK = 2 * WIDTH + (WIDTH * 24 + 24) + (WIDTH * WIDTH + WIDTH)
"""A norm, a projection to 24 and one to 8, with biases: 16 + 216 + 72."""

HEAD = TOKENS * WIDTH


def small_gpt(*, tied: bool = False, head_first: bool = False, kind: str = "Embedding") -> Callable[[], Any]:
    """One block between tables of 50 tokens and 16 positions, and a head without bias."""

    def build() -> Any:
        torch = pytest.importorskip("torch")
        nn = torch.nn

        class GPT(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                if head_first:
                    self.head = nn.Linear(WIDTH, TOKENS, bias=False)
                self.tokens = type(kind, (nn.Embedding,), {})(TOKENS, WIDTH)
                self.positions = nn.Embedding(POSITIONS, WIDTH)
                self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 24), nn.Linear(WIDTH, WIDTH)
                if not head_first:
                    self.head = nn.Linear(WIDTH, TOKENS, bias=False)
                if tied and head_first:
                    self.tokens.weight = self.head.weight
                elif tied:
                    self.head.weight = self.tokens.weight

            def forward(self, ids: Any) -> Any:
                x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
                return self.head(self.out(self.qkv(self.norm(x))[..., :WIDTH]))

        return GPT()

    return build


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        pytest.param(small_gpt(), BLOCK + HEAD, id="a head of its own counts"),
        pytest.param(small_gpt(tied=True), BLOCK, id="a tied head has nothing"),
        pytest.param(small_gpt(tied=True, head_first=True), BLOCK, id="nor where the head comes first"),
        pytest.param(small_gpt(kind="ScaledEmbedding"), BLOCK + HEAD, id="a subclass by name and shape"),
        pytest.param(small_gpt(kind="Lookup"), None, id="a subclass of another name cannot be told"),
    ],
)
def test_a_small_gpt(build: Callable[[], Any], expected: int | None) -> None:
    """Tables of tokens and positions are left out; the model's snapshot has the same number."""
    summary = summarize(build, inputs="int64[B, T] < 50", dims={"T": 4})
    assert summary.non_embedding_params == expected
    assert params_outside(snapshot.read(snapshot.render(summary, declared="here"))) == expected
    [over], _ = judge(summary, parse({"non_embedding_params": 1}, lambda _: None))
    assert over.actual == expected
    if expected is None:
        assert "unknown (whether tokens (Lookup) is a look-up table cannot be told)" in str(over)


def test_keras() -> None:
    """An Embedding inside a Sequential, and a ReversibleEmbedding whose way back is its own: 30*8 + 8*4 + 4 = 276."""
    keras = pytest.importorskip("keras")
    layers = keras.layers
    ids = keras.Input((7,), dtype="int32")
    inner = keras.Sequential([layers.Embedding(TOKENS, 8), layers.Dense(4)])
    head = layers.ReversibleEmbedding(30, 8, tie_weights=False)
    summary = summarize(keras.Model(ids, [inner(ids), head(head(ids), reverse=True)]))
    assert summary.params == 50 * 8 + (8 * 4 + 4) + 2 * 30 * 8
    assert params_outside(summary) == 8 * 4 + 4 + 30 * 8


IDS, FLOATS = Input("ids", TensorSpec(("B", "T"), "int64")), Input("x", TensorSpec(("B", 8)))
MATRIX, VECTOR = Weight("weight", (6, 4)), Weight("scale", (4,))


def row(kind: str, *weights: Weight, source: str = "", **options: Any) -> Layer:
    """A row that gives 4 values for each of its inputs."""
    outputs = ((TensorSpec(("B", 4)),),)
    return Layer("row", kind, outputs, ((source,),) if source else (), weights, **options)


@pytest.mark.parametrize(
    ("layer", "port", "expected"),
    [
        pytest.param(row("Embedding", MATRIX), FLOATS, 0, id="a table, whatever it is given"),
        pytest.param(row("Scale", VECTOR, source="ids"), IDS, 4, id="no matrix"),
        pytest.param(row("Linear", Weight("weight", (4, 6))), IDS, 24, id="a familiar type"),
        pytest.param(row("CONV_2D", MATRIX, source="ids"), IDS, 24, id="an operator of whole numbers that multiplies"),
        pytest.param(row("Gather", MATRIX, source="ids"), IDS, 0, id="an operator that looks up"),
        pytest.param(row("Conv1D", MATRIX, VECTOR, source="x"), FLOATS, 28, id="given floats"),
        pytest.param(row("PatchEmbedding", MATRIX, source="x"), FLOATS, 24, id="an embedding of floats"),
        pytest.param(row("Mixer", MATRIX), FLOATS, 24, id="a model of floats"),
        pytest.param(row("LearnedEmbedding", MATRIX), IDS, 0, id="made in forward what it is given"),
        pytest.param(row("LearnedEmbedding", MATRIX, VECTOR), IDS, None, id="more than a table"),
        pytest.param(row("Net", MATRIX, source="ids"), IDS, None, id="unfamiliar, given whole numbers"),
        pytest.param(row("Net", MATRIX), IDS, None, id="unfamiliar, not known what it is given"),
        pytest.param(row("Net", MATRIX, calls=None, container=True), IDS, None, id="not known whether it is called"),
        pytest.param(replace(row("Net", MATRIX), connected_to=(("x", "elsewhere"),)), IDS, None, id="not known what else it is given"),
        pytest.param(replace(row("Net", MATRIX), connected_to=(("input x",), ())), IDS, None, id="not known of each call"),
        pytest.param(row("Net", MATRIX, source="input x"), FLOATS, 24, id="an input that is named as a layer is"),
        pytest.param(row("ParameterList", MATRIX, calls=0), IDS, 24, id="never called"),
        pytest.param(row("Attention", MATRIX, container=True), IDS, 24, id="holds other layers"),
        pytest.param(row("Net", MATRIX, container=True, inputs=((IDS.spec,),)), IDS, None, id="holds others, given whole numbers"),
        pytest.param(row("Experts", MATRIX, container=True, inputs=((FLOATS.spec, IDS.spec),)), IDS, 24, id="holds others, given floats too"),
        pytest.param(replace(row("Net", MATRIX, container=True), path="(root)"), IDS, None, id="the model itself"),
    ],
)  # fmt: skip
def test_what_is_a_table(layer: Layer, port: Input, expected: int | None) -> None:
    """By its type, its weights and what it is given; where nothing tells, the number is not known."""
    inputs = (port,) if port is FLOATS else (port, FLOATS)
    summary = Summary(model="net", framework="torch", layers=(layer,), inputs=inputs)
    assert params_outside(summary) == expected
    assert bool(why_unknown(summary)) == (expected is None)
