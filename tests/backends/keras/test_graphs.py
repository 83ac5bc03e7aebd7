"""Functional and Sequential models: shared, nested, frozen, tied layers; several outputs; inputs that fit or do not."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L

from pytest_modelbudget.backends import keras as backend
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import parse


def shared() -> keras.Model:
    layer = L.Dense(8, name="shared")
    first = keras.Input((8,), name="first")
    return keras.Model(first, L.Dense(2, name="head")(layer(layer(first))))


def test_a_shared_layer_is_one_row(summarize: Any) -> None:
    """A layer called twice counts its params once and its work twice."""
    row = summarize(shared).layers[1]
    assert (row.path, row.calls, row.params, row.flops) == ("shared", 2, 72, 2 * 2 * 8 * 8)
    assert row.connected_to == (("first",), ("shared",))


def test_a_layer_of_two_models_shows_the_calls_of_this_one(summarize: Any) -> None:
    """The call another model made later does not show up here, although Keras' own table prints it."""

    def build() -> keras.Model:
        layer = L.Conv2D(4, 3, name="shared")
        small, large = keras.Input((32, 32, 3)), keras.Input((64, 64, 3))
        model = keras.Model(small, layer(small))
        keras.Model(large, layer(large))
        return model

    row = summarize(build).layers[1]
    assert (row.output_text, row.calls) == ("[B, 30, 30, 4]", 1)


def test_calls_with_different_shapes_are_all_shown(summarize: Any) -> None:
    """A layer called on two shapes lists both outputs."""

    def build() -> keras.Model:
        layer = L.Conv2D(3, 3, name="shared")
        image = keras.Input((32, 32, 3))
        return keras.Model(image, layer(layer(image)))

    assert summarize(build).layers[1].output_text == "[B, 30, 30, 3]; [B, 28, 28, 3]"


def nested() -> keras.Model:
    inside = keras.Input((6,), name="inside")
    inner = keras.Model(inside, L.Dense(6, name="b")(L.Dense(6, name="a")(inside)), name="inner")
    stack = keras.Sequential([keras.Input((6,)), L.Dense(5, name="c")], name="stack")
    outside = keras.Input((6,), name="outside")
    return keras.Model(outside, stack(inner(inner(outside))))


def test_nested_models_are_opened(summarize: Any) -> None:
    """A nested model is a row that holds rows, connected among themselves."""
    summary = summarize(nested)
    assert [(row.path, row.type, row.container, row.params) for row in summary.layers] == [
        ("outside", "InputLayer", False, 0),
        ("inner", "Functional", True, 0),
        ("inner/inside", "InputLayer", False, 0),
        ("inner/a", "Dense", False, 42),
        ("inner/b", "Dense", False, 42),
        ("stack", "Sequential", True, 0),
        ("stack/c", "Dense", False, 35),
    ]
    by_path = {row.path: row for row in summary.layers}
    assert by_path["inner"].connected_to == (("outside",), ("inner",))
    assert by_path["inner/b"].connected_to == (("inner/a",),)
    assert by_path["stack"].connected_to == (("inner",),)
    assert (by_path["inner"].calls, by_path["inner/a"].calls, by_path["inner/a"].flops) == (2, 2, 2 * 2 * 6 * 6)
    assert summary.params == 119


def test_operations_are_rows(summarize: Any) -> None:
    """An addition or a function of `keras.ops` in the graph is a row, since others are connected to it."""

    def build() -> keras.Model:
        x = keras.Input((4,), name="x")
        y = L.Dense(4, name="y")(x)
        return keras.Model(x, keras.ops.relu(x + y))

    rows = summarize(build).layers
    assert [(row.path, row.type, row.connected_to) for row in rows[2:]] == [
        ("add", "Add", (("x", "y"),)),
        ("relu", "Relu", (("add",),)),
    ]


def test_several_and_named_outputs(summarize: Any) -> None:
    """Outputs in a mapping are flattened in Keras' order."""

    def build() -> keras.Model:
        x = keras.Input((4,))
        return keras.Model(x, {"wide": L.Dense(7)(x), "narrow": L.Dense(2)(x)})

    assert [str(spec) for spec in summarize(build).outputs] == ["float32[B, 2]", "float32[B, 7]"]


