"""Models written as classes: built by one symbolic call, looked into by another."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

from pytest_modelbudget.backends import keras as backend
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import parse


class Block(L.Layer):
    """A transformer block: attention and an MLP, each with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = L.LayerNormalization()
        self.attention = L.MultiHeadAttention(2, width // 2)
        self.mlp = keras.Sequential([L.Dense(4 * width, activation="gelu"), L.Dense(width)])

    def call(self, x: Any) -> Any:
        x = x + self.attention(self.norm(x), self.norm(x))
        return x + self.mlp(x)


class Gpt(keras.Model):
    """Embeddings, a table of positions of the model's own, blocks in a list, two outputs."""

    def __init__(self, vocabulary: int = 100, width: int = 16, positions: int = 32) -> None:
        super().__init__(name="gpt")
        self.tokens = L.Embedding(vocabulary, width, name="tokens")
        self.blocks = [Block(width) for _ in range(2)]
        self.head = L.Dense(vocabulary, use_bias=False, name="head")
        self.never = L.Dropout(0.1, name="never")
        self.positions = self.add_weight(shape=(positions, width), name="positions")

    def call(self, ids: Any) -> Any:
        x = self.tokens(ids) + self.positions[: ops.shape(ids)[1]]
        for block in self.blocks:
            x = block(x)
        return {"hidden": x, "logits": self.head(x)}


def test_rows_of_a_class(summarize: Any) -> None:
    """Each attribute is a row, with its calls, shapes and what fed it."""
    summary = summarize(Gpt, "int32[B, T]", T=32)
    assert [(row.path, row.type, row.output_text, row.connected_to, row.calls) for row in summary.layers] == [
        ("gpt", "Gpt", "", (), 1),
        ("tokens", "Embedding", "[B, T, 16]", (), 1),
        ("block", "Block", "[B, T, 16]", (("tokens",),), 1),
        ("block_1", "Block", "[B, T, 16]", (("block",),), 1),
        ("head", "Dense", "[B, T, 100]", (("block_1",),), 1),
        ("never", "Dropout", "", (), 0),
    ]
    block = 4 * (16 * 16 + 16) + 2 * 16 + 16 * 64 + 64 + 64 * 16 + 16
    assert [row.params for row in summary.layers] == [32 * 16, 1600, block, block, 1600, 0]
    assert [str(spec) for spec in summary.outputs] == ["float32[B, T, 16]", "float32[B, T, 100]"]
    assert summary.layers[2].weights_text == summary.layers[3].weights_text


def test_flops_of_a_class(summarize: Any) -> None:
    """The products in a block are those of its projections, its scores and its MLP, at the declared length."""
    summary = summarize(Gpt, "int32[B, T]", T=8, B=3)
    projections = 4 * 2 * 16 * 16 * 8
    attention = 2 * 2 * 8 * 8 * 16
    mlp = 2 * 2 * 16 * 64 * 8
    assert summary.layers[2].flops == 3 * (projections + attention + mlp)
    assert summary.layers[4].flops == 3 * 2 * 16 * 100 * 8
    assert not summary.flops.is_lower_bound


class Twice(keras.Model):
    """One layer called twice, one inside a nested class, one reached by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one = L.Dense(4, name="one")
        self.alias = self.one
        self.inner = Inner(name="inner")

    def call(self, x: Any) -> Any:
        return self.inner(self.one(self.one(x)))


class Inner(keras.Model):
    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.a = L.Dense(3, name="a")
        self.b = L.Dense(2, name="b")

    def call(self, x: Any, scale: float = 1.0) -> Any:
        return self.b(self.a(x)) * scale


def test_nested_classes(summarize: Any) -> None:
    """A class in a class is a row that holds rows."""
    rows = summarize(Twice, "float32[B, 4]").layers
    assert [(row.path, row.container, row.calls, row.params, row.connected_to) for row in rows] == [
        ("one", False, 2, 20, (("one",),)),
        ("inner", True, 1, 0, (("one",),)),
        ("inner/a", False, 1, 15, ()),
        ("inner/b", False, 1, 8, (("inner/a",),)),
    ]


def test_a_class_in_a_graph(summarize: Any) -> None:
    """A functional model may hold a class: its rows come from the call."""

    def build() -> keras.Model:
        x = keras.Input((4,), name="x")
        return keras.Model(x, Inner(name="inner")(x))

    rows = summarize(build).layers
    assert [(row.path, row.output_text, row.calls) for row in rows] == [
        ("x", "[B, 4]", 1),
        ("inner", "[B, 2]", 1),
        ("inner/a", "[B, 3]", 1),
        ("inner/b", "[B, 2]", 1),
    ]


class Mixed(keras.Model):
    """Two towers in one call, by keyword or in a mapping, with a plain value beside."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = L.Dense(3, name="user_tower"), L.Dense(3, name="item_tower")

    def call(self, features: Any, training: bool = False) -> Any:
        return ops.sum(self.user(features["user"]) * self.item(features["item"]), axis=-1)


@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param({"user": "float32[B, 5]", "item": "float32[B, 2]"}, id="by name"),
        pytest.param({"args": [{"user": "float32[B, 5]", "item": "float32[B, 2]"}]}, id="one mapping"),
        pytest.param(
            {"args": [{"user": "float32[B, 5]", "item": "float32[B, 2]"}], "kwargs": {"training": True}},
            id="a plain value",
        ),
    ],
)
def test_mapping_inputs(summarize: Any, inputs: object) -> None:
    """A model that takes one mapping is called with it, however the inputs were written."""
    summary = summarize(Mixed, inputs)
    assert summary.params == 18 + 9
    assert [str(spec) for spec in summary.outputs] == ["float32[B]"]


