"""The arena of LiteRT files, held against the addresses at which its interpreter puts tensors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget.backends.exported.litert import read
from pytest_modelbudget.backends.exported.litert.arena import high_water_marks
from pytest_modelbudget.backends.exported.litert.content import read_content
from pytest_modelbudget.backends.exported.litert.kernels import Kernels
from pytest_modelbudget.backends.exported.litert.schema import Tensor
from tests.backends.exported.litert_files import Graph, Stored, litert

DATA = Path(__file__).parents[2] / "data" / "exported"
RESOLVERS = {"reference": "BUILTIN_REF", "built-in": "BUILTIN_WITHOUT_DEFAULT_DELEGATES"}

MEASURED: dict[str, dict[Kernels, tuple[int, int]]] = {
    "cnn_float": {"reference": (110_592, 0), "built-in": (155_648, 0)},
    "cnn_int8": {"reference": (27_648, 0), "built-in": (38_912, 0)},
    "cnn_float16": {"reference": (110_592, 16_288), "built-in": (155_648, 16_288)},
    "unet_float": {"reference": (135_168, 0), "built-in": (331_776, 0)},
    "unet_int8": {"built-in": (82_944, 0)},  # the reference kernels have no TILE for 8 bits
    "perceptron_float": {"reference": (512, 0), "built-in": (512, 0)},
    "perceptron_int8": {"reference": (160, 0), "built-in": (160, 0)},
    "sound_float": {"reference": (7_936, 0), "built-in": (10_816, 0)},
    "sound_int8": {"reference": (2_016, 0), "built-in": (2_720, 0)},
    "transformer_float": {"reference": (5_440, 0), "built-in": (5_440, 0)},
    "transformer_int8": {"reference": (1_472, 0), "built-in": (1_472, 0)},
    "volume_float": {"reference": (12_428, 0), "built-in": (122_880, 0)},
    "volume_int8": {"reference": (13_312, 0), "built-in": (123_904, 0)},
}
"""The spans of the addresses of all tensors after `allocate_tensors()`, of one run and of what is kept (TensorFlow 2.21)."""

CASES = [(name, kernels) for name, measured in MEASURED.items() for kernels in measured]

MEASURE = """
import json, sys
import tensorflow as tf
from tensorflow.lite.python.interpreter import OpResolverType

path, resolver = sys.argv[1:]
interpreter = tf.lite.Interpreter(path, experimental_op_resolver_type=OpResolverType[resolver], num_threads=1)
interpreter.allocate_tensors()
names = {operator["index"]: operator for operator in interpreter._get_ops_details()}
kept = {int(index) for operator in names.values() if operator["op_name"] == "DEQUANTIZE" for index in operator["outputs"]}
spans = []
for index in range(interpreter._interpreter.NumTensors(0)):
    try:
        tensor = interpreter.tensor(index)()
    except ValueError:  # room that no kernel asked for
        continue
    spans.append((index, tensor.__array_interface__["data"][0], tensor.nbytes))
print(json.dumps([spans, sorted(kept)]))
"""


@pytest.mark.parametrize(("name", "kernels"), CASES)
def test_the_arena_is_that_of_the_interpreter(name: str, kernels: Kernels) -> None:
    """To the byte, for 13 files of floats and 8-bit integers, as it was measured."""
    [graph] = read_content(DATA / f"{name}.tflite").graphs
    assert high_water_marks(graph, kernels) == MEASURED[name][kernels]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kernels"), [case for case in CASES if "unet" not in case[0]])
def test_the_interpreter_puts_tensors_where_it_was_measured(name: str, kernels: Kernels) -> None:
    """A process of its own maps the file and tells addresses; what TRANSPOSE_CONV allocates itself cannot be told apart."""
    pytest.importorskip("tensorflow")
    path = DATA / f"{name}.tflite"
    command = [sys.executable, "-c", MEASURE, str(path), RESOLVERS[kernels]]
    spans, kept = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    [graph] = read_content(path).graphs
    stored = {index for index, tensor in enumerate(graph.tensors) if tensor.stored is not None}
    made = [span for span in spans if span[0] not in stored]
    of_run, of_all = ([span for span in made if (span[0] in kept) == wanted] for wanted in (False, True))
    assert (_length(of_run), _length(of_all)) == MEASURED[name][kernels]


def _length(spans: list[tuple[int, int, int]]) -> int:
    begins, ends = [begin for _, begin, _ in spans], [begin + size for _, begin, size in spans]
    return max(ends) - min(begins) if spans else 0


def test_the_metric_is_that_of_reference_kernels_and_a_note_has_the_other() -> None:
    """Weights that are unpacked once have an arena of their own, which counts."""
    model = read(DATA / "cnn_float16.tflite")
    assert (model.arena_bytes, model.arena_kernels) == (110_592 + 16_288, "reference")
    assert any("171,936 bytes with the built-in kernels" in note for note in model.notes)


def _unary(kind: str, **tensors: Any) -> Graph:
    return Graph("x", "y", {"x": "float32[1, 4]", "y": "float32[1, 4]"} | tensors, [(kind, "x", "y")])


UNKNOWN = [
    pytest.param(_unary("custom MyOp"), "kernels of MyOp", id="custom operator"),
    pytest.param(_unary("UNIDIRECTIONAL_SEQUENCE_GRU"), "kernels of", id="no rule"),
    pytest.param(
        Graph("x s", "y", {"x": "float32[1, 4]", "s": "int32[2]", "y": "float32[2, 2]"}, [("RESHAPE", "x s", "y")]),
        "known only when it runs",
        id="a shape that is made",
    ),
    pytest.param(_unary("FLOOR", y={Tensor.SHAPE: [4], Tensor.TYPE: 5}), "tensors of string", id="texts"),
    pytest.param(
        Graph("x", "y", {"x": "float32[1, 4]", "w": Stored("int8[2, 4]", scales=1), "y": "float32[1, 2]"},
              [("FULLY_CONNECTED", "x w -", "y")]),
        "dynamic range",
        id="integer weights for floats",
    ),
    pytest.param(_unary("CONV_2D"), "CONV_2D has no input 1", id="an operator without its inputs"),
    pytest.param(
        Graph("x", "y", {"x": "float32[B, 4]", "y": "float32[B, 2]"}, [("RESHAPE", "x", "y")]),
        "not known to be one batch: convert the model for a fixed batch",
        id="rows of an open batch",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("graph", "reason"), UNKNOWN)
def test_an_arena_that_is_not_known_is_none_and_says_why(tmp_path: Path, graph: Graph, reason: str) -> None:
    """Nothing is guessed."""
    path = tmp_path / "model.tflite"
    path.write_bytes(litert(graph))
    model = read(path)
    assert (model.arena_bytes, model.arena_kernels) == (None, "")
    assert reason in model.notes[-1]


@pytest.mark.parametrize("name", ["cnn_dynamic", "recurrent_float"])
def test_dynamic_range_and_loops_are_not_planned(name: str) -> None:
    """Hybrid kernels have temporaries of their own, graphs that are run an arena each."""
    assert read(DATA / f"{name}.tflite").arena_bytes is None
