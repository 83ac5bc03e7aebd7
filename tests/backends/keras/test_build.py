"""Building without memory for weights, and leaving everything as it was."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L

from pytest_modelbudget.backends import keras as backend
from pytest_modelbudget.backends.keras import private


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
    pytest.param(from_arrays, 62 + 15, id="a variable from an array"),
]


@pytest.mark.parametrize(("build", "params"), BUILDERS)
def test_no_variable_has_a_value(build: Callable[[], Any], params: int) -> None:
    """Whatever a builder does, no weight, optimizer slot or metric is allocated."""
    with backend.abstract():
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
        with backend.abstract():
            model = build()
        assert _state() == before
        backend.summarize(model, name="model", inputs=None, sizes={}, built_here=True)
        assert _state() == before
        known = before["names"].get("dense", 0)
        assert L.Dense(1).name == (f"dense_{known}" if known else "dense")
    finally:
        keras.config.set_dtype_policy("float32")


def test_everything_is_as_before_when_the_builder_raises() -> None:
    """An error inside a nested build restores the state all the same."""
    before = _state()
    with pytest.raises(ZeroDivisionError), backend.abstract(), backend.abstract():
        breaking()
    assert _state() == before
    assert L.Dense(1)(keras.Input((2,))).shape == (None, 1)
    assert float(keras.ops.sum(keras.Variable(np.ones(3)))) == 3.0


def _state() -> dict[str, Any]:
    from keras.src.backend.common import global_state

    return {
        "names": dict(global_state.get_global_attribute("object_name_uids") or {}),
        "waiting": len(global_state.get_global_attribute("uninitialized_variables") or []),
        "scope": global_state.get_global_attribute("stateless_scope"),
        "policy": keras.config.dtype_policy().name,
        "settings": (keras.config.epsilon(), keras.config.floatx(), keras.config.image_data_format()),
        "python": random.getstate(),
        "numpy": tuple(map(str, np.random.get_state())),
        "seed": keras.src.utils.rng_utils.get_random_seed(),
    }


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
    with backend.abstract():
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
    """Each private name this backend leans on is still there; a Keras release that renames one fails here."""
    assert private.variable_class().__name__ == "Variable"
    if keras.backend.backend() == "tensorflow":
        assert private.optimizer_keys() is not None
    layer = L.Dense(2)
    output = layer(keras.Input((3,)))
    model = keras.Model(output._keras_history.operation._inbound_nodes[0].input_tensors, output)
    assert [variable.name for variable in private.own_variables(layer)] == ["kernel", "bias"]
    assert private.nodes_of(model, layer) == layer._inbound_nodes
    assert private.history(output) == (layer, layer._inbound_nodes[0])
    assert private.overrides_build(layer)
    assert not private.overrides_build(L.ReLU())


HUGE = """
import keras, resource
from pytest_modelbudget.backends import keras as backend
def rss():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
before = rss()
with backend.abstract():
    model = keras.Sequential([keras.Input((8192,)), *(keras.layers.Dense(8192) for _ in range(100))])
summary = backend.summarize(model, name="huge", inputs=None, sizes={"B": 1}, built_here=True)
print(summary.params, summary.flops.value, rss() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
def test_billions_of_params_need_no_memory() -> None:
    """A model of 6.7 billion params, 25 GiB, is counted in less than 200 MiB."""
    run = subprocess.run([sys.executable, "-c", HUGE], capture_output=True, text=True, check=True)
    params, flops, added = run.stdout.split()
    assert int(params) == 100 * (8192 * 8192 + 8192) == 6_711_705_600
    assert int(flops) == 100 * 2 * 8192 * 8192
    assert float(added) < 200
