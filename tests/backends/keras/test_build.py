"""Building without memory for weights, and leaving everything as it was."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L

from pytest_modelbudget.backends import keras as backend
from pytest_modelbudget.backends.keras import pins, private, private_torch
from pytest_modelbudget.errors import ModelBudgetError


def small() -> keras.Model:
    return keras.Sequential([keras.Input((8,)), L.Dense(4), L.BatchNormalization(), L.Dense(2)])


def compiled() -> keras.Model:
    model = small()
    model.compile(optimizer="adam", loss="mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    return model


def seeded() -> keras.Model:
    keras.utils.set_random_seed(7)
    return small()


def cleared() -> keras.Model:
    keras.utils.clear_session()
    return small()


def configured() -> keras.Model:
    keras.config.set_dtype_policy("mixed_float16")
    keras.config.set_epsilon(1e-3)
    return small()


def breaking() -> None:
    keras.utils.clear_session()
    configured()
    raise ZeroDivisionError


def drawing() -> keras.Model:
    keras.random.normal((3,))
    np.random.rand(3)
    random.random()
    return keras.Sequential([small(), L.Dropout(0.5)])


def from_arrays() -> keras.Model:
    model = small()
    model.scale = keras.Variable(np.ones((3, 5), "float16"), trainable=False, name="scale")
    return model


BUILDERS = [
    pytest.param(small, 9 * 4 + 4 * 4 + 5 * 2, id="plain"),
    pytest.param(compiled, 62, id="compiled, with a built optimizer"),
    pytest.param(seeded, 62, id="sets the seed"),
    pytest.param(cleared, 62, id="clears the session"),
    pytest.param(configured, 62, id="sets policy and epsilon"),
    pytest.param(drawing, 62, id="draws random numbers"),
    pytest.param(from_arrays, 62 + 15, id="a variable from an array"),
]


@pytest.mark.parametrize(("build", "params"), BUILDERS)
def test_no_variable_has_a_value(build: Callable[[], Any], params: int) -> None:
    """Whatever a builder does, no weight, optimizer slot or metric is allocated."""
    with backend.global_state_restored(), backend.abstract():
        model = build()
        variables = [*model.variables, *(model.optimizer.variables if model.compiled else [])]
    assert all(variable._value is None for variable in variables)
    summary = backend.summarize(model, name="model", inputs=None, sizes={"B": 2}, built_here=True)
    assert summary.params == params
    assert all(variable._value is None for variable in variables)


@pytest.mark.parametrize(("build", "params"), BUILDERS)
def test_everything_is_as_before(build: Callable[[], Any], params: int) -> None:
    """Names, policy, settings, random state and the list of variables without value survive a build."""
    keras.config.set_dtype_policy("bfloat16")
    try:
        before = _state()
        with backend.global_state_restored(), backend.abstract():
            model = build()
        assert _state() == before
        backend.summarize(model, name="model", inputs=None, sizes={}, built_here=True)
        assert _state() == before
        known = before["names"].get("dense", 0)
        assert L.Dense(1).name == (f"dense_{known}" if known else "dense")
    finally:
        keras.config.set_dtype_policy("float32")


class Raising(L.Layer):
    """A layer that fails while a model is being built, in the middle of Keras' own scopes."""

    def build(self, shape: Any) -> None:
        self.inner = L.Dense(3)
        self.inner.build(shape)
        raise ZeroDivisionError

    def call(self, x: Any) -> Any:
        return self.inner(x)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(breaking, id="after changing settings"),
        pytest.param(lambda: drawing().no_such_thing(), id="after drawing numbers"),
        pytest.param(lambda: keras.Sequential([keras.Input((2,)), L.Dense(2), Raising()]), id="in a layer"),
    ],
)
def test_everything_is_as_before_when_the_builder_raises(build: Callable[[], Any]) -> None:
    """An error inside a nested build restores the state all the same."""
    keras.random.normal((1,))  # now the session has a generator of seeds
    before = _state()
    with (
        pytest.raises((ZeroDivisionError, AttributeError)),
        backend.global_state_restored(),
        backend.abstract(),
        backend.global_state_restored(),
        backend.abstract(),
    ):
        build()
    assert _state() == before
    assert L.Dense(1)(keras.Input((2,))).shape == (None, 1)
    assert float(keras.ops.sum(keras.Variable(np.ones(3)))) == 3.0


