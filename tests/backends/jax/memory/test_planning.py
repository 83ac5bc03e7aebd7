"""Plans of JAX models against hand sums, optax's own states, a step written by hand, and what no recipe has."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from pytest_modelbudget import plan, units
from pytest_modelbudget.backends.jax.memory.compiled import hidden_bytes
from pytest_modelbudget.summary import Plan

optax = pytest.importorskip("optax")

BATCH, IN, WIDTH, OUT = 32, 64, 256, 10
PARAMS = IN * WIDTH + WIDTH + WIDTH * OUT + OUT
BUFFERS = 2 * WIDTH
"""Averages of the batch norm of the flax models, whose scale and bias are trained."""


class Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up, self.norm = nnx.Linear(IN, WIDTH, rngs=rngs), nnx.BatchNorm(WIDTH, rngs=rngs)
        self.down = nnx.Linear(WIDTH, OUT, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.down(nnx.relu(self.norm(self.up(x))))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(OUT)(nn.relu(nn.BatchNorm(use_running_average=False)(nn.Dense(WIDTH)(x))))


class Batched(eqx.Module):
    """A model of one example, which is called with a batch."""

    net: eqx.nn.MLP

    def __init__(self, key: Any) -> None:
        self.net = eqx.nn.MLP(IN, OUT, WIDTH, 1, key=key)

    def __call__(self, x: Any) -> Any:
        return jax.vmap(self.net)(x)


MODELS = {"nnx": (Nnx, 2 * WIDTH, BUFFERS), "linen": (Linen, 2 * WIDTH, BUFFERS), "equinox": (Batched, 0, 0)}
"""Builders, with the params and buffers that they have beside those of the two layers."""
INPUTS = f"float32[B, {IN}]"


def planned(model: str = "nnx", **training: Any) -> Plan:
    return plan(MODELS[model][0], INPUTS, training={"batch": BATCH, "loss": "cross_entropy", **training})


@pytest.mark.parametrize("model", MODELS)
def test_what_is_known_always_is_a_hand_sum(model: str) -> None:
    """Weights, gradients, two states for each and Adam's counter, buffers, the batch with its targets; no peak."""
    _, further, buffers = MODELS[model]
    result, size = planned(model, optimizer="adam"), 4 * (PARAMS + further)
    roles = result.by_role()
    held = {"param": size, "optimizer": 2 * size + 4, "input": BATCH * (4 * IN + 4), "buffer": 4 * buffers}
    made = {"gradient": size, "activation": roles["activation"]}
    assert roles == {role: bytes for role, bytes in {**held, **made}.items() if bytes}
    assert roles["activation"] >= 4 * BATCH * WIDTH
    loss = 4
    assert (result.peak_bytes, result.low_bytes) == (None, sum(held.values()) + loss)
    assert result.high_bytes is not None
    assert result.high_bytes > sum(held.values()) + sum(made.values())
    assert f"peak ? ({units.size(result.low_bytes)} to {units.size(result.high_bytes)}; XLA decides" in str(result)
    assert any("as they are written" in note for note in result.notes) == (model == "linen")


LEAVES = 6
STATES = {
    "sgd": ({"optimizer": "sgd"}, 0, 0),
    "momentum": ({"optimizer": "sgd", "optimizer_options": {"momentum": 0.9}}, 1, 0),
    "adamw": ({"optimizer": "adamw"}, 2, 1),
    "adagrad": ({"optimizer": "adagrad"}, 1, 0),
    "rmsprop": ({"optimizer": "rmsprop"}, 1, 0),
    "lion": ({"optimizer": "lion"}, 1, 1),
    "lamb": ({"optimizer": "lamb"}, 2, 1),
    "novograd": ({"optimizer": "novograd"}, 1, 1 + LEAVES),
    "accumulated": ({"optimizer": "adam", "gradient_accumulation": 4}, 3, 3),
    "callable": ({"optimizer": partial(optax.adam, 1e-3)}, 2, 1),
    "none": ({"optimizer": "none"}, 0, 0),
}


RARE = ("adagrad", "rmsprop", "lion", "novograd")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case in RARE else ()) for case in STATES]
)
def test_states_of_optimizers_are_copies_of_what_is_trained_and_counters(case: str) -> None:
    """So many copies of the params, and so many single numbers of four bytes, as each method is published."""
    recipe, copies, numbers = STATES[case]
    expected = copies * 4 * (PARAMS + 2 * WIDTH) + 4 * numbers
    assert planned(**recipe).by_role().get("optimizer", 0) == expected


@pytest.mark.slow
def test_states_without_a_formula_are_those_that_optax_makes() -> None:
    """Adafactor's factors and muon's parts have the bytes of real states of the same shapes."""
    params = nnx.to_pure_dict(nnx.state(Nnx(nnx.Rngs(0)), nnx.Param))
    for name, make in (("adafactor", optax.adafactor), ("muon", optax.contrib.muon)):
        real = sum(leaf.nbytes for leaf in jax.tree.leaves(make(1e-3).init(params)))
        assert planned(optimizer=name).by_role()["optimizer"] == real


