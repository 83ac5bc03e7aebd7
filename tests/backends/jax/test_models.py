"""What rows say of models of flax.nnx, flax.linen and equinox, each against counts by hand."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as linen
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pytest_modelbudget import summarize
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Layer
from tests.backends.jax.published import batch_norm, listed
from tests.backends.jax.test_stacks import PRODUCT, LinenStack, by_path


def weights(layer: Layer) -> list[str]:
    return [
        f"{weight.name} {weight.role}{f' = {weight.tied_to}' if weight.tied_to else ''}" for weight in layer.weights
    ]


class NnxParts(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(10, 4, rngs=rngs)
        self.twice = nnx.Linear(4, 4, rngs=rngs)
        self.alias = self.twice
        self.tied = nnx.Linear(4, 4, rngs=rngs)
        self.tied.kernel = self.twice.kernel
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.lora = nnx.LoRA(4, 2, 4, rngs=rngs)
        self.rnn = nnx.RNN(nnx.OptimizedLSTMCell(4, 6, rngs=rngs))
        self.never = listed([nnx.Linear(3, 3, rngs=rngs)])
        self.steps = nnx.Variable(jnp.zeros((), "int32"))
        self.table, self.offsets = jnp.arange(4.0), np.arange(4)

    def __call__(self, ids: Any, *, scale: float) -> dict[str, Any]:
        x = self.embed(ids)
        x = self.alias(self.twice(x)) + self.tied(x)
        x = self.lora(self.drop(self.norm(x))) * scale * self.table
        return {"last": self.rnn(x), "mean": x.mean(1)}


class LinenParts(linen.Module):
    def setup(self) -> None:
        self.embed = linen.Embed(10, 4)
        self.twice = linen.Dense(4)
        self.norm = linen.BatchNorm()
        self.drop = linen.Dropout(0.5)

    def __call__(self, ids: Any, train: bool) -> Any:
        x = self.twice(self.perturb("added", self.twice(self.embed(ids))))
        self.sow("intermediates", "seen", x)
        return self.embed.attend(self.drop(self.norm(x, not train), deterministic=not train))


class EquinoxParts(eqx.Module):
    embed: Any
    twice: Any
    copy: Any
    norm: Any
    drop: Any
    table: Any

    def __init__(self, key: Any) -> None:
        head = eqx.nn.Linear(4, 10, use_bias=False, key=key)
        pair = eqx.nn.Embedding(10, 4, key=key), head
        self.embed = eqx.nn.Shared(pair, lambda pair: pair[1].weight, lambda pair: pair[0].weight)
        self.twice = self.copy = eqx.nn.Linear(4, 4, key=key)
        self.norm = batch_norm(4)
        self.drop = eqx.nn.Dropout(0.5)
        self.table = jnp.arange(3)

    def __call__(self, token: Any, state: Any, *, key: Any = None) -> Any:
        embed, head = self.embed()
        x, state = self.norm(self.copy(self.twice(self.twice(embed(token)))), state)
        return head(self.drop(x, key=key)), state


def test_nnx() -> None:
    """Shared modules and variables count once, state is no params, keys are nothing, and an adapter is its parts."""
    summary = summarize(NnxParts, {"ids": "int32[B, T]", "scale": 2.0}, batch=2, dims={"T": 5})
    rows = by_path(summary)
    lstm = 4 * 6 * (4 + 6 + 1)
    assert summary.params == 10 * 4 + (4 * 4 + 4) + 4 + 2 * 4 + (4 * 2 + 2 * 4) + lstm + 3 * 3 + 3
    assert summary.buffers == 2 * 4 + 1 + 4 + 4
    assert summary.flops.value == 10 * (3 * PRODUCT + 2 * (4 * 2 + 2 * 4) + 2 * 24 * (4 + 6))
    assert weights(rows["tied"]) == ["kernel param = twice.kernel", "bias param"]
    assert weights(rows["(root)"]) == ["steps buffer", "table buffer", "offsets buffer"]
    assert "alias" not in rows
    assert (rows["twice"].calls, rows["never.0"].calls, rows["rnn.cell"].calls) == (2, 0, 5)
    assert rows["add"].connected_to == (("twice", "tied"),)
    assert rows["norm"].connected_to == (("add",),)
    assert str(rows["rnn"].outputs[0][0]) == "float32[B, T, 6]"
    assert [str(spec) for spec in summary.outputs] == ["float32[B, T, 6]", "float32[B, 4]"]


def test_linen() -> None:
    """A model that has no weights before its first call gets them by one, with the keys that it asks for.

    What a call leaves, or is perturbed by, is no weight.
    """
    summary = summarize(LinenParts, {"ids": "int32[B, T]", "train": True}, dims={"T": 5})
    rows = by_path(summary)
    assert summary.params == 10 * 4 + 4 * 4 + 4 + 2 * 4
    assert summary.buffers == 2 * 4
    assert summary.flops.value == 5 * (2 * PRODUCT + 2 * 4 * 10)
    assert rows["embed"].calls == rows["twice"].calls == 2
    assert rows["embed"].flops == 5 * 2 * 4 * 10
    assert weights(rows["norm"]) == ["bias param", "scale param", "mean buffer", "var buffer"]
    assert summary.non_embedding_params == summary.params - 10 * 4


def test_equinox() -> None:
    """A model of one example with its state; one array at two places counts once, and it is said what becomes of it."""
    summary = summarize(lambda key: eqx.nn.make_with_state(EquinoxParts)(key), "int32[]")
    rows = by_path(summary)
    assert summary.params == 10 * 4 + 4 * 4 + 4 + 2 * 4
    assert summary.buffers == 2 * 4 + 1 + 3  # means and variances, the batches seen, the table
    assert summary.flops.value == 3 * PRODUCT + 2 * 4 * 10
    assert (rows["twice"].calls, rows["copy"].calls) == (2, 1)
    assert weights(rows["copy"]) == ["weight param = twice.weight", "bias param = twice.bias"]
    assert any("copy.weight and twice.weight are one array" in note for note in summary.notes)
    assert [str(spec) for spec in summary.outputs] == ["float32[10]"]


class LinenTwice(linen.Module):
    def setup(self) -> None:
        self.dense = linen.Dense(4)

    def __call__(self, x: Any) -> Any:
        return self.once(self.once(x))

    def once(self, x: Any) -> Any:
        return self.dense(x)


class LinenJitted(linen.Module):
    @linen.jit
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.Dropout(0.5, deterministic=True)(linen.Dense(4)(x))


class EquinoxScaled(eqx.nn.Linear):
    def __call__(self, x: Any, *, key: Any = None) -> Any:
        return super().__call__(x, key=key) * 2


def equinox_sequence(key: Any) -> Any:
    layers = [eqx.nn.Linear(4, 4, key=key), EquinoxScaled(4, 4, key=key)]
    return eqx.nn.Sequential([eqx.nn.Sequential(layers)])


@pytest.mark.parametrize(
    ("build", "inputs", "calls"),
    [
        pytest.param(
            lambda: linen.Sequential([linen.Sequential([LinenTwice()])]), "float32[B, 4]",
            {"layers_0": 1, "layers_0.layers_0": 1, "layers_0.layers_0.dense": 2}, id="a method of its own",
        ),
        pytest.param(
            equinox_sequence, "float32[4]", {"layers.0": 1, "layers.0.layers.0": 1, "layers.0.layers.1": 1},
            id="the call of its base class",
        ),
        pytest.param(
            lambda: linen.Sequential([linen.WeightNorm(linen.Dense(4))]), "float32[B, 4]",
            {"layers_0": 1, "layers_0.layer_instance": 1}, id="a function run as a method",
        ),
        pytest.param(
            lambda: linen.Sequential([LinenJitted(), LinenJitted()]), "float32[B, 4]",
            {f"layers_{index}{below}": 1 for index in (0, 1) for below in ("", ".Dense_0", ".Dropout_0")},
            id="equal modules under jit",
        ),
        pytest.param(
            lambda: LinenStack().bind(LinenStack().init(jax.random.key(0), jnp.zeros((1, 4)))), "float32[B, 4]",
            {"blocks": 3, "blocks.norm": 3, "blocks.linear": 3, "blocks.add": 3}, id="bound to its variables",
        ),
    ],
)  # fmt: skip
def test_what_is_one_call(build: Any, inputs: str, calls: dict[str, int]) -> None:
    """Each call of a module counts once, whatever it is made of, and each module that runs has a row, also later."""
    first, again = (summarize(build, inputs, name="model") for _ in range(2))
    assert {layer.path: layer.calls for layer in first.layers} == calls
    assert first == again


class Loops(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.inside, self.jitted = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.jit(lambda layer, x: layer(x))(self.jitted, x)
        return jax.lax.while_loop(lambda x: x.sum() < 3, self.inside, x)


def test_a_loop_of_unknown_length_is_a_lower_bound() -> None:
    """What depends on values is named and not counted, nor are the calls in it; a compiled function is looked into."""
    summary = summarize(Loops, "float32[B, 4]")
    rows = by_path(summary)
    assert summary.flops.is_lower_bound
    assert summary.flops.uncounted == (("while", 1),)
    assert (rows["inside"].calls, rows["jitted"].calls, rows["jitted"].flops) == (None, 1, PRODUCT)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        pytest.param(lambda: Loops(nnx.Rngs(0)), "float32[T, 4]", id="nnx"),
        pytest.param(
            lambda: LinenParts().bind(LinenParts().init(jax.random.key(0), jnp.zeros((1, 2), "int32"), False)),
            {"ids": "int32[B, T]", "train": False}, id="linen, with its variables",
        ),
        pytest.param(lambda: eqx.nn.make_with_state(EquinoxParts)(jax.random.key(0)), "int32[]", id="equinox"),
    ],
)  # fmt: skip
def test_a_live_model_is_left_as_it_is(model: Any, inputs: Any) -> None:
    """It is counted like one that is built for that, and has the same arrays and the same attributes afterwards."""
    alive = model()
    leaves, structure = jax.tree.flatten(alive)
    first = summarize(alive, inputs, name="model", dims={"T": 5} if "T" in str(inputs) else None)
    again, same = jax.tree.flatten(alive)
    assert all(old is new for old, new in zip(leaves, again, strict=True))
    assert structure == same
    assert first == summarize(model, inputs, name="model", dims={"T": 5} if "T" in str(inputs) else None)


OUTER = nnx.Rngs(0)


class AsksForValues(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.rates = [float(rate) for rate in jnp.linspace(0, 1, 3)]


@pytest.mark.parametrize(
    ("build", "inputs", "message"),
    [
        pytest.param(lambda: nnx.Linear(2, 3, rngs=OUTER), "float32[B, 2]", "let it make its own", id="outer streams"),
        pytest.param(AsksForValues, "float32[B, 2]", "compute them with numpy", id="values while it builds"),
        pytest.param(partial(lambda a, b: a, 1), None, "functools:partial cannot be called", id="arguments that lack"),
        pytest.param(LinenParts, None, "has no weights before it is called", id="linen without inputs"),
        pytest.param(
            lambda key: eqx.nn.Linear(4, 3, key=key), "float32[B, 4]", "leave B out", id="a batch for equinox"
        ),
        pytest.param(lambda: linen.Dense(3), "int32[]", "cannot be called with 0 int32[]", id="inputs that do not fit"),
        pytest.param(
            lambda: linen.Dense(3), "qint8[B, 2]", "no tensors of dtype 'qint8'", id="a dtype that JAX has not"
        ),
    ],
)
def test_mistakes(build: Any, inputs: Any, message: str) -> None:
    """What cannot be counted is refused with its cure."""
    with pytest.raises(ModelBudgetError) as error:
        summarize(build, inputs)
    assert message in str(error.value)


def test_a_module_that_a_builder_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays that it makes while it is imported are its own, for whoever uses it later."""
    (tmp_path / "imported_late.py").write_text("import jax.numpy as jnp\n\nTABLE = jnp.arange(4.0)\n")
    monkeypatch.syspath_prepend(tmp_path)

    class Scaled(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return linen.Dense(3)(x * import_module("imported_late").TABLE)

    def build() -> Any:
        import_module("imported_late")
        return Scaled()

    assert summarize(build, "float32[B, 4]").params == 4 * 3 + 3
    assert import_module("imported_late").TABLE.tolist() == [0, 1, 2, 3]


class Products(linen.Module):
    """Nothing but products, over pixels that are all there: XLA counts the rest too."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.Conv(8, (3, 3), padding="VALID", use_bias=False)(x)
        x = linen.Conv(8, (3, 3), (2, 2), padding="VALID", feature_group_count=4, use_bias=False)(x)
        return linen.Dense(5, use_bias=False)(x.reshape(x.shape[0], -1))


def test_flops_are_those_that_xla_counts() -> None:
    """Where a model is made of products alone, JAX' own analysis of its cost is the same number."""
    model, images = Products(), jax.ShapeDtypeStruct((2, 12, 12, 3), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    analysis = jax.jit(model.apply).lower(variables, images).cost_analysis()
    assert summarize(Products, "float32[B, 12, 12, 3]", batch=2).flops.value == analysis["flops"]


@flax.struct.dataclass
class Packed:
    """Whole numbers and their scales, as libraries of quantisation keep them."""

    values: Any
    scale: Any


def packed() -> Packed:
    return Packed(jnp.zeros((4, 8), "int8"), jnp.zeros((1, 8)))


class NnxPacked(nnx.Module):
    def __init__(self) -> None:
        self.kernel = nnx.data(Packed(*(nnx.Param(array) for array in (packed().values, packed().scale))))

    def __call__(self, x: Any) -> Any:
        return x @ (self.kernel.values[...] * self.kernel.scale[...])


class LinenPacked(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        kernel = self.param("kernel", lambda key: packed())
        return x @ (kernel.values * kernel.scale)


class EquinoxPacked(eqx.Module):
    kernel: Packed

    def __init__(self) -> None:
        self.kernel = packed()

    def __call__(self, x: Any) -> Any:
        return x @ (self.kernel.values * self.kernel.scale)


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        pytest.param(NnxPacked, "float32[B, 4]", id="nnx"),
        pytest.param(LinenPacked, "float32[B, 4]", id="linen"),
        pytest.param(EquinoxPacked, "float32[4]", id="equinox"),
    ],
)
def test_a_weight_in_parts(build: Any, inputs: str) -> None:
    """Each array of a structure is a weight with its own bytes, none is lost, and products of whole numbers count."""
    summary = summarize(build, inputs)
    [row] = summary.layers
    assert [weight.name for weight in row.weights] == ["kernel.values", "kernel.scale"]
    assert summary.weight_bytes == 4 * 8 + 4 * 8
    assert summary.flops.value == 2 * 4 * 8


class Attentive(linen.Module):
    @linen.compact
    def __call__(self, ids: Any) -> Any:
        x = linen.Embed(10, 8)(ids)
        x = x + linen.MultiHeadDotProductAttention(2)(linen.LayerNorm()(x))
        return x + linen.Dense(8)(linen.gelu(linen.Dense(16)(x)))


def test_activations_are_what_jax_saves() -> None:
    """Every array that JAX itself lists as a residual, but parameters, inputs and single numbers."""
    saved_residuals = pytest.importorskip("jax._src.ad_checkpoint").saved_residuals
    model, ids = Attentive(), jnp.zeros((2, 6), "int32")
    params = jax.eval_shape(model.init, jax.random.key(0), ids)
    listed_arrays = saved_residuals(lambda params: model.apply(params, ids), params)
    made = [aval for aval, source in listed_arrays if aval.shape and "argument" not in source]
    summary = summarize(Attentive, "int32[B, T]", batch=2, dims={"T": 6})
    assert summary.activation_bytes == sum(aval.size * aval.dtype.itemsize for aval in made)
