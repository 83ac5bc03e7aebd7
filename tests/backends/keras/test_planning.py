"""Keras models have no recorded steps: their plans are sums, counted by hand."""

from __future__ import annotations

import pytest

from pytest_modelbudget import plan, summarize

keras = pytest.importorskip("keras", minversion="3.0")

PARAMS = 20 * 32 + 32 + 32 + 1


def mlp(*, compiled: bool = False) -> keras.Model:
    """20 to 32 to 1."""
    model = keras.Sequential(
        [keras.Input((20,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(1)], name="mlp"
    )
    if compiled:
        model.compile("adam", "mse")
    return model


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [pytest.param("adamw", 2, id="adamw"), pytest.param("sgd", 0, id="sgd"), pytest.param("adagrad", 1, id="adagrad")],
)
def test_parts(optimizer: str, slots: int) -> None:
    """Weights, gradients and slots of 705 params, inputs of 8 samples; activations where the backend tells them."""
    found = plan(mlp, training={"batch": 8, "optimizer": optimizer}, devices="24 GB")
    roles = found.by_role()
    activations = roles.pop("activation", 0)
    expected = {"param": 4 * PARAMS, "gradient": 4 * PARAMS, "optimizer": slots * 4 * PARAMS, "input": 4 * 8 * 20}
    assert roles == {role: size for role, size in expected.items() if size}
    if keras.backend.backend() == "tensorflow":
        assert (found.peak_bytes, found.fits[0].fits) == (None, None)
        assert "tensorflow" in found.notes[0]
    else:
        assert found.peak_bytes == sum(expected.values()) + activations
    assert any(note.startswith("a sum of weights, gradients") for note in found.notes)


def test_a_compiled_model_brings_its_optimizer() -> None:
    """Two slots of Adam for each param, its count of steps and its learning rate."""
    model = mlp(compiled=True)
    found = plan(model, training={"batch": 8})
    held = summarize(model).optimizer_bytes
    assert held is not None
    assert found.by_role()["optimizer"] == held
    assert 0 < held - 2 * 4 * PARAMS <= 16


def test_inference_is_not_known() -> None:
    """What is alive at once in a forward pass is nobody's guess; the weights are told."""
    found = plan(mlp, inference={"batch": 8})
    assert (found.peak_bytes, found.by_role()) == (None, {"param": 4 * PARAMS, "input": 4 * 8 * 20})