def test_frozen_layers(summarize: Any) -> None:
    """A frozen part is non-trainable, moving averages are so always."""

    def build() -> keras.Model:
        base = keras.Sequential([keras.Input((4,)), L.Dense(3), L.BatchNormalization()], name="base")
        base.trainable = False
        x = keras.Input((4,))
        return keras.Model(x, L.BatchNormalization(name="norm")(L.Dense(2, name="head")(base(x))))

    summary = summarize(build)
    assert (summary.trainable_params, summary.non_trainable_params) == (8 + 4, 15 + 12 + 4)
    assert summary.layers[-1].weights_text == "gamma 2 + beta 2 + moving_mean 2 frozen + moving_variance 2 frozen"
    assert summary.buffers == 0


def test_a_frozen_model_has_no_trainable_params(summarize: Any) -> None:
    """`model.trainable = False` holds for layers added to it before and after."""

    def build() -> keras.Model:
        model = shared()
        model.trainable = False
        return model

    assert summarize(build).trainable_params == 0


def test_tied_weights_count_once(summarize: Any) -> None:
    """A head that uses the embedding's variable is tied to it."""

    class Head(L.Layer):
        def __init__(self, embedding: Any) -> None:
            super().__init__(name="head")
            self.kernel = embedding.embeddings
            self.bias = self.add_weight(shape=(50,), name="bias")

        def call(self, x: Any) -> Any:
            return keras.ops.matmul(x, keras.ops.transpose(self.kernel)) + self.bias

    def build() -> keras.Model:
        ids = keras.Input((7,), dtype="int32")
        embedding = L.Embedding(50, 8, name="tokens")
        return keras.Model(ids, Head(embedding)(embedding(ids)) if embedding.build(None) is None else None)

    summary = summarize(build)
    assert summary.params == 50 * 8 + 50
    assert summary.layers[-1].weights_text == "embeddings 50x8 = tokens.embeddings + bias 50"
    assert summary.flops.value == 2 * 7 * 8 * 50


def test_layers_of_layers_are_one_row(summarize: Any) -> None:
    """A wrapper shows all its weights, named by the way to them."""

    def build() -> keras.Model:
        x = keras.Input((10, 4))
        y = L.Bidirectional(L.LSTM(3, return_sequences=True), name="both")(x)
        return keras.Model(x, L.MultiHeadAttention(2, 5, name="attention")(y, y))

    both, attention = summarize(build).layers[1:]
    assert [weight.name for weight in both.weights[:3]] == [
        "forward/kernel",
        "forward/recurrent_kernel",
        "forward/bias",
    ]
    assert both.params == 2 * 4 * 3 * (4 + 3 + 1)
    assert [weight.name for weight in attention.weights][::2] == [
        "query/kernel",
        "key/kernel",
        "value/kernel",
        "attention_output/kernel",
    ]
    assert not both.container


def test_packed_weights_count_what_they_stand_for(summarize: Any) -> None:
    """A 4-bit kernel has the shape of the kernel it replaces, and the bytes it really takes."""

    def build() -> keras.Model:
        model = keras.Sequential([keras.Input((8,)), L.Dense(16, use_bias=False)])
        model.quantize("int4")
        return model

    kernel = next(weight for weight in summarize(build).layers[0].weights if weight.name == "kernel")
    assert (kernel.shape, kernel.dtype, kernel.elements, kernel.bytes) == ((8, 16), "int4", 128, 64)
    assert not kernel.trainable


def test_precision_shows_in_outputs_and_weights(summarize: Any) -> None:
    """Mixed precision computes in half and stores in single precision."""

    def build() -> keras.Model:
        x = keras.Input((4,))
        return keras.Model(x, L.Dense(2, dtype="mixed_bfloat16")(x))

    summary = summarize(build)
    assert [str(spec) for spec in summary.outputs] == ["bfloat16[B, 2]"]
    assert summary.weight_bytes == 4 * 10


def test_a_layer_attached_beside_the_graph_counts(summarize: Any) -> None:
    """Weights that Keras counts and the graph does not reach have a row, never called."""

    def build() -> keras.Model:
        model = shared()
        model.extra = L.Dense(3, name="extra")
        model.extra.build((None, 2))
        return model

    summary = summarize(build)
    assert (summary.layers[-1].path, summary.layers[-1].calls, summary.layers[-1].params) == ("extra", 0, 9)
    assert summary.params == 72 + 18 + 9