def test_frozen_params_have_neither_gradient_nor_state() -> None:
    """`trainable` names what is trained: the rest stays, in its own row."""
    head = 4 * (WIDTH * OUT + OUT)
    roles = planned(optimizer="adam", trainable=["down.*"]).by_role()
    assert (roles["gradient"], roles["optimizer"]) == (head, 2 * head + 4)
    assert roles["param"] == 4 * (PARAMS + 2 * WIDTH)


class Tied(eqx.Module):
    embed: eqx.nn.Embedding
    head: eqx.nn.Linear

    def __init__(self, key: Any) -> None:
        self.embed = eqx.nn.Embedding(16, 8, key=key)
        linear = eqx.nn.Linear(8, 16, use_bias=False, key=key)
        self.head = eqx.tree_at(lambda layer: layer.weight, linear, self.embed.weight)

    def __call__(self, token: Any) -> Any:
        return self.head(self.embed(token))


def test_an_array_at_two_places_is_trained_as_two() -> None:
    """Equinox does so: each has a gradient and states, and they are two from the first step on."""
    roles = plan(Tied, "int32[]", training={"optimizer": "adam", "loss": "cross_entropy"}).by_role()
    both = 2 * 4 * 16 * 8
    assert (roles["param"], roles["gradient"], roles["optimizer"]) == (both, both, 2 * both + 4)


def test_half_precision_halves_weights_states_and_floating_inputs() -> None:
    """`bf16` casts params and inputs; averages and targets stay what they are."""
    whole, half = planned(optimizer="adam").by_role(), planned(optimizer="adam", precision="bf16").by_role()
    assert all(2 * half[role] == whole[role] for role in ("param", "gradient"))
    assert half["optimizer"] - 4 == (whole["optimizer"] - 4) // 2
    assert half["buffer"] == whole["buffer"]
    assert half["input"] == BATCH * (2 * IN + 4)


def by_hand() -> Any:
    """What XLA says of a step of the nnx model as its users write it."""
    graph, params, rest = nnx.split(nnx.eval_shape(lambda: Nnx(nnx.Rngs(0))), nnx.Param, ...)
    optimizer = optax.adam(1e-3)

    def step(params: Any, rest: Any, state: Any, x: Any, targets: Any) -> Any:
        def loss(params: Any) -> Any:
            model = nnx.merge(graph, params, jax.tree.map(lambda leaf: leaf, rest))
            scores = model(x)
            entropy = optax.softmax_cross_entropy_with_integer_labels(scores, targets).mean()
            return entropy, nnx.state(model, nnx.Not(nnx.Param))

        (value, after), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), after, state, value

    x, targets = jax.ShapeDtypeStruct((BATCH, IN), jnp.float32), jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    state = jax.eval_shape(optimizer.init, params)
    jitted = jax.jit(step, donate_argnums=(0, 1, 2), keep_unused=True)
    return jitted.lower(params, rest, state, x, targets).compile().memory_analysis()


@pytest.mark.slow
def test_the_compiled_peak_is_what_xla_says_of_a_step_by_hand() -> None:
    """Arguments, outputs without those that are arguments' new values, and temporaries; parts add up to it."""
    result, real = planned(optimizer="adam", compile="xla"), by_hand()
    sizes = real.argument_size_in_bytes + real.output_size_in_bytes - real.alias_size_in_bytes + real.temp_size_in_bytes
    assert result.peak_bytes == sum(part.bytes for part in result.parts) == pytest.approx(sizes, rel=0.01)
    assert result.by_role()["optimizer"] == 2 * 4 * (PARAMS + 2 * WIDTH) + 4
    assert result.notes[0] == f"XLA on this CPU, jax {jax.__version__}: arguments + outputs - aliases + temporaries"
    assert result.notes[1].startswith("at least")


def test_a_compiled_pass_holds_weights_inputs_and_what_it_gives() -> None:
    """Inference gives nothing up, and trains nothing."""
    result = plan(Batched, INPUTS, inference={"batch": BATCH, "compile": "xla"})
    held = 4 * (PARAMS + BATCH * IN + BATCH * OUT)
    hidden = 4 * BATCH * WIDTH
    assert result.peak_bytes is not None
    assert held < result.peak_bytes <= held + 2 * hidden
    bounds = plan(Batched, INPUTS, inference={"batch": BATCH})
    assert (bounds.low_bytes, bounds.peak_bytes) == (held, None)


