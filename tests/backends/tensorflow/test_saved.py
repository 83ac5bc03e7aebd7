"""SavedModel folders: variables of the object graph, FLOPs of the default signature, and nothing loaded or run."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf
from keras import layers as L

from pytest_modelbudget import ModelBudgetError, Summary, summarize
from pytest_modelbudget.backends.tensorflow.private import SavedModelProto
from tests.backends.tensorflow.test_modules import FLOPS, PARAMS, Stack

on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="exports from TensorFlow")


def weights(summary: Summary) -> dict[str, str]:
    return {layer.path: layer.weights_text for layer in summary.layers}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Save an object with the signature of one call on `float32[None, 8]`, or without one."""

    def save(module: Any, *, signature: bool = True) -> Path:
        path = tmp_path / "saved"
        call = module.__call__.get_concrete_function(tf.TensorSpec([None, 8], tf.float32, "x")) if signature else None
        tf.saved_model.save(module, str(path), signatures=call)
        return path

    return save


def test_a_module(saved: Callable[..., Path]) -> None:
    """Params, FLOPs and shapes are those of the module that was saved, a variable that is held twice counted once."""
    summary = summarize(saved(Stack()))
    assert (summary.params, summary.non_trainable_params, summary.flops.value) == (PARAMS, 1, FLOPS)
    assert [str(one) for one in summary.inputs] == ["x float32[B, 8]"]
    assert [str(one) for one in summary.outputs] == ["float32[B, 2]"]
    assert weights(summary)["layers/0"] == "w 8x4 + b 4"


def test_without_a_signature(saved: Callable[..., Path]) -> None:
    """Variables are known; FLOPs are not, with the reason, and never 0."""
    summary = summarize(saved(Stack(), signature=False))
    assert (summary.params, summary.flops.value) == (PARAMS, None)
    assert "it has no default signature" in summary.notes[0]


def test_declared_inputs_size_the_signature(saved: Callable[..., Path]) -> None:
    """FLOPs follow the declared batch; another shape than the signature takes is refused."""
    path = saved(Stack())
    assert summarize(path, "float32[32, 8]").flops.value == 32 * FLOPS
    with pytest.raises(ModelBudgetError, match=r"the signature takes x float32\[B, 8\], inputs: gives"):
        summarize(path, "float32[B, 9]")


def test_a_loaded_model_is_counted_too(saved: Callable[..., Path]) -> None:
    """What `tf.saved_model.load` gives is a live object of its own."""
    summary = summarize(tf.saved_model.load(str(saved(Stack()))))
    assert (summary.params, summary.flops.value) == (PARAMS, FLOPS)


def test_the_weights_are_not_opened(saved: Callable[..., Path]) -> None:
    """The checkpoint may be missing; what a budget needs is in saved_model.pb."""
    path = saved(Stack())
    shutil.rmtree(path / "variables")
    assert summarize(path).params == PARAMS


@on_tensorflow
def test_an_export_of_keras_has_the_names_of_its_layers(tmp_path: Path) -> None:
    """`Model.export` lists variables flat; seeds are no params, and the optimizer's slots are not there."""
    model = keras.Sequential(
        [keras.Input((8,)), L.Dense(4), L.BatchNormalization(), L.Dropout(0.5), L.Dense(2)], name="net"
    )
    names = [layer.name for layer in model.layers if layer.weights]
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    model.export(tmp_path / "export", verbose=False)
    summary = summarize(tmp_path / "export")
    assert [layer.path for layer in summary.layers] == [f"net/{name}" for name in names]
    assert (summary.params, summary.trainable_params, summary.flops.value) == (62, 54, FLOPS)


@on_tensorflow
def test_an_exported_lstm_is_never_said_to_be_free(tmp_path: Path) -> None:
    """The elements of a list in a saved loop have an open batch: what is not counted for that is said."""
    keras.Sequential([keras.Input((5, 8)), L.LSTM(3)]).export(tmp_path / "export", verbose=False)
    flops, exact = summarize(tmp_path / "export").flops, 5 * 2 * 4 * 3 * (8 + 3)
    assert flops.value is not None
    assert flops.value == exact if not flops.is_lower_bound else flops.value < exact


@pytest.mark.slow
@on_tensorflow
def test_mobilenet(tmp_path: Path) -> None:
    """The published count of params; FLOPs of the signature's graph are those counted layer by layer."""
    keras.applications.MobileNetV2(weights=None).export(tmp_path / "export", verbose=False)
    summary = summarize(tmp_path / "export")
    assert summary.params == 3_538_984
    assert summary.flops.value == summarize(lambda: keras.applications.MobileNetV2(weights=None)).flops.value