def test_declared_values_are_accepted_and_shown(summarize: Any) -> None:
    """Keras traces shapes alone, so that a value changes nothing there; rows do not repeat it."""
    summary = summarize(Mixed, {"user": "float32[B, 5] = 0.5", "item": "float32[B, 2] = B"})
    assert [str(port) for port in summary.inputs] == ["user float32[B, 5] = 0.5", "item float32[B, 2] = B"]
    plain = summarize(Mixed, {"user": "float32[B, 5]", "item": "float32[B, 2]"})
    assert (summary.layers, summary.flops) == (plain.layers, plain.flops)


def test_sequential_without_input(summarize: Any) -> None:
    """A stack that was not told its input is built at the declared one."""
    summary = summarize(lambda: keras.Sequential([L.Dense(4), L.Dense(3)]), "float32[B, 7]")
    assert [(row.path, row.params, row.output_text) for row in summary.layers] == [
        ("dense", 32, "[B, 4]"),
        ("dense_1", 15, "[B, 3]"),
    ]
    assert [str(port) for port in summary.inputs] == ["0 float32[B, 7]"]


@pytest.mark.parametrize(
    "finish",
    [
        pytest.param(lambda model: model(np.zeros((2, 4), "float32")), id="called on numbers"),
        pytest.param(lambda model: model(keras.ops.zeros((2, 4))), id="called on a tensor"),
        pytest.param(lambda model: model.build((None, 4)), id="build"),
        pytest.param(lambda model: None, id="left open"),
    ],
)
def test_builders_may_build(summarize: Any, finish: Any) -> None:
    """However a builder finishes its model, the rows are the same, and no weight has a value."""
    made: list[Any] = []

    def build() -> keras.Model:
        made.append(Twice())
        finish(made[0])
        return made[0]

    summary = summarize(build, "float32[B, 4]")
    assert [(row.path, row.params, row.output_text) for row in summary.layers] == [
        ("one", 20, "[B, 4]"),
        ("inner", 0, "[B, 2]"),
        ("inner/a", 15, "[B, 3]"),
        ("inner/b", 8, "[B, 2]"),
    ]
    assert all(variable._value is None for variable in made[0].variables)