class Convolved(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.conv(x).mean((1, 2))


def test_what_convolutions_take_inside_is_not_known() -> None:
    """XLA's sum is a lower bound of their peak, and the reason says so."""
    result = plan(Convolved, "float32[B, 16, 16, 3]", inference={"batch": 4, "compile": "xla"})
    assert result.peak_bytes is None
    assert result.low_bytes is not None
    assert result.low_bytes >= 4 * (9 * 3 * 8 + 8 + 4 * 16 * 16 * 3 + 4 * 8)
    assert "convolutions take more inside themselves" in result.notes[0]


def test_the_most_that_a_convolution_takes_has_its_columns() -> None:
    """Weights, the images, 27 numbers for each of the 4 x 16 x 16 places, two results of 8 channels, means and sums."""
    places, result = 4 * 16 * 16, plan(Convolved, "float32[B, 16, 16, 3]", inference={"batch": 4})
    convolved = 9 * 3 * 8 + 8 + places * 3 + places * 9 * 3 + 2 * places * 8
    assert result.high_bytes is not None
    assert 4 * convolved < result.high_bytes <= 4 * (convolved + places * 8 + 3 * 4 * 8)


PROGRAM = """HloModule jit_f, is_scheduled=true

%inner.1 (param_0: f32[8,16], param_1: bf16[16,4]) -> f32[8,4] {{
  %param_0 = f32[8,16]{{1,0}} parameter(0)
  %scores = f32[8,32]{{1,0}} dot(%param_0, %param_0), lhs_contracting_dims={{1}}
  %small = bf16[8,32]{{1,0}} convert(%scores)
  ROOT %dot = f32[8,4]{{1,0}} {operation}(%small, %small)
}}

ENTRY %main (a: f32[8,16], b: bf16[16,4]) -> f32[8,4] {{
  %a = f32[8,16]{{1,0}} parameter(0)
  ROOT %fusion = f32[8,4]{{1,0}} fusion(%a, %b), kind={kind}, calls=%inner.1, metadata={{op_name="x"}}
}}
"""


@pytest.mark.parametrize(
    ("kind", "operation", "hidden"),
    [
        pytest.param("kCustom", "dot", 8 * 32 * (4 + 2), id="library"),
        pytest.param("kLoop", "dot", 0, id="own"),
        pytest.param("kCustom", "add", 0, id="one-product"),
        pytest.param("kCustom", "convolution", None, id="convolution"),
    ],
)
def test_what_is_inside_a_fusion_of_a_library_is_added_up(kind: str, operation: str, hidden: int | None) -> None:
    """Neither what it is given nor what it gives; XLA's own fusions hold nothing."""
    assert hidden_bytes(PROGRAM.format(kind=kind, operation=operation)) == hidden


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        pytest.param({"compile": "none"}, "training.compile: JAX compiles what it runs with XLA", id="none"),
        pytest.param({"precision": "bf16-mixed"}, "dtype=jnp.bfloat16", id="mixed"),
        pytest.param({"checkpointing": "blocks"}, "nnx.remat", id="checkpointing"),
        pytest.param({"lora": {"rank": 2}}, "nnx.LoRA", id="lora"),
        pytest.param({"loss": "cce"}, "training.loss: cce is planned for torch models", id="fused-loss"),
        pytest.param({"sharding": {"fsdp": 2}}, "planned for torch models", id="sharding"),
        pytest.param({"fused": True}, "one implementation", id="fused"),
        pytest.param({"zero_grad": "after"}, "values of the step", id="zero-grad"),
        pytest.param({"kernels": "cpu"}, "compile: xla", id="kernels"),
        pytest.param({"optimizer": "ftrl"}, "optax has no ftrl: write one of adadelta", id="optimizer"),
        pytest.param({"optimizer": "none", "gradient_accumulation": 2}, "adds up the gradients", id="passes-alone"),
        pytest.param({"optimizer": os.getcwd}, "not a GradientTransformation", id="no-transformation"),
        pytest.param({"optimizer_options": {"beta": 1}}, "adamw cannot be made", id="options"),
        pytest.param({"trainable": ["head.*"]}, "one is 'down.bias'", id="trainable"),
        pytest.param({"loss": "nowhere:loss"}, "training.loss: nowhere:loss cannot be imported", id="loss"),
    ],
)
def test_what_has_no_meaning_is_refused_with_the_cure(recipe: dict[str, Any], reason: str) -> None:
    """No number is shown, and the reason names the key and what to do."""
    result = planned(**recipe)
    assert (result.peak_bytes, result.parts) == (None, ())
    assert reason in result.notes[0]


@pytest.mark.parametrize("compile", ["auto", pytest.param("xla", marks=pytest.mark.slow)])
def test_a_device_that_is_too_small_for_what_is_held_is_known_and_no_other(compile: str) -> None:
    """The compiler of a CPU says nothing of a GPU: a device fits never, does not fit or is not known."""
    recipe = {"batch": BATCH, "compile": compile}
    result = plan(Nnx, INPUTS, training=recipe, devices=["100 kB", "24 GB"])
    assert [fit.fits for fit in result.fits] == [False, None]