def test_nothing_of_it_is_run(tmp_path: Path) -> None:
    """A table that the model fills from a file when it is loaded is not filled: the file is not there."""
    words = tmp_path / "words.txt"
    words.write_text("a\nb\n", encoding="utf-8")

    class Lookup(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            source = tf.lookup.TextFileInitializer(
                str(words), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
            )
            self.table = tf.lookup.StaticHashTable(source, -1)
            self.w = tf.Variable(tf.zeros([8, 4]))

        @tf.function
        def __call__(self, x: Any) -> Any:
            return x @ self.w

    module = Lookup()
    call = module.__call__.get_concrete_function(tf.TensorSpec([None, 8]))
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=call)
    shutil.rmtree(tmp_path / "saved" / "assets")
    with pytest.raises(Exception, match=r"words\.txt"):
        tf.saved_model.load(str(tmp_path / "saved"))
    assert summarize(tmp_path / "saved").params == 32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"\x00\x01\x02 hello", "saved_model.pb is damaged or truncated", id="damaged"),
        pytest.param(b"", "has no object graph", id="empty"),
    ],
)
def test_damage(saved: Callable[..., Path], content: bytes, message: str) -> None:
    """Each says which folder."""
    path = saved(Stack())
    (path / "saved_model.pb").write_bytes(content)
    with pytest.raises(ModelBudgetError, match=message) as error:
        summarize(path)
    assert "saved:" in str(error.value)


def _changed(path: Path, change: Callable[[Any], object]) -> Path:
    """The folder with another `saved_model.pb`."""
    proto = SavedModelProto()
    proto.ParseFromString((path / "saved_model.pb").read_bytes())
    change(proto.meta_graphs[0])
    (path / "saved_model.pb").write_bytes(proto.SerializeToString())
    return path


def _vast_constant(graph: Any) -> None:
    node = graph.graph_def.library.function[0].node_def.add(name="vast", op="Const")
    node.attr["value"].tensor.dtype = node.attr["dtype"].type = tf.float32.as_datatype_enum
    node.attr["value"].tensor.float_val.append(0.0)
    node.attr["value"].tensor.tensor_shape.dim.add(size=10**10)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda graph: graph.object_graph_def.nodes[0].children.add(node_id=10**6, local_name="x"), id="object"),
        pytest.param(lambda graph: graph.object_graph_def.nodes[0].children.add(node_id=-1, local_name="x"), id="negative"),
    ],
)  # fmt: skip
def test_objects_that_there_are_not(saved: Callable[..., Path], change: Callable[[Any], object]) -> None:
    """Such a file is damaged."""
    with pytest.raises(ModelBudgetError, match=r"saved_model\.pb is damaged or truncated"):
        summarize(_changed(saved(Stack()), change))


def test_a_constant_of_gigabytes(saved: Callable[..., Path]) -> None:
    """One number for ten thousand million is not made: FLOPs are not known, with the reason."""
    summary = summarize(_changed(saved(Stack()), _vast_constant))
    assert (summary.params, summary.flops.value) == (PARAMS, None)
    assert "a constant in them would take 40,000,000,000 bytes" in summary.notes[0]


@pytest.mark.skipif(sys.platform == "win32", reason="pipes")
def test_no_other_file_of_the_folder_is_opened(saved: Callable[..., Path]) -> None:
    """Neither another form of the graph, which TensorFlow would prefer, nor pipes that nobody writes to."""
    path = saved(Stack())
    (path / "saved_model.cpb").write_bytes(b"another graph")
    (path / "fingerprint.pb").unlink(missing_ok=True)
    (path / "debug").mkdir()
    for name in ("fingerprint.pb", "debug/saved_model_debug_info.pb"):
        os.mkfifo(path / name)
    assert summarize(path).flops.value == FLOPS


def test_a_truncated_graph(saved: Callable[..., Path]) -> None:
    """Half a protocol buffer is no model."""
    path = saved(Stack())
    whole = (path / "saved_model.pb").read_bytes()
    (path / "saved_model.pb").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelBudgetError, match=r"saved_model\.pb"):
        summarize(path)


def test_the_path_of_a_part(saved: Callable[..., Path]) -> None:
    """The folder is the model."""
    with pytest.raises(ModelBudgetError, match="a part of a SavedModel: name its folder"):
        summarize(saved(Stack()) / "saved_model.pb")


def test_in_a_manifest(pytester: pytest.Pytester, saved: Callable[..., Path]) -> None:
    """The folder is named with a slash."""
    saved(Stack()).rename(pytester.path / "net")
    (pytester.path / "modelbudget.yaml").write_text("models:\n  net: ./net\n", encoding="utf-8")
    pytester.runpytest_inprocess("--model-budget-update").assert_outcomes(passed=1)
    written = (pytester.path / "__model_budget__" / "net.yaml").read_text(encoding="utf-8")
    assert f"params: {PARAMS}" in written
    pytester.runpytest_inprocess("--model-budget").assert_outcomes(passed=1)
