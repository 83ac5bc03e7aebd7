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
import json, os, sys
import tensorflow as tf
from tensorflow.lite.python.interpreter import OpResolverType

for case in sys.argv[1:]:
    if os.fork():  # an interpreter of its own memory for each; TensorFlow is imported once
        os.wait()
        continue
    path, resolver = case.split(":")
    interpreter = tf.lite.Interpreter(path, experimental_op_resolver_type=OpResolverType[resolver], num_threads=1)
    interpreter.allocate_tensors()
    spans = []
    for index in range(interpreter._interpreter.NumTensors(0)):
        try:
            interpreter._get_tensor_details(index, 0)
        except ValueError:  # room that no kernel asked for: to look at it ends the process
            continue
        tensor = interpreter.tensor(index)()
        spans.append((index, tensor.__array_interface__["data"][0], tensor.nbytes))
    print(json.dumps([case, spans]), flush=True)
    os._exit(0)
"""


@pytest.mark.parametrize(("name", "kernels"), CASES)
def test_the_arena_is_that_of_the_interpreter(name: str, kernels: Kernels) -> None:
    """To the byte, for 13 files of floats and 8-bit integers, as it was measured."""
    [graph] = read_content(DATA / f"{name}.tflite").graphs
    assert high_water_marks(graph, kernels) == MEASURED[name][kernels]


@pytest.mark.slow
def test_the_interpreter_puts_tensors_where_the_table_says() -> None:
    """All but the nets with TRANSPOSE_CONV, whose own memory cannot be told from the arena by its addresses."""
    pytest.importorskip("tensorflow")
    cases = {
        f"{DATA / name}.tflite:{RESOLVERS[kernels]}": (name, kernels) for name, kernels in CASES if "unet" not in name
    }
    command = [sys.executable, "-c", MEASURE, *cases]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    measured = {cases[case]: _spans(case, spans) for case, spans in map(json.loads, lines)}
    assert measured == {(name, kernels): MEASURED[name][kernels] for name, kernels in cases.values()}


def _spans(case: str, spans: list[tuple[int, int, int]]) -> tuple[int, int]:
    """The bytes from the first to the last of what is made in a run, and of what is kept from the first one."""
    [graph] = read_content(Path(case.rpartition(":")[0])).graphs
    stored = {index for index, tensor in enumerate(graph.tensors) if tensor.stored is not None}
    unpacking = [step for step in graph.steps if step.type == "DEQUANTIZE" and step.inputs[0] in stored]
    kept = {index for step in unpacking for index in step.outputs}
    made = [span for span in spans if span[0] not in stored]
    of_run, of_all = ([span for span in made if (span[0] in kept) == wanted] for wanted in (False, True))
    return _length(of_run), _length(of_all)


def _length(spans: list[tuple[int, int, int]]) -> int:
    begins, ends = [begin for _, begin, _ in spans], [begin + size for _, begin, size in spans]
    return max(ends) - min(begins) if spans else 0


def test_the_metric_is_that_of_reference_kernels_and_a_note_has_the_other() -> None:
    """Weights that are unpacked once have an arena of their own, which counts."""
    model = read(DATA / "cnn_float16.tflite")
    assert (model.arena_bytes, model.arena_kernels) == (110_592 + 16_288, "reference")
    assert any("171,936 bytes with the built-in kernels" in note for note in model.notes)


def test_what_is_kept_is_never_written_over(tmp_path: Path) -> None:
    """Two products with constants, one after the other, keep a transposed copy of each: 16 bytes, and 16 at the next 64."""
    tensors = {"x": "float32[2, 2]", "v": Stored("float32[2, 2]"), "w": Stored("float32[2, 2]"),
               "a": "float32[2, 2]", "y": "float32[2, 2]"}  # fmt: skip
    path = tmp_path / "model.tflite"
    path.write_bytes(litert(Graph("x", "y", tensors, [("BATCH_MATMUL", "x v", "a"), ("BATCH_MATMUL", "a w", "y")])))
    assert high_water_marks(read_content(path).graphs[0], "reference")[1] == 64 + 16


STATE = {Tensor.SHAPE: [1, 80], Tensor.IS_VARIABLE: 1}
RECURRENT = [
    pytest.param(
        {"x": "float32[1, 3]", "f": Stored("float32[8, 3]"), "t": Stored("float32[8, 10]"), "s": STATE, "y": "float32[1, 4]"},
        ("SVDF", "x f t - s", "y"),
        (128 + 4 * 8, 4 * 80),
        id="an SVDF: one number for each filter behind input and output",
    ),
    pytest.param(
        {"x": "float32[1, 7, 3]", "i": Stored("float32[20, 3]"), "r": Stored("float32[20, 20]"), "b": Stored("float32[20]"),
         "s": {**STATE, Tensor.SHAPE: [1, 20]}, "y": "float32[1, 7, 20]"},
        ("UNIDIRECTIONAL_SEQUENCE_LSTM", "x - i i i - r r r - - - - b b b - - s s", "y"),
        (128 + 576 + 4 * (4 * 20 + 16), 4 * 20),
        id="an LSTM of coupled gates: three of them and an accumulator",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("tensors", "step", "expected"), RECURRENT)
def test_states_are_kept_and_gates_have_room(
    tmp_path: Path, tensors: Any, step: Any, expected: tuple[int, int]
) -> None:
    """Each tensor begins at a multiple of 64; a state is float by default."""
    path = tmp_path / "model.tflite"
    path.write_bytes(litert(Graph("x", "y", tensors, [step])))
    assert high_water_marks(read_content(path).graphs[0], "reference") == expected


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