def test_a_call_on_numbers_gives_zeros_of_the_right_shape() -> None:
    """What a model without values would give is not computed; a model without weights computes as always."""
    with backend.global_state_restored(), backend.abstract():
        output = Inner(name="inner")(np.ones((3, 4), "float32"))
        doubled = keras.Sequential([keras.Input((2,)), L.Rescaling(2.0)])(np.ones((1, 2), "float32"))
    assert np.array_equal(keras.ops.convert_to_numpy(output), np.zeros((3, 2)))
    assert np.array_equal(keras.ops.convert_to_numpy(doubled), np.full((1, 2), 2.0))


def test_inputs_are_needed(summarize: Any) -> None:
    """A class or an open stack without inputs is an error that says what to write."""
    for build in (Gpt, lambda: keras.Sequential([L.Dense(4)])):
        with pytest.raises(ModelBudgetError, match=r"does not know its inputs: give `inputs:`"):
            summarize(build)


def test_a_built_class_needs_no_inputs_for_its_params() -> None:
    """A live model that was called has its weights; what only a call shows is unknown, and a note says what would tell."""
    model = Gpt()
    model(np.zeros((1, 5), "int32"))
    summary = backend.summarize(model, name="gpt", inputs=None, sizes={}, built_here=False)
    assert (summary.params, summary.flops.value, summary.outputs) == (model.count_params(), None, ())
    assert {(row.outputs, row.connected_to, row.calls, row.flops) for row in summary.layers} == {((), (), None, None)}
    assert [row.path for row in summary.layers] == ["gpt", "tokens", "block", "block_1", "head", "never"]
    assert any('write e.g. inputs: "float32[' in note for note in summary.notes)


class Forgotten(keras.Model):
    """A layer that call never reaches, deep inside another."""

    def __init__(self) -> None:
        super().__init__()
        self.used = L.Dense(2)
        self.outer = Outer()

    def call(self, x: Any) -> Any:
        return self.outer(self.used(x))


class Outer(L.Layer):
    def __init__(self) -> None:
        super().__init__(name="outer")
        self.left_out = L.Dense(3, name="left_out")

    def build(self, shape: Any) -> None:
        self.built = True

    def call(self, x: Any) -> Any:
        return x


def test_a_layer_that_was_never_built_is_an_error(summarize: Any) -> None:
    """Its weights are unknown, which is not 0; the error names it."""
    with pytest.raises(ModelBudgetError, match=r"model: layer 'outer/left_out' was never built"):
        summarize(Forgotten, "float32[B, 4]")


def test_a_live_model_that_was_never_called_is_an_error() -> None:
    """A model of the user's is not finished for them."""
    model = Gpt()
    with pytest.raises(ModelBudgetError, match=r"was never built; call the model once before, or pass a function"):
        backend.summarize(model, name="model", inputs=parse("int32[B, 8]"), sizes={}, built_here=False)
    assert not model.head.built


def test_a_live_model_is_counted_and_left_alone() -> None:
    """A model that was called has rows, and its values and state are as before."""
    model = Inner(name="inner")
    model(np.ones((2, 4), "float32"))
    values = [variable.numpy().tolist() for variable in model.variables]
    calls = [(len(one._inbound_nodes), len(one._outbound_nodes)) for one in (model, *model.layers)]
    summary = backend.summarize(model, name="model", inputs=parse("float32[B, 4]"), sizes={}, built_here=False)
    assert [row.output_text for row in summary.layers] == ["[B, 3]", "[B, 2]"]
    assert [variable.numpy().tolist() for variable in model.variables] == values
    assert [(len(one._inbound_nodes), len(one._outbound_nodes)) for one in (model, *model.layers)] == calls


def test_inputs_that_do_not_fit_a_class(summarize: Any) -> None:
    """The error says what was declared and what the model said."""
    with pytest.raises(ModelBudgetError, match=r"cannot be called with 0 int32\[B, 64\]: "):
        summarize(Gpt, "int32[B, 64]")  # its table ends at 32
    with pytest.raises(ModelBudgetError, match=r"do not fit Mixed.call"):
        summarize(Mixed, {"args": ["float32[B]"], "kwargs": {"unheard": "float32[B]"}})