def _state() -> dict[str, Any]:
    """All that Keras, its backend, python and numpy keep for a thread or a process, as values that can be compared."""
    from keras.src.backend.common import global_state

    trackers = (global_state.GLOBAL_STATE_TRACKER, global_state.GLOBAL_SETTINGS_TRACKER)
    policy = keras.config.dtype_policy().name  # kept by Keras from the first look at it
    return {
        "names": dict(global_state.get_global_attribute("object_name_uids") or {}),
        "waiting": len(global_state.get_global_attribute("uninitialized_variables") or []),
        "scope": global_state.get_global_attribute("stateless_scope"),
        "trackers": [(id(one), {key: _frozen(value) for key, value in vars(one).items()}) for one in trackers],
        "policy": policy,
        "settings": (keras.config.epsilon(), keras.config.floatx(), keras.config.image_data_format()),
        "python": random.getstate(),
        "numpy": tuple(map(str, np.random.get_state())),
        "seed": getattr(keras.src.utils.rng_utils, "get_random_seed", int)(),
        "backend": _backend_random(),
        "patched": [vars(owner)["__call__"] for owner in (keras.layers.Layer, keras.Operation)],
    }


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, list):
        return list(map(id, value))
    generator = getattr(value, "state", None)  # the session's generator of seeds moves with each draw
    return (id(value), None if generator is None else keras.ops.convert_to_numpy(generator.value).tolist())


def _backend_random() -> Any:
    if keras.backend.backend() == "torch":
        return sys.modules["torch"].get_rng_state().tolist()
    if keras.backend.backend() == "tensorflow":
        context = sys.modules["tensorflow.python.eager.context"].context()
        return (context._seed, getattr(context, "_rng", None) and context._rng.getstate())
    return None  # jax keeps none


def test_names_do_not_depend_on_what_was_built_before(summarize: Any) -> None:
    """The first and the third build of a model have the same names, also after the session had counters of None."""
    keras.utils.clear_session()
    first = [layer.path for layer in summarize(small).layers]
    small()
    assert first == ["dense", "batch_normalization", "dense_1"]
    assert [layer.path for layer in summarize(small).layers] == first
    assert [layer.path for layer in summarize(small).layers] == first


def test_the_users_next_symbolic_call_allocates_nothing() -> None:
    """Variables built without value are not filled in later, when any other model is called."""
    with backend.global_state_restored(), backend.abstract():
        model = small()
    L.Dense(3)(keras.Input((4,)))
    with keras.StatelessScope():
        pass
    assert all(variable._value is None for variable in model.variables)


def test_the_policy_of_the_session_holds_inside(summarize: Any) -> None:
    """A model is built under the policy the user set."""
    keras.config.set_dtype_policy("bfloat16")
    try:
        summary = summarize(small)
    finally:
        keras.config.set_dtype_policy("float32")
    assert {weight.dtype for layer in summary.layers for weight in layer.weights} == {"bfloat16"}
    assert summary.weight_bytes == 2 * 62


