"""Keras layers in torch modules, and torch modules in Keras models: as a real run has them, from a builder and live."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.backends.keras.torch_and_keras import MODELS

pytestmark = pytest.mark.slow  # one process of twelve CPU seconds, for models of a rare kind
SCRIPT = Path(__file__).with_name("torch_and_keras.py")
ROOT = SCRIPT.parents[3]
FLOAT = 4


@functools.cache
def found() -> dict[str, Any]:
    """What a process says that has Keras on torch."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": path}
    run = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def rows(model: str) -> list[dict[str, Any]]:
    return found()["models"][model]["builder"]["rows"]


@pytest.mark.parametrize("way", ["builder", "live", "called"])
@pytest.mark.parametrize("model", MODELS)
def test_numbers_are_those_of_a_real_run(model: str, way: str) -> None:
    """Params, what is trained, buffers, FLOPs and outputs; and a live model, built or not, is as before."""
    seen = found()["models"][model]
    real = seen["real"]
    assert {name: seen[way][name] for name in real} == real
    assert real["params"] > 0
    assert real["flops"] > 0
    assert seen[way].get("untouched", True)


@pytest.mark.parametrize("model", MODELS)
def test_builder_and_live_model_have_the_same_rows(model: str) -> None:
    """Names do not depend on what the session has built before."""
    seen = found()["models"][model]
    assert seen["builder"]["rows"] == seen["live"]["rows"] == seen["called"]["rows"]
    assert seen["builder"]["activations"] == seen["live"]["activations"] == seen["called"]["activations"]


@pytest.mark.parametrize("model", MODELS)
def test_all_flops_are_in_rows(model: str) -> None:
    """What a layer inside a layer costs is at the row that it belongs to."""
    seen = found()["models"][model]
    assert sum(row["flops"] for row in seen["builder"]["rows"]) == seen["real"]["flops"]


@pytest.mark.parametrize(
    ("model", "paths"),
    [
        pytest.param("unbuilt", ["body", "body.dense", "body.dropout", "body.dense_1", "head"], id="sequential"),
        pytest.param(
            "functional",
            ["body", "body.dense_1", "body.dense", "body.short", "body.add", "head"],
            id="functional, with a join",
        ),
        pytest.param("own", ["body", "body.dense", "body.dense_1", "head"], id="layers in a list"),
        pytest.param("inner", ["body", "head"], id="a layer is one row"),
        pytest.param("layers", ["one", "more.0", "more.1", "named.out", "named.out.0", "named.out.1"], id="attributes"),
        pytest.param("words", ["table", "attention", "add", "recurrent", "head"], id="words"),
        pytest.param("twice", ["body", "body.dense", "body.dense_1", "head", "before"], id="a layer in two models"),
        pytest.param(
            "back again",
            ["body", "body.dense", *(f"body.torch_module_wrapper{inner}" for inner in ("", ".0", ".1", ".2")), "head"],
            id="torch in Keras in torch",
        ),
        pytest.param("in a graph", ["input_layer", "torso", "dense"], id="torch in Keras"),
    ],
)
def test_paths_are_names(model: str, paths: list[str]) -> None:
    """A model of Keras opens into its layers under Keras' names; any other layer is one row."""
    assert [row["path"] for row in rows(model)] == paths


def test_rows_of_keras_layers() -> None:
    """They have calls, edges and weights like all rows; a frozen layer's weights are not trained."""
    by_path = {row["path"]: row for row in rows("built")}
    assert by_path["body.batch_normalization"] == {
        "path": "body.batch_normalization",
        "type": "BatchNormalization",
        "calls": 1,
        "flops": 0,
        "from": [["body.dense"]],
        "weights": ["gamma param", "beta param", "moving_mean param", "moving_variance param"],
    }
    assert by_path["head"]["from"] == [["body.dense_1"]]
    assert [row["calls"] for row in rows("twice")] == [1, 3, 1, 1, 2]


def test_weights_of_layers_in_layers() -> None:
    """They are called as in a Keras model."""
    recurrent = next(row for row in rows("words") if row["path"] == "recurrent")
    assert recurrent["weights"] == [
        f"{way}/{name} param" for way in ("forward", "backward") for name in ("kernel", "recurrent_kernel", "bias")
    ]
    assert rows("inner")[0]["weights"] == [
        f"{dense}/{name} param" for dense in ("dense", "dense_1") for name in ("kernel", "bias")
    ]


