"""SavedModel folders: variables from the object graph in `saved_model.pb`, FLOPs from the graph of a signature.

The weights in `variables/` are not opened, and nothing in the folder is run: its graphs are only read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError

from pytest_modelbudget.backends.files import shown
from pytest_modelbudget.backends.tensorflow.modules import Held
from pytest_modelbudget.backends.tensorflow.private import SavedModelProto
from pytest_modelbudget.errors import ModelBudgetError

_ASIDE = ("optimizer", "keras_api", "signatures")
"""What a saved model holds beside itself: slots of the optimizer, metrics, functions."""

_LISTS = ("variables", "trainable_variables", "non_trainable_variables", "_all_variables", "model_variables")
_SEEDS = "seed_generator_state"
_SIGNATURES = ("serving_default", "serve")


@dataclass
class SavedModel:
    """A SavedModel folder; `path` is where it is, `proto` what `saved_model.pb` says."""

    path: Path
    proto: Any
    unreadable: str = ""
    """Why its signatures cannot be read, once that was tried."""

    @property
    def held(self) -> Iterator[Held]:
        """Its variables, by the object that holds them; those Keras saved by the names of its layers."""
        nodes = self.proto.object_graph_def.nodes
        listed = any(child.local_name == "variables" for child in nodes[0].children)
        for path, node_id in _variables(nodes, listed):
            variable = nodes[node_id].variable
            if variable.name.endswith(_SEEDS):
                continue
            holder, _, name = path.rpartition("/")
            if holder.partition("/")[0] in _LISTS or holder.startswith(("layer-", "layer_with_weights-")):
                holder, _, name = variable.name.rpartition("/")
            sizes = tuple(None if dim.size < 0 else dim.size for dim in variable.shape.dim)
            shape = None if variable.shape.unknown_rank else sizes
            dtype = tf.as_dtype(variable.dtype).name
            yield Held(holder, "Object", name, node_id, shape, dtype, variable.trainable)

    @cached_property
    def signature(self) -> Any:
        """The concrete function of its default (or only) signature, None when it has none."""
        options = tf.saved_model.LoadOptions(experimental_skip_checkpoint=True)
        try:
            with tf.Graph().as_default():  # outside a graph, tables of the model would be filled by its own functions
                signatures = dict(tf.saved_model.load(str(self.path), options=options).signatures)
        except Exception as error:
            self.unreadable = f"its signatures cannot be read: {str(error).partition(chr(10))[0]}"
            return None
        for name in _SIGNATURES:
            if name in signatures:
                return signatures[name]
        return next(iter(signatures.values())) if len(signatures) == 1 else None


def read(path: Path) -> SavedModel:
    """The model of a folder; see `backends.files.Reader`.

    Raises:
        ModelBudgetError: `saved_model.pb` is damaged, or of TensorFlow 1.
    """
    proto = SavedModelProto()
    try:
        proto.ParseFromString((path / "saved_model.pb").read_bytes())
    except DecodeError:
        raise ModelBudgetError(f"{shown(path)}: saved_model.pb is damaged or truncated") from None
    graphs = [one for one in proto.meta_graphs if len(one.object_graph_def.nodes)]
    if not graphs:
        raise ModelBudgetError(
            f"{shown(path)}: saved_model.pb has no object graph (it is damaged, or was saved by TensorFlow 1): load it "
            "and save it again with tf.saved_model.save"
        )
    return SavedModel(path, graphs[0])


def _variables(nodes: Any, listed: bool) -> Iterator[tuple[str, int]]:
    """Each variable once, by the first way to it: an object's own variables first, then what is below it."""
    seen: set[int] = set()
    waiting = [("", 0)]
    while waiting:
        path, node_id = waiting.pop()
        below: list[tuple[str, int]] = []
        for child in nodes[node_id].children:
            name = child.local_name
            if node_id == 0 and (name in _ASIDE or (listed and name in _LISTS and name != "variables")):
                continue
            if child.node_id in seen:
                continue
            seen.add(child.node_id)
            way = f"{path}/{name}".lstrip("/")
            if nodes[child.node_id].HasField("variable"):
                yield way, child.node_id
            else:
                below.append((way, child.node_id))
        below.sort(key=lambda item: item[0].startswith("variables"))  # a mere list of what other objects hold
        waiting.extend(reversed(below))