class Positions(keras.Model):
    """A layer called on numbers made in the call, and layers without a `build` eight levels deep."""

    def __init__(self) -> None:
        super().__init__()
        self.table = L.Embedding(12, 4, name="table")
        self.deep = Deep(8)

    def call(self, x: Any) -> Any:
        return self.deep(x + self.table(ops.arange(ops.shape(x)[1])))


class Deep(L.Layer):
    calls = 0

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.below = Deep(levels - 1) if levels else L.Dense(4)

    def call(self, x: Any) -> Any:
        Deep.calls += 1
        return self.below(x)


def test_layers_called_on_numbers_are_seen(summarize: Any) -> None:
    """A table of positions looked up with `arange` is a call like any other, and stays without value."""
    summary = summarize(Positions, "float32[B, T, 4]", T=6)
    assert [(row.path, row.calls, row.output_text, row.params) for row in summary.layers] == [
        ("table", 1, "[T, 4]", 48),
        ("deep", 1, "[B, T, 4]", 20),
    ]


def test_nesting_costs_no_more_than_its_depth(summarize: Any) -> None:
    """Each level is called a handful of times, however deep it is."""
    Deep.calls = 0
    summarize(Positions, "float32[B, T, 4]", T=6)
    assert Deep.calls <= 9 * 5  # one of them in training mode


class Raw(keras.Model):
    """A call in the backend's own language between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = L.Dense(4, name="first"), L.Dense(3, name="second")

    def call(self, x: Any) -> Any:
        hidden = self.first(x)
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            mixed = tf.matmul(hidden, hidden, transpose_b=True)
        elif keras.backend.backend() == "torch":
            import torch

            mixed = torch.matmul(hidden, hidden.transpose(1, 2))
        else:
            import jax.numpy as jnp

            mixed = jnp.matmul(hidden, hidden.transpose(0, 2, 1))
        return self.second(mixed)


def test_raw_backend_code_is_counted(summarize: Any) -> None:
    """What Keras cannot see is counted in the backend's own trace, beside the layers around it."""
    summary = summarize(Raw, "float32[B, 5, 6]")
    assert [(row.path, row.params, row.output_text) for row in summary.layers] == [
        ("first", 28, "[B, 5, 4]"),
        ("second", 18, "[B, 5, 3]"),
    ]
    assert summary.flops.uncounted == ()
    assert summary.flops.value == 2 * 5 * 6 * 4 + 2 * 5 * 5 * 4 + 2 * 5 * 5 * 3


def test_seeds_and_losses_are_no_params(summarize: Any) -> None:
    """A sampling layer with a seed and a loss adds no params."""

    class Sampling(L.Layer):
        def __init__(self) -> None:
            super().__init__(name="sampling")
            self.seed_generator = keras.random.SeedGenerator(1)

        def call(self, mean: Any) -> Any:
            self.add_loss(ops.mean(mean))
            return mean + keras.random.normal(ops.shape(mean), seed=self.seed_generator)

    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.sampling, self.dropout = L.Dense(2), Sampling(), L.Dropout(0.5)
            self.tracker = keras.metrics.Mean(name="loss")

        def call(self, x: Any) -> Any:
            return self.sampling(self.dropout(self.mean(x)))

    summary = summarize(Model, "float32[B, 3]")
    assert (summary.params, summary.buffers) == (8, 0)
    assert [row.path for row in summary.layers] == ["dense", "sampling", "dropout"]


def test_inputs_of_rows_keep_their_symbols(summarize: Any) -> None:
    """Each layer shows what it was given, a shared one each different call once; a never called one nothing."""

    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.join = L.Dense(4, name="dense"), L.Concatenate(name="join")

        def call(self, x: Any, y: Any) -> Any:
            first = self.dense(self.dense(x))
            return self.join([ops.mean(first, 1), self.dense(y)])

    summary = summarize(Model, ["float32[B, T, 4]", "float32[B, 4]"], B=2, T=3)
    given = {row.path: [[spec.dims for spec in call] for call in row.inputs] for row in summary.layers}
    assert given == {"dense": [["[B, T, 4]"], ["[B, 4]"]], "join": [["[B, 4]", "[B, 4]"]]}