def test_weights_of_torch_modules_in_keras_models() -> None:
    """They have torch's names, buffers are among them, and what two wrappers share is counted once."""
    torso, first, second = rows("wrapping")
    assert torso["type"] == "TorchModuleWrapper"
    assert torso["weights"] == [
        *(f"{module}.{name} param" for module in range(3) for name in ("weight", "bias")),
        *(f"1.{name} buffer" for name in ("running_mean", "running_var", "num_batches_tracked")),
    ]
    assert first["weights"] == ["weight param", "bias param"]
    assert second["weights"] == ["weight param tied", "bias param tied"]


@pytest.mark.parametrize(
    ("model", "held"),
    [
        pytest.param("unbuilt", 7 + 3, id="Keras in torch"),
        pytest.param("inner", 4 + 3, id="a layer in a layer"),
    ],
)
def test_activations_by_hand(model: str, held: int) -> None:
    """What each next layer needs for its gradient is held: the outputs of all but the last, and no inputs."""
    assert found()["models"][model]["builder"]["activations"] == held * FLOAT


def test_a_layer_that_is_never_called_is_an_error() -> None:
    """Its weights are not known, so no number is given."""
    assert found()["others"]["never"] == (
        "model: the Keras layer 'body' was never built; call it in forward, or remove it: its weights are not known"
    )


def test_packed_weights_that_keras_does_not_see_are_an_error() -> None:
    """They would be counted as none; the error names the module and what to do."""
    error = found()["others"]["packed"]
    assert "'0' (Linear) has packed weights, which Keras does not see: count the torch module by itself" in error


def test_inputs_that_do_not_fit_are_an_error() -> None:
    """The error names the layer and says what Keras says."""
    error = found()["others"]["misfit"]
    assert error.startswith("model: the forward pass failed in layer 'body' (Sequential)")
    assert "expected axis -1 of input shape to have value 5" in error


def test_a_wrapped_module_that_needs_values_is_an_error() -> None:
    """Nothing of the user's is run in its place, and the error says what to do."""
    assert (
        "cannot be run without values, which the meta device does not hold: count it by itself"
        in (found()["others"]["choosing"])
    )


def test_a_policy_of_the_builder_holds_for_what_the_first_call_makes() -> None:
    """And is gone afterwards."""
    assert found()["others"]["mixed"][0] == ["bfloat16[B, 3]"]
    assert found()["others"]["policy"] == "float32"


def test_packed_weights_count_as_in_keras() -> None:
    """Two numbers in a byte are two params; the head adds eight of four bytes."""
    inside, alone = found()["others"]["int4"]
    assert alone[0] == 6 * 8 + 8 * 3
    assert inside == [alone[0] + 8, alone[1] + 8 * FLOAT, alone[2]]


def test_weights_of_a_wrapped_module_count_as_torch_stores_them() -> None:
    """48 elements of two bytes, in a Keras model as by themselves."""
    assert found()["others"]["halves"] == [[48, 96, 2 * 8 * 6]] * 2


def test_plans_are_those_of_the_same_operators_in_torch() -> None:
    """Training, and training of the head alone, take what they take with the same operators in layers of torch."""
    plans = found()["others"]["plans"]
    assert len(plans) == 2
    assert all(keras == torch for keras, torch in plans)


def test_params_need_no_inputs() -> None:
    """Dense(7), its statistics, Dense(3) and a head of two, from a builder as live; FLOPs are not known."""
    trained = 5 * 7 + 7 + 2 * 7 + 7 * 3 + 3 + 3 * 2 + 2
    assert found()["others"]["unfed"] == [[trained + 2 * 7, trained, None]] * 2


def test_half_precision_of_keras_layers_is_not_planned() -> None:
    """Their policy decides, and the note says so."""
    assert "their own dtype policy" in found()["others"]["half"][0]


def test_operations_of_keras_without_layers() -> None:
    """They are counted like torch's: a Linear layer and a product."""
    assert found()["others"]["operations"] == 2 * 5 * 3 + 2 * 3 * 4
