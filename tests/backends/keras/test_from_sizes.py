"""Graphs of models that are counted without a pass of Keras: what looks alike and is not, and what a graph does not say."""

from __future__ import annotations

from typing import Any

import keras
import pytest
from keras import layers as L

HOPS = {"once": 1, "thrice": 3}


class Hops(L.Layer):
    """A product as often as something outside of the layer says."""

    def call(self, x: Any) -> Any:
        for _ in range(HOPS[self.name]):
            x = keras.ops.matmul(x, keras.ops.ones((8, 8)))
        return x


def test_layers_that_look_alike_count_what_each_does(summarize: Any) -> None:
    """Equal layers of Keras on equal tensors cost the same; on other tensors, or with a state of their own, they do not."""

    def build() -> keras.Model:
        x = keras.Input((6, 8))
        tower = keras.Sequential([keras.Input((6, 8)), L.Dense(8, "relu", name="dense")], name="tower")
        y = keras.ops.relu(tower(tower(x)))
        wide = [L.Attention(name=name)([y, x]) for name in ("first", "alike")]
        narrow = L.Attention(name="narrow")([y, L.Cropping1D(2)(y)])
        hops = [Hops(name=name)(y) for name in HOPS]
        return keras.Model(x, [*wide, narrow, *hops, keras.ops.matmul(y, keras.ops.transpose(y, (0, 2, 1)))])

    flops = {row.path: (row.flops, row.calls) for row in summarize(build).layers if row.flops}
    product, attention = 2 * 6 * 8 * 8, 2 * (2 * 6 * 6 * 8)
    assert flops == {
        "tower/dense": (2 * product, 2),
        "first": (attention, 1),
        "alike": (attention, 1),
        "narrow": (attention // 3, 1),
        "once": (product, 1),
        "thrice": (3 * product, 1),
        "matmul": (attention // 2, 1),
    }


class ProductWithMask(L.Layer):
    """Multiplies only where Keras sends a mask along."""

    def __init__(self) -> None:
        super().__init__()
        self.product = L.Dense(8)

    def build(self, shape: tuple[int, ...]) -> None:
        self.product.build(shape)

    def call(self, x: Any, mask: Any = None) -> Any:
        return x if mask is None else self.product(x)


class CalledTwice(keras.Model):
    """A functional model that overrides how it is called, not what its call does."""

    def __call__(self, x: Any, **kwargs: Any) -> Any:
        return super().__call__(super().__call__(x, **kwargs), **kwargs)


def masked_inner_model() -> keras.Model:
    inside = keras.Input((6, 8))
    inner = keras.Model(inside, ProductWithMask()(L.Dropout(0.1)(L.Dense(8)(inside))))
    tokens = keras.Input((6,), dtype="int32")
    return keras.Model(tokens, inner(L.Embedding(20, 8, mask_zero=True)(tokens)))


def called_twice() -> keras.Model:
    inputs = keras.Input((8,))
    return CalledTwice(inputs, L.Dense(8)(inputs))


def call_set_on_a_layer() -> keras.Model:
    inputs, layer = keras.Input((8,)), L.Dense(8)
    outputs, call = layer(inputs), layer.call
    layer.call = lambda x, training=None: call(call(x))
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize(
    ("build", "flops"),
    [
        pytest.param(masked_inner_model, 2 * 6 * 2 * 8 * 8, id="a mask reaches the layers of an inner model"),
        pytest.param(called_twice, 2 * 2 * 8 * 8, id="__call__ of a model"),
        pytest.param(call_set_on_a_layer, 2 * 2 * 8 * 8, id="call of one layer"),
    ],
)
def test_what_a_graph_does_not_say_is_counted(summarize: Any, build: Any, flops: int) -> None:
    """What depends on masks, and calls that Keras' classes do not make so: each product runs as often as in a step."""
    assert summarize(build).flops.value == flops
