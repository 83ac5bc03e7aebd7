"""Layers whose `call` is written in the language of Keras' backend; each backend has its own words for the same work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import pytest
from keras import layers as L

BACKEND = keras.backend.backend()

if BACKEND == "tensorflow":
    import tensorflow as tf

    def scores(x: Any) -> Any:
        return tf.matmul(x, x, transpose_b=True)

    def contracted(x: Any) -> Any:
        return tf.einsum("btd,bsd->bts", x, x)

    def repeated(function: Callable[[Any], Any], x: Any, times: int) -> Any:
        return tf.while_loop(lambda i, y: i < times, lambda i, y: (i + 1, function(y)), (0, x))[1]

    def for_each(function: Callable[[Any], Any], x: Any) -> Any:
        return tf.map_fn(function, x)

    def at_once(function: Callable[[Any], Any], x: Any) -> Any:
        return tf.vectorized_map(function, x)

    def until_small(function: Callable[[Any], Any], x: Any) -> Any:
        return tf.while_loop(lambda y: tf.reduce_sum(y) > 1, lambda y: (function(y),), (x,))[0]

    def inverse(x: Any) -> Any:
        return tf.linalg.inv(x)

elif BACKEND == "torch":
    import torch

    def scores(x: Any) -> Any:
        return torch.matmul(x, x.transpose(1, 2))

    def contracted(x: Any) -> Any:
        return torch.einsum("btd,bsd->bts", x, x)

    def repeated(function: Callable[[Any], Any], x: Any, times: int) -> Any:
        for _ in range(times):
            x = function(torch.clone(x))
        return x

    def for_each(function: Callable[[Any], Any], x: Any) -> Any:
        return torch.stack([function(one) for one in x.unbind(0)])

    def at_once(function: Callable[[Any], Any], x: Any) -> Any:
        return torch.vmap(function)(x)

    def until_small(function: Callable[[Any], Any], x: Any) -> Any:
        while x.sum().item() > 1:
            x = function(x)
        return x

    def inverse(x: Any) -> Any:
        return torch.linalg.inv(x)

else:
    import jax
    from jax import numpy as jnp

    def scores(x: Any) -> Any:
        return jax.lax.batch_matmul(x, jax.lax.transpose(x, (0, 2, 1)))

    def contracted(x: Any) -> Any:
        return jnp.einsum("btd,bsd->bts", x, x)

    def repeated(function: Callable[[Any], Any], x: Any, times: int) -> Any:
        return jax.lax.fori_loop(0, times, lambda i, y: function(y), x)

    def for_each(function: Callable[[Any], Any], x: Any) -> Any:
        return jax.lax.map(function, x)

    def at_once(function: Callable[[Any], Any], x: Any) -> Any:
        return jax.vmap(function)(x)

    def until_small(function: Callable[[Any], Any], x: Any) -> Any:
        return jax.lax.while_loop(lambda y: jnp.sum(y) > 1, function, x)

    def inverse(x: Any) -> Any:
        return jnp.linalg.inv(jax.lax.stop_gradient(x))


class Raw(L.Layer):
    """Raw code around an inner layer: `mix(inner, x)`."""

    def __init__(self, mix: Callable[[Any, Any], Any], inner: L.Layer | None = None) -> None:
        super().__init__(name="raw")
        self.inner, self.mix = inner or L.Dense(4, use_bias=False, name="inner"), mix

    def build(self, shape: Any) -> None:
        if not self.inner.built:
            self.inner.build((*shape[:-1], 4))

    def call(self, x: Any) -> Any:
        return self.mix(self.inner, x)


class Around(keras.Model):
    """A raw layer between two others."""

    def __init__(self, mix: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.first, self.raw, self.second = L.Dense(4, name="first"), Raw(mix), L.Dense(3, name="second")

    def call(self, x: Any) -> Any:
        return self.second(self.raw(self.first(x)))


FIRST, INNER = 2 * 3 * 5 * 6 * 4, 2 * 3 * 5 * 4 * 4
SCORES = 2 * 3 * 5 * 5 * 4


@pytest.mark.parametrize(
    ("mix", "last", "expected"),
    [
        pytest.param(lambda inner, x: scores(inner(x)), 5, INNER + SCORES, id="a product after a layer"),
        pytest.param(lambda inner, x: contracted(x), 5, SCORES, id="einsum"),
        pytest.param(lambda inner, x: inner(inner(scores(x)[..., :4])), 4, 2 * INNER + SCORES, id="a layer twice"),
        pytest.param(lambda inner, x: repeated(inner, x, 7), 4, 7 * INNER, id="a layer in a loop"),
        pytest.param(
            lambda inner, x: repeated(lambda y: repeated(inner, y, 2), x, 7), 4, 14 * INNER, id="in a loop in a loop"
        ),
        pytest.param(lambda inner, x: for_each(inner, x), 4, INNER, id="a layer for each example"),
        pytest.param(lambda inner, x: at_once(inner, x), 4, INNER, id="for all examples at once"),
    ],
)
def test_raw_code_is_counted(summarize: Any, mix: Callable[..., Any], last: int, expected: int) -> None:
    """Products in raw code, and layers called in it, count as often as they run, at the layer whose code it is."""
    summary = summarize(lambda: Around(mix), "float32[B, 5, 6]", B=3)
    assert [row.path for row in summary.layers] == ["first", "raw", "second"]
    assert [row.flops for row in summary.layers] == [FIRST, expected, 2 * 3 * 5 * last * 3]
    assert summary.layers[1].output_text in (f"[B, 5, {last}]", f"[3, 5, {last}]")  # a list has the length of B
    assert summary.flops.uncounted == ()
    assert summary.params == 28 + 16 + 3 * last + 3


@pytest.mark.parametrize(
    ("inner", "cost"),
    [
        pytest.param(lambda: L.Dense(4, activation="gelu"), INNER, id="Dense"),
        pytest.param(lambda: L.Conv1D(4, 1), INNER, id="Conv1D"),
        pytest.param(
            lambda: L.LSTM(4, return_sequences=True), 3 * 5 * 2 * 4 * (4 * 4 + 4 * 4), id="LSTM, a step at a time"
        ),
        pytest.param(
            lambda: L.MultiHeadAttention(2, 2), 3 * (4 * 2 * 5 * 4 * 4 + 2 * 2 * 5 * 5 * 4), id="MultiHeadAttention"
        ),
    ],
)
def test_raw_code_in_a_graph(summarize: Any, inner: Callable[[], L.Layer], cost: int) -> None:
    """A functional model may hold raw code around any layer of Keras."""

    def mixed(one: Any, x: Any) -> Any:
        y = scores(x)[..., :4]
        return one(y, y) if isinstance(one, L.MultiHeadAttention) else one(y)

    def build() -> keras.Model:
        x, raw = keras.Input((5, 4)), Raw(mixed, inner())
        if isinstance(raw.inner, L.MultiHeadAttention):
            raw.inner.build((None, 5, 4), (None, 5, 4))
        return keras.Model(x, raw(x))

    summary = summarize(build, B=3)
    assert (summary.flops.value, summary.flops.uncounted) == (SCORES + cost, ())
    assert summary.layers[1].flops == SCORES + cost


class Direct(keras.Model):
    """Raw code of a model's own, around layers that have rows."""

    def __init__(self, mix: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.inner, self.mix = L.Dense(4, use_bias=False, name="inner"), mix

    def build(self, shape: Any) -> None:
        self.inner.build((*shape[:-1], 4))

    def call(self, x: Any) -> Any:
        return self.mix(self.inner, x)


@pytest.mark.parametrize(
    ("mix", "inner"),
    [
        pytest.param(lambda inner, x: scores(inner(x)), INNER, id="once"),
        pytest.param(lambda inner, x: scores(repeated(inner, x, 7)), 7 * INNER, id="in a loop"),
        pytest.param(lambda inner, x: scores(at_once(inner, x)), INNER, id="for all examples at once"),
    ],
)
def test_rows_in_raw_code_have_their_own(summarize: Any, mix: Callable[..., Any], inner: int) -> None:
    """What a layer in raw code costs is at its row; what the code itself costs is in the total."""
    summary = summarize(lambda: Direct(mix), "float32[B, 5, 4]", B=3)
    assert [(row.path, row.flops) for row in summary.layers] == [("inner", inner)]
    assert summary.flops.value == inner + SCORES
    assert [str(spec) for spec in summary.outputs] == ["float32[B, 5, 5]"]


def test_what_has_no_formula_is_listed(summarize: Any) -> None:
    """An operator without a formula in raw code is named, and its row is not shown as free."""
    summary = summarize(lambda: Around(lambda inner, x: inverse(scores(x))), "float32[B, 5, 6]", B=3)
    assert summary.flops.is_lower_bound
    systems = 2 * 3 * 5 * 5**2 if keras.backend.backend() == "jax" else 0  # there, an LU and two triangular systems
    assert summary.layers[1].flops == SCORES + systems
    alone = summarize(lambda: Direct(lambda inner, x: inner(x) + inverse(x)), "float32[B, 4, 4]")
    assert alone.flops.is_lower_bound


def test_a_call_that_cannot_be_traced_is_unknown(summarize: Any) -> None:
    """A loop that only values would end, or code that refuses symbols, is listed, and its row says `?`."""
    summary = summarize(lambda: Around(lambda inner, x: x + until_small(inner, x)), "float32[B, 5, 6]", B=3)
    assert summary.flops.is_lower_bound
    assert summary.layers[1].flops is None
    assert [row.flops for row in summary.layers][::2] == [FIRST, 2 * 3 * 5 * 4 * 3]


def test_weights_are_symbols_while_a_model_is_traced() -> None:
    """The names of Keras that this rests on are there, and as before afterwards."""
    import sys

    from keras.src import ops

    from pytest_modelbudget.backends.keras import variables

    before = {name: getattr(keras.Variable, name) for name in ("__matmul__", "__getitem__", "assign", "value")}
    asked = [name for name, one in sys.modules.items() if name.startswith("keras.src.ops.") and hasattr(one, "any_symbolic_tensors")]  # fmt: skip
    assert {"keras.src.ops.numpy", "keras.src.ops.nn", "keras.src.ops.core"} <= set(asked)
    first, second = keras.Variable([[1.0, 2.0]]), keras.Variable([[1.0], [2.0]])
    gradient = ops.custom_gradient
    with variables.symbolic():
        for product in (first @ second, keras.ops.matmul(first, second), first[:, :1] * 2):
            assert isinstance(product, keras.KerasTensor)
            assert product.shape == (1, 1)
        with pytest.raises(variables.WeightValueWanted):
            first.value  # noqa: B018
        first.assign(first + 1)
    assert {name: getattr(keras.Variable, name) for name in before} == before
    assert ops.custom_gradient is gradient
    assert float(keras.ops.sum(first)) == 3