def test_private_names_of_keras() -> None:
    """Each private name this backend leans on is still there; a Keras release that renames one fails here first."""
    assert pins.missing(pins.BUILDING_CHECKS) == (), f"Keras {keras.__version__}: {pins.real_build()}"
    assert pins.missing(pins.reading_checks()) == (), f"Keras {keras.__version__}: {pins.unreadable()}"
    layer = L.Dense(2)
    output = layer(keras.Input((3,)))
    model = keras.Model(output._keras_history.operation._inbound_nodes[0].input_tensors, output)
    assert [variable.name for variable in private.own_variables(layer)] == ["kernel", "bias"]
    assert private.nodes_of(model, layer) == layer._inbound_nodes
    assert private.history(output) == (layer, layer._inbound_nodes[0])
    assert private.overrides_build(layer)
    assert not private.overrides_build(L.ReLU())
    assert private.variable_class().__name__ in ("Variable", "KerasVariable")
    assert (private.optimizer_keys() is not None) == (keras.backend.backend() == "tensorflow")
    assert (private_torch.torch_layer() is not None) == (keras.backend.backend() == "torch")
    assert private.plain_slot().__module__ == "keras.src.optimizers.base_optimizer"


def _gone() -> None:
    raise AttributeError


@pytest.mark.parametrize("name", pins.BUILDING_CHECKS)
@pytest.mark.filterwarnings("error")
def test_a_keras_that_lacks_a_name_builds_for_real(monkeypatch: pytest.MonkeyPatch, summarize: Any, name: str) -> None:
    """With a warning that names it and the version; the count is as right as ever, for a class too."""
    expected = summarize(small)
    monkeypatch.setattr(pins, "BUILDING_CHECKS", {**pins.BUILDING_CHECKS, name: _gone})
    said = re.escape(f"Keras {keras.__version__} has no {name}: models are built with all")
    with pytest.warns(UserWarning, match=said):
        summary = summarize(small)
    with pytest.warns(UserWarning, match=said):
        live = backend.summarize(small(), name="live", inputs=None, sizes={}, built_here=False)
    assert (summary.params, summary.flops, live.params) == (expected.params, expected.flops, expected.params)
    assert [row.output_text for row in summary.layers] == [row.output_text for row in expected.layers]


def test_names_that_moved_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module or class laid out otherwise is seen, not only met on the way."""
    monkeypatch.setattr(private, "global_state", None)
    assert [name for name in pins.missing(pins.BUILDING_CHECKS) if name.startswith("global_state")] == list(
        pins.BUILDING_CHECKS
    )[:3]
    monkeypatch.setattr(private, "variable_class", lambda: next(iter(())))
    assert "Variable._deferred_initialize" in pins.missing(pins.BUILDING_CHECKS)


@pytest.mark.parametrize(
    ("owner", "name", "value", "error"),
    [
        pytest.param(
            pins, "reading_checks", lambda: {"Function._nodes": _gone}, "has no Function._nodes, which", id="moved"
        ),
        pytest.param(keras, "__version__", "3.11.3", "is not supported: install 3.12 or later", id="too old"),
    ],
)
def test_a_keras_that_cannot_be_read_is_an_error(
    monkeypatch: pytest.MonkeyPatch, summarize: Any, owner: Any, name: str, value: Any, error: str
) -> None:
    """Without the graph of a model there are no rows, which the error says with the version."""
    monkeypatch.setattr(owner, name, value)
    pins.unreadable.cache_clear()
    try:
        with pytest.raises(ModelBudgetError, match=rf"model: Keras {keras.__version__} {error}"):
            summarize(small)
    finally:
        pins.unreadable.cache_clear()


def test_a_model_without_values_does_not_run() -> None:
    """What was built for counting and kept by its builder says so, where Keras would draw new weights at each call."""
    with backend.global_state_restored(), backend.abstract():
        model = keras.Sequential([keras.Input((4,)), L.Dense(2)])
    with pytest.raises(ModelBudgetError, match=r"the weight '.*dense/kernel' has no values: its model was built for"):
        model(np.ones((1, 4), "float32"))
    assert model(keras.Input((4,))).shape == (None, 2)


HUGE = """
import keras, sys
from keras import layers as L, ops
from pytest_modelbudget.backends import keras as backend
from pytest_modelbudget.inputs import parse

WIDTH, HEADS, BLOCKS, WORDS = 4096, 32, 32, 32000