def test_an_open_length_is_unknown_until_it_is_declared(summarize: Any) -> None:
    """Without a length there are no FLOPs, only a note; with one there are, and its name is shown."""

    def build() -> keras.Model:
        ids = keras.Input((None,), dtype="int32", name="ids")
        return keras.Model(ids, L.Dense(2)(L.Embedding(9, 4)(ids)))

    unknown = summarize(build)
    assert unknown.flops.value is None
    assert unknown.layers[-1].flops is None
    assert unknown.layers[-1].output_text == "[B, ?, 2]"
    assert "axis 1 of input 'ids'" in unknown.notes[0]
    known = summarize(build, "int32[B, T]", T=5)
    assert known.flops.value == 5 * 2 * 4 * 2
    assert [row.output_text for row in known.layers] == ["int32[B, T]", "[B, T, 4]", "[B, T, 2]"]
    assert summarize(build, "int32[B, 6]").layers[-1].output_text == "[B, 6, 2]"


def test_declared_inputs_name_the_ports(summarize: Any) -> None:
    """Inputs may be declared by name, in any order, or by position."""

    def build() -> keras.Model:
        a, b = keras.Input((3,), name="a"), keras.Input((None, 5), name="b")
        return keras.Model([a, b], L.Dense(1)(a) + L.Dense(1)(L.GlobalAveragePooling1D()(b)))

    expected = ["a float32[B, 3]", "b float32[B, 9, 5]"]
    for inputs in ({"b": "float32[B, 9, 5]", "a": "float32[B, 3]"}, ["float32[B, 3]", "float32[B, 9, 5]"]):
        assert [str(port) for port in summarize(build, inputs).inputs] == expected


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        pytest.param(
            "float32[B, 9]", "input 'first' of the model is float32[B, 8], inputs: declares float32[B, 9]", id="size"
        ),
        pytest.param("float32[B, 8, 8]", "declares float32[B, 8, 8]", id="rank"),
        pytest.param(["float32[B, 8]", "float32[B, 8]"], "the model has the inputs first float32[B, 8]", id="number"),
        pytest.param({"second": "float32[B, 8]"}, "inputs: names second", id="name"),
    ],
)
def test_inputs_that_do_not_fit(summarize: Any, inputs: object, words: str) -> None:
    """The error names the input and both shapes."""
    with pytest.raises(ModelBudgetError) as caught:
        summarize(shared, inputs)
    assert words in str(caught.value)
    assert str(caught.value).startswith("model: ")


def test_the_users_model_is_left_as_it_is() -> None:
    """A live model keeps its values, its calls and its metrics; nothing about it changes."""
    model = nested()
    model.compile("sgd", "mse")
    values = [variable.numpy().tolist() for variable in model.variables]
    before = [(len(one._inbound_nodes), len(one._outbound_nodes)) for one in _everything(model)]
    summary = backend.summarize(model, name="live", inputs=parse("float32[B, 6]"), sizes={"B": 3}, built_here=False)
    assert summary.params == 119
    assert [variable.numpy().tolist() for variable in model.variables] == values
    assert [(len(one._inbound_nodes), len(one._outbound_nodes)) for one in _everything(model)] == before


def _everything(model: Any) -> list[Any]:
    return [
        model,
        *(one for layer in model.layers for one in ([layer, *layer.layers] if hasattr(layer, "layers") else [layer])),
    ]


class GraphWithMore(keras.Model):
    """A functional model whose own call adds a layer to its graph."""

    def __init__(self) -> None:
        x = keras.Input((4,), name="x")
        super().__init__(x, L.Dense(3, name="inside")(x))
        self.more = L.Dense(2, name="more")

    def call(self, x: Any) -> Any:
        return self.more(super().call(x))


