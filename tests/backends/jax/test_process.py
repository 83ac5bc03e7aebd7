"""What is left of a count in the process: nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import os, sys, resource
os.environ["KERAS_BACKEND"] = "jax"
import flax.nnx as nnx, flax.linen as linen, equinox as eqx, jax, keras, numpy as np, torch
from jax._src import xla_bridge
from pytest_modelbudget import plan, summarize
from pytest_modelbudget.engine.run import summarize_entry
from pytest_modelbudget.entry import ModelEntry

cache = jax._src.compilation_cache
settings, state = dict(jax.config.values), np.random.get_state()[1].tolist()

def wide(rngs):
    jax.config.update("jax_enable_x64", True)
    np.random.seed(1)
    return nnx.Linear(2**15, 2**15, param_dtype="float64", rngs=rngs)

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
linear = summarize(wide, "float64[B, 32768]")
dense = summarize(lambda: linen.Dense(2**15), "float32[B, 32768]")
mlp = summarize(lambda key: eqx.nn.MLP(2**15, 2**15, 2**15, 1, key=key), "float32[32768]")
taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
assert linear.weight_bytes == 8 * (2**30 + 2**15) and str(linear.outputs[0]) == "float64[B, 32768]"
assert dense.params == 2**30 + 2**15 and mlp.params == 2 * (2**30 + 2**15)
assert taken < 200, taken
step = plan(lambda rngs: nnx.Linear(8, 8, rngs=rngs), "float32[2, 8]", training={"compile": "xla"})
assert step.peak_bytes > 3 * 4 * (8 * 8 + 8), step.notes
assert not (cache._cache_checked or cache._cache_initialized)
assert dict(jax.config.values) == settings and np.random.get_state()[1].tolist() == state
assert not xla_bridge._backends, xla_bridge._backends
assert "modelbudget" not in repr(vars(nnx.Linear)) and "modelbudget" not in repr(vars(eqx.nn.Linear))

def of_keras():
    x = keras.Input((4,))
    scale = keras.ops.arange(3.0)
    return keras.Model(x, keras.layers.Dense(3)(x) * scale)

of_another = summarize(of_keras)
assert [layer.path for layer in of_another.layers][:2] == ["input_layer", "dense"], of_another.layers

def asks_for_values():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.set_weights([weight + 1 for weight in model.get_weights()])
    return model

assert summarize_entry(ModelEntry(id="model", build=asks_for_values, framework="keras")).params == 15

def compiled():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("adam", "mse")
    return model

assert not any("optimizer" in note for note in summarize(compiled).notes), summarize(compiled).notes
assert summarize(lambda: torch.nn.Linear(4, 3), "float32[B, 4]").params == of_another.params == 15
assert float(jax.numpy.ones(3).sum()) == 3 and xla_bridge._plugins_registered
again = plan(lambda rngs: nnx.Linear(8, 8, rngs=rngs), "float32[2, 8]", training={"compile": "xla"})
assert again.peak_bytes == step.peak_bytes and float(jax.numpy.ones(3).sum()) == 3
print("nothing left")
"""


@pytest.mark.slow
def test_a_process_is_as_it_was() -> None:
    """No memory for weights, no device started, settings and classes as before; other frameworks go on as they did."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "nothing left", done.stderr
