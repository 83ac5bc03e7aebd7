"""SavedModel folders: variables from the object graph in `saved_model.pb`, FLOPs from the graph of a signature.

No other file of the folder is opened, and nothing in it is run: its graphs are only read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError

from pytest_modelbudget.backends.model_files import shown
from pytest_modelbudget.backends.tensorflow.modules import HeldVariable
from pytest_modelbudget.backends.tensorflow.private import SavedModelProto
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.system import writing

_NOT_OF_MODEL = ("optimizer", "keras_api", "signatures")
"""What a saved model holds beside itself: slots of the optimizer, metrics, functions."""

_VARIABLE_LISTS = ("variables", "trainable_variables", "non_trainable_variables", "_all_variables", "model_variables")
_SEEDS = "seed_generator_state"
_SIGNATURES = ("serving_default", "serve")
_PROTO_BYTES = 2 << 30
"""More than a protocol buffer can be."""

_CONSTANT_BYTES = 64 << 20
"""What a constant may take in memory of which the graph says one element for all."""


@dataclass
class SavedModel:
    """A SavedModel folder; `path` is where it is, `outer` what `saved_model.pb` says, `proto` its graph in that."""

    path: Path
    proto: Any
    outer: Any
    unreadable: str = ""
    """Why its signatures cannot be read, once that was tried."""

    @property
    def variables(self) -> Iterator[HeldVariable]:
        """Its variables, by the object that holds them; those Keras saved by the names of its layers."""
        nodes = self.proto.object_graph_def.nodes
        listed = any(child.local_name == "variables" for child in nodes[0].children)
        for path, node_id in _variables(nodes, listed):
            variable = nodes[node_id].variable
            if variable.name.endswith(_SEEDS):
                continue
            holder, _, name = path.rpartition("/")
            if holder.partition("/")[0] in _VARIABLE_LISTS or holder.startswith(("layer-", "layer_with_weights-")):
                holder, _, name = variable.name.rpartition("/")
            sizes = tuple(None if dim.size < 0 else dim.size for dim in variable.shape.dim)
            shape = None if variable.shape.unknown_rank else sizes
            dtype = tf.as_dtype(variable.dtype).name
            yield HeldVariable(holder, "Object", name, node_id, shape, dtype, variable.trainable)

    @cached_property
    def signature(self) -> Any:
        """The concrete function of its default (or only) signature, None when it has none."""
        if (size := max(_constant_bytes(self.outer), default=0)) > _CONSTANT_BYTES:
            self.unreadable = f"its signatures are not read: a constant in them would take {size:,} bytes"
            return None
        options = tf.saved_model.LoadOptions(experimental_skip_checkpoint=True)
        try:
            # outside a graph, tables of the model would be filled by its own functions
            with self._alone() as folder, tf.Graph().as_default():
                signatures = dict(tf.saved_model.load(folder, options=options).signatures)
        except Exception as error:
            self.unreadable = f"its signatures cannot be read: {str(error).partition(chr(10))[0]}"
            return None
        for name in _SIGNATURES:
            if name in signatures:
                return signatures[name]
        return next(iter(signatures.values())) if len(signatures) == 1 else None

    @contextmanager
    def _alone(self) -> Iterator[str]:
        """A folder of the graph alone: TensorFlow prefers other forms of it that are there, and waits for pipes."""
        with tempfile.TemporaryDirectory() as folder:
            writing.write(Path(folder, "saved_model.pb"), self.outer.SerializeToString())
            yield folder


def read(path: Path) -> SavedModel:
    """The model of a folder; see `backends.model_files.Reader`.

    Raises:
        ModelBudgetError: `saved_model.pb` is damaged, or of TensorFlow 1.
    """
    proto = SavedModelProto()
    try:
        if (size := (path / "saved_model.pb").stat().st_size) > _PROTO_BYTES:
            raise DecodeError(f"{size:,} bytes")
        proto.ParseFromString((path / "saved_model.pb").read_bytes())
    except DecodeError:
        raise _damaged(path) from None
    graphs = [meta_graph for meta_graph in proto.meta_graphs if len(meta_graph.object_graph_def.nodes)]
    if not graphs:
        raise ModelBudgetError(
            f"{shown(path)}: saved_model.pb has no object graph (it is damaged, or was saved by TensorFlow 1): load it "
            "and save it again with tf.saved_model.save"
        )
    model = SavedModel(path, graphs[0], proto)
    try:
        list(model.variables)
    except (IndexError, TypeError, ValueError):  # objects or dtypes that there are not
        raise _damaged(path) from None
    return model


def _damaged(path: Path) -> ModelBudgetError:
    return ModelBudgetError(
        f"{shown(path)}: saved_model.pb is damaged or truncated: fetch it again, or save the model again"
    )


def _constant_bytes(proto: Any) -> Iterator[int]:
    """The bytes that each constant takes in memory beyond those that the graph has of it."""
    graphs = [graph.graph_def for graph in proto.meta_graphs]
    functions = chain.from_iterable(graph.library.function for graph in graphs)
    for node in chain(*(graph.node for graph in graphs), *(function.node_def for function in functions)):
        if "value" in node.attr:
            tensor = node.attr["value"].tensor
            if not tensor.tensor_content:
                yield prod(max(dim.size, 0) for dim in tensor.tensor_shape.dim) * tf.as_dtype(tensor.dtype).size


def _variables(nodes: Any, listed: bool) -> Iterator[tuple[str, int]]:
    """Each variable once, by the first way to it: an object's own variables first, then what is below it."""
    visited: set[int] = set()
    pending = [("", 0)]
    while pending:
        path, node_id = pending.pop()
        children_below: list[tuple[str, int]] = []
        for child in nodes[node_id].children:
            name = child.local_name
            if node_id == 0 and (name in _NOT_OF_MODEL or (listed and name in _VARIABLE_LISTS and name != "variables")):
                continue
            if not 0 <= child.node_id < len(nodes):
                raise IndexError(child.node_id)
            if child.node_id in visited:
                continue
            visited.add(child.node_id)
            variable_path = f"{path}/{name}".lstrip("/")
            if nodes[child.node_id].HasField("variable"):
                yield variable_path, child.node_id
            else:
                children_below.append((variable_path, child.node_id))
        children_below.sort(key=lambda item: item[0].startswith("variables"))  # a mere list of what other objects hold
        pending.extend(reversed(children_below))