@pytest.mark.parametrize("live", [False, True], ids=["built here", "live"])
def test_a_graph_with_a_call_of_its_own(summarize: Any, live: bool) -> None:
    """What counts is what the call does; inputs are known from the graph."""
    if live:
        model = GraphWithMore()
        model(np.ones((1, 4), "float32"))
        summary = backend.summarize(model, name="live", inputs=None, sizes={}, built_here=False)
    else:
        summary = summarize(GraphWithMore)
    assert [(row.path, row.output_text, row.connected_to, row.params, row.calls) for row in summary.layers] == [
        ("inside", "[B, 3]", (), 15, 1),
        ("more", "[B, 2]", (("inside",),), 8, 1),
    ]
    assert [str(port) for port in summary.inputs] == ["x float32[B, 4]"]
    assert [str(spec) for spec in summary.outputs] == ["float32[B, 2]"]
    assert summary.flops.value == 2 * 4 * 3 + 2 * 3 * 2


def test_a_layer_that_another_calls_and_the_model_holds(summarize: Any) -> None:
    """A layer inside another layer of the graph, also set on the model, is a row with its own shapes."""

    class Twice(L.Layer):
        def __init__(self, inner: Any) -> None:
            super().__init__(name="twice")
            self.inner = inner

        def call(self, x: Any) -> Any:
            return self.inner(self.inner(x))

    def build() -> keras.Model:
        x, inner = keras.Input((4,), name="x"), L.Dense(4, name="inner")
        model = keras.Model(x, Twice(inner)(x))
        model.alias = inner
        return model

    rows = summarize(build).layers
    assert [(row.path, row.output_text, row.params, row.calls) for row in rows] == [
        ("x", "[B, 4]", 0, 1),
        ("twice", "[B, 4]", 20, 1),
        ("inner", "[B, 4]", 0, 2),
    ]
    assert rows[2].weights_text == "kernel 4x4 = twice.inner/kernel + bias 4 = twice.inner/bias"


def test_two_models_around_one_layer(summarize: Any) -> None:
    """A layer of two nested models is counted at the first, with each model's own shape."""

    def build() -> keras.Model:
        layer = L.Dense(3, name="layer")
        short, long = keras.Input((4,), name="short"), keras.Input((7, 4), name="long")
        first, second = keras.Model(short, layer(short), name="first"), keras.Model(long, layer(long), name="second")
        a, b = keras.Input((4,), name="a"), keras.Input((7, 4), name="b")
        return keras.Model([a, b], [first(a), second(b)])

    rows = {row.path: row for row in summarize(build).layers}
    assert [(rows[path].output_text, rows[path].params) for path in ("first/layer", "second/layer")] == [
        ("[B, 3]", 15),
        ("[B, 7, 3]", 0),
    ]


def test_what_is_inside_a_model_that_is_never_called_is_never_called(summarize: Any) -> None:
    """A discriminator held by a generator's class has params and no calls."""

    class Gan(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="gan")
            self.generator = keras.Sequential([keras.Input((3,)), L.Dense(4, name="make")], name="generator")
            self.critic = keras.Sequential([keras.Input((4,)), L.Dense(1, name="judge")], name="critic")
            self.critic_optimizer = keras.optimizers.Adam()

        def call(self, x: Any) -> Any:
            return self.generator(x)

    rows = summarize(Gan, "float32[B, 3]").layers
    assert [(row.path, row.calls, row.params) for row in rows] == [
        ("generator", 1, 0),
        ("generator/make", 1, 16),
        ("critic", 0, 0),
        ("critic/judge", 0, 5),
    ]


def test_an_open_length_of_a_graph_with_a_call_of_its_own(summarize: Any) -> None:
    """Without a size for an axis there are rows, shapes and params, and no FLOPs."""

    class Model(keras.Model):
        def __init__(self) -> None:
            x = keras.Input((None, 4), name="x")
            super().__init__(x, L.Dense(3, name="inside")(x))
            self.more = L.Dense(2, name="more")

        def call(self, x: Any) -> Any:
            return self.more(super().call(x))

    summary = summarize(Model)
    assert [(row.path, row.output_text, row.params, row.flops) for row in summary.layers] == [
        ("inside", "[B, ?, 3]", 15, None),
        ("more", "[B, ?, 2]", 8, None),
    ]
    assert [str(spec) for spec in summary.outputs] == ["float32[B, ?, 2]"]
    assert summary.flops.value is None
