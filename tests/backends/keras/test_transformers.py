"""Transformers of published shapes against closed formulas: each product of matrices written down by hand."""

from __future__ import annotations

from typing import Any

import keras
import pytest
from keras import layers as L

BERT = {"width": 768, "heads": 12, "inner": 3072, "blocks": 12, "tokens": 128}
LLAMA = {"width": 4096, "heads": 32, "inner": 11008, "blocks": 32, "tokens": 256}


def bert_flops(*, width: int, heads: int, inner: int, blocks: int, tokens: int) -> int:
    """Four projections, scores and their product with the values, and two matrices of the MLP, in each block."""
    projections = 4 * 2 * tokens * width * width
    attention = 2 * 2 * tokens * tokens * width
    return blocks * (projections + attention + 2 * 2 * tokens * width * inner)


def llama_flops(*, width: int, heads: int, inner: int, blocks: int, tokens: int) -> int:
    """As BERT's, with a third matrix in the MLP."""
    return bert_flops(width=width, heads=heads, inner=inner, blocks=blocks, tokens=tokens) + (
        blocks * 2 * tokens * width * inner
    )


class RawBlock(L.Layer):
    """A block of BERT in nothing but TensorFlow: products by einsum, matmul and tensordot."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.width, self.heads, self.inner = width, heads, inner

    def build(self, shape: Any) -> None:
        size = self.width // self.heads
        self.qkv = [self.add_weight(shape=(self.width, self.heads, size), name=name) for name in "qkv"]
        self.out = self.add_weight(shape=(self.heads, size, self.width), name="out")
        self.up = self.add_weight(shape=(self.width, self.inner), name="up")
        self.down = self.add_weight(shape=(self.inner, self.width), name="down")

    def call(self, x: Any) -> Any:
        import tensorflow as tf

        q, k, v = (tf.einsum("btd,dhk->bhtk", x, weight) for weight in self.qkv)
        scores = tf.nn.softmax(tf.matmul(q, k, transpose_b=True) * 0.125)
        x = x + tf.einsum("bhtk,hkd->btd", tf.matmul(scores, v), self.out)
        return x + tf.tensordot(tf.nn.gelu(tf.tensordot(x, self.up, 1)), self.down, 1)


class Block(L.Layer):
    """A block of BERT of Keras' own layers."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention = L.MultiHeadAttention(heads, width // heads)
        self.up, self.down = L.Dense(inner, activation="gelu"), L.Dense(width)
        self.first, self.second = L.LayerNormalization(), L.LayerNormalization()

    def call(self, x: Any) -> Any:
        x = self.first(x + self.attention(x, x))
        return self.second(x + self.down(self.up(x)))


@pytest.mark.parametrize(
    "block", [pytest.param(Block, id="layers"), pytest.param(RawBlock, id="raw TensorFlow", marks=pytest.mark.slow)]
)
def test_bert(summarize: Any, block: type) -> None:
    """Embeddings and norms are free; every product is counted, in whatever language it is written."""
    if block is RawBlock and keras.backend.backend() != "tensorflow":
        pytest.skip("written for TensorFlow")

    class Bert(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.embed = L.Embedding(30_522, BERT["width"])
            self.blocks = [block(BERT["width"], BERT["heads"], BERT["inner"]) for _ in range(BERT["blocks"])]

        def call(self, ids: Any) -> Any:
            x = self.embed(ids)
            for one in self.blocks:
                x = one(x)
            return x

    summary = summarize(Bert, "int32[B, T]", T=BERT["tokens"])
    assert (summary.flops.value, summary.flops.uncounted) == (bert_flops(**BERT), ())
    assert summary.layers[-1].flops == bert_flops(**BERT) // BERT["blocks"]


def test_llama_of_keras_hub(summarize: Any) -> None:
    """Llama 2 7B as Keras' own library of models builds it, without its 27 GB of weights."""
    hub = pytest.importorskip("keras_hub")

    def build() -> keras.Model:
        return hub.models.LlamaBackbone(
            vocabulary_size=32_000,
            num_layers=LLAMA["blocks"],
            num_query_heads=LLAMA["heads"],
            num_key_value_heads=LLAMA["heads"],
            hidden_dim=LLAMA["width"],
            intermediate_dim=LLAMA["inner"],
            tie_word_embeddings=False,
        )

    tokens = LLAMA["tokens"]
    inputs = {"token_ids": "int32[B, T]", "padding_mask": "int32[B, T]"}
    summary = summarize(build, inputs, T=tokens)
    assert summary.params == 6_738_415_616
    assert summary.flops.uncounted == ()
    assert summary.flops.value == pytest.approx(llama_flops(**LLAMA), rel=1e-3)
