"""Training memory as a sum, for frameworks whose steps are not recorded, counted by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_modelbudget.planner import Inference, Training
from pytest_modelbudget.planner.sums import SUM_LABEL, plan
from pytest_modelbudget.summary import Input, Layer, Summary, TensorSpec, Weight
from tests.builders import spec, towers

WEIGHTS = 4 * 6_201
INPUTS = 4 * 4 * (100 + 20)
HELD = 1_000
UNRECORDED = "what is alive at once is not known: steps of keras models are not recorded here"


def counted(**options: Any) -> Summary:
    """The towers with what a forward pass of four samples holds."""
    return replace(towers(), activation_bytes=HELD, **options)


@pytest.mark.parametrize(
    ("recipe", "slots"),
    [
        pytest.param(Training(), 2, id="adamw"),
        pytest.param(Training(optimizer="adam", optimizer_options={"amsgrad": True}), 3, id="adam with amsgrad"),
        pytest.param(Training(optimizer="sgd"), 0, id="sgd"),
        pytest.param(Training(optimizer="sgd", optimizer_options={"momentum": 0.9}), 1, id="momentum"),
        pytest.param(Training(optimizer="sgd", optimizer_options={"momentum": 0}), 0, id="no momentum"),
        pytest.param(Training(optimizer="rmsprop", optimizer_options={"momentum": 0.9, "centered": True}), 3, id="rmsprop"),
        pytest.param(Training(optimizer="adagrad"), 1, id="adagrad"),
        pytest.param(Training(optimizer="none"), 0, id="no optimizer"),
    ],
)  # fmt: skip
def test_training(recipe: Training, slots: int) -> None:
    """Weights, gradients, slots, activations and inputs of a batch of four; their sum is no peak, and what stays is the least."""
    planned = plan(counted(), recipe, {"B": 4})
    assert (planned.kind, planned.peak_bytes, planned.timeline) == ("training", None, ())
    assert sum(part.bytes for part in planned.parts) == WEIGHTS * (2 + slots) + HELD + INPUTS
    assert planned.low_bytes == WEIGHTS * (1 + slots) + INPUTS
    assert planned.by_role().get("optimizer", 0) == slots * WEIGHTS
    assert planned.notes == (UNRECORDED, SUM_LABEL)


def test_only_what_is_trained_has_gradients_and_slots() -> None:
    """40 of 50 elements are trained, in half precision 80 bytes; 7 elements of a buffer are never."""
    weights = (
        Weight("kernel", (40,), "float16"),
        Weight("scale", (10,), "float16", trainable=False),
        Weight("mean", (7,), role="buffer"),
    )
    layers = (
        Layer("a", "Dense", weights=weights),
        Layer("b", "Dense", weights=(Weight("k", (40,), tied_to="a.kernel"),)),
    )
    summary = Summary("net", "keras", layers, (Input("x", spec("B", 3)),), activation_bytes=0)
    assert plan(summary, Training(), {"B": 2}).by_role() == {
        "optimizer": 160, "param": 100, "gradient": 80, "buffer": 28, "input": 24,
    }  # fmt: skip


def test_activations_are_at_their_layers() -> None:
    """What no layer has stays with the model."""
    layers = (Layer("a", "Dense", activation_bytes=30), Layer("b", "Dense", activation_bytes=50))
    summary = Summary("net", "keras", layers, activation_bytes=100)
    parts = {part.path: part.bytes for part in plan(summary, Training(), {}).parts if part.role == "activation"}
    assert parts == {"a": 30, "b": 50, "": 20}


def test_a_compiled_model_says_its_optimizer() -> None:
    """Its own variables are counted, unless the recipe asks for another optimizer."""
    own = plan(counted(optimizer_bytes=77), Training(), {"B": 4})
    assert (own.by_role()["optimizer"], own.recipe) == (77, "the model's optimizer, fp32")
    assert own.notes == (
        UNRECORDED,
        f"{SUM_LABEL}; the optimizer is the one that the model is compiled with",
    )
    other = plan(counted(optimizer_bytes=77), Training(optimizer="adagrad"), {"B": 4})
    assert (other.by_role()["optimizer"], other.notes) == (WEIGHTS, (UNRECORDED, SUM_LABEL))


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        pytest.param(Training(optimizer="muon"), "what the optimizer muon keeps is not known for keras models", id="optimizer"),
        pytest.param(Training(optimizer="nets:mine"), "what the optimizer nets:mine keeps is not known", id="an own optimizer"),
        pytest.param(Training(precision="bf16-mixed"), "precision: bf16-mixed is not planned for keras models", id="precision"),
        pytest.param(Training(checkpointing="blocks"), "checkpointing: blocks is not planned", id="checkpointing"),
        pytest.param(Training(gradient_accumulation=2), "gradient_accumulation: 2 is not planned", id="accumulation"),
        pytest.param(Training(sharding={"fsdp": 8}), "sharding: {'fsdp': 8} is not planned", id="sharding"),
        pytest.param(Training(compile="xla"), "compile: xla is not planned for keras models", id="compile"),
        pytest.param(Training(loss="liger"), "loss: liger is not planned for keras models", id="fused loss"),
        pytest.param(Training(trainable=("head",)), "trainable: ('head',) is not planned", id="frozen"),
        pytest.param(Inference(), "what a forward pass has alive at once is not known for keras models", id="inference"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_no_number(recipe: Training | Inference, words: str) -> None:
    """The reason comes first; what is known is still told."""
    found = plan(counted(), recipe, {"B": 4})
    assert found.peak_bytes is None
    assert found.notes[0].startswith(words)
    assert found.by_role()["param"] == WEIGHTS


def test_unknown_activations() -> None:
    """The framework's own reason, when it gave one."""
    summary = replace(towers(), notes=("FLOPs: fine", "activation_bytes is not known: tensorflow does not say"))
    assert plan(summary, Training(), {"B": 4}).notes[0] == "activation_bytes is not known: tensorflow does not say"
    assert plan(towers(), Training(), {"B": 4}).notes[0] == "activations are not known"


def test_an_input_of_unknown_size_makes_the_sum_unknown() -> None:
    """Its bytes are not taken for none."""
    unsized = Input("x", TensorSpec((None, 3), "float32"))
    found = plan(replace(towers(), inputs=(unsized,), activation_bytes=8), Training(), {})
    assert found.peak_bytes is None
    assert "how many bytes the input x float32[?, 3] takes is not known" in found.notes[0]