class Block(L.Layer):
    def __init__(self):
        super().__init__()
        self.before, self.between = L.LayerNormalization(), L.LayerNormalization()
        self.attention = L.MultiHeadAttention(HEADS, WIDTH // HEADS)
        self.up, self.down = L.Dense(4 * WIDTH, activation="gelu"), L.Dense(WIDTH)

    def call(self, x):
        y = self.before(x)
        x = x + self.attention(y, y, use_causal_mask=True)
        return x + self.down(self.up(self.between(x)))

class Gpt(keras.Model):
    def __init__(self):
        super().__init__()
        self.tokens, self.blocks = L.Embedding(WORDS, WIDTH), [Block() for _ in range(BLOCKS)]
        self.norm, self.head = L.LayerNormalization(), L.Dense(WORDS, use_bias=False)

    def call(self, ids):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

def functional():
    ids = keras.Input((2048,), dtype="int32")
    x = L.Embedding(WORDS, WIDTH)(ids)
    for _ in range(BLOCKS):
        y = L.LayerNormalization()(x)
        x = x + L.MultiHeadAttention(HEADS, WIDTH // HEADS)(y, y, use_causal_mask=True)
        x = x + L.Dense(WIDTH)(L.Dense(4 * WIDTH, activation="gelu")(L.LayerNormalization()(x)))
    return keras.Model(ids, L.Dense(WORDS, use_bias=False)(L.LayerNormalization()(x)))

def stack():
    return keras.Sequential([keras.Input((8192,)), *(L.Dense(8192) for _ in range(100))])

def compiled():
    model = functional()
    model.compile("adam", "mse")
    return model

def rss():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

builders = {"functional": functional, "subclassed": Gpt, "stack": stack, "compiled": compiled}
backend.summarize(keras.Sequential([keras.Input((2,)), L.Dense(2)]), name="m", inputs=None, sizes={}, built_here=False)
before = rss()
with backend.global_state_restored(), backend.abstract():
    model = builders[sys.argv[1]]()
inputs = parse("int32[B, 2048]") if sys.argv[1] == "subclassed" else None
summary = backend.summarize(model, name="huge", inputs=inputs, sizes={"B": 1}, built_here=True)
print("found", summary.params, summary.flops.value, summary.optimizer_bytes, rss() - before)
"""

WIDTH, BLOCKS, WORDS, LENGTH = 4096, 32, 32_000, 2048
GPT = BLOCKS * (12 * WIDTH**2 + 13 * WIDTH) + 2 * WORDS * WIDTH + 2 * WIDTH
GPT_FLOPS = BLOCKS * (2 * 12 * LENGTH * WIDTH**2 + 4 * LENGTH**2 * WIDTH) + 2 * LENGTH * WIDTH * WORDS


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("kind", "params", "flops"),
    [
        pytest.param("functional", GPT, GPT_FLOPS, id="a GPT as a graph"),
        pytest.param("subclassed", GPT, GPT_FLOPS, id="a GPT as a class"),
        pytest.param("compiled", GPT, GPT_FLOPS, id="a GPT with an optimizer"),
        pytest.param("stack", 100 * (8192 * 8192 + 8192), 100 * 2 * 8192 * 8192, id="a stack"),
    ],
)
def test_billions_of_params_need_no_memory(kind: str, params: int, flops: int) -> None:
    """A model of 6.7 billion params, 25 GiB, is built and counted in less than 200 MiB."""
    assert params in (6_706_307_072, 6_711_705_600)
    run = subprocess.run([sys.executable, "-c", HUGE, kind], capture_output=True, text=True, check=True)
    found = next(line for line in run.stdout.splitlines() if line.startswith("found ")).split()[1:]
    assert (int(found[0]), int(found[1])) == (params, flops)
    if kind == "compiled":
        assert int(found[2]) >= 2 * 4 * params
    assert float(found[3]) < 200
