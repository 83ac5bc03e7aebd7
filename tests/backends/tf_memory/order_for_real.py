"""Run as a script: the order in which TensorFlow really runs a training step, and the planned one, as JSON.

The oracle is TensorFlow's profiler. Which of the reads of variables come first is another order in each process
(they follow from edges in a hash table of addresses); it is read from the profile, and all else has to follow from it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_ENABLE_ONEDNN_OPTS="0", CUDA_VISIBLE_DEVICES="-1")

import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from pytest_modelbudget.backends.tf_memory.nodes import Node, nodes_of
from pytest_modelbudget.backends.tf_memory.optimized import optimized
from pytest_modelbudget.backends.tf_memory.order import orders

WIDTHS = (48, 64, 32, 8)


def step() -> Any:
    """A step of a perceptron with a branch around its second layer, and momentum."""
    weights = [tf.Variable(tf.ones(sizes)) for sizes in pairwise(WIDTHS)]
    around = tf.Variable(tf.ones((WIDTHS[1], WIDTHS[2])))
    trained = [*weights, around]
    momenta = [tf.Variable(tf.zeros(variable.shape)) for variable in trained]

    @tf.function(input_signature=[tf.TensorSpec((16, WIDTHS[0]))])
    def train(x: Any) -> Any:
        with tf.GradientTape() as tape:
            first = tf.nn.tanh(x @ weights[0])
            second = tf.nn.relu(first @ weights[1]) + tf.exp(first @ around)
            loss = tf.reduce_mean(tf.square(second @ weights[2]))
        for gradient, variable, momentum in zip(tape.gradient(loss, trained), trained, momenta, strict=True):
            momentum.assign(0.9 * momentum + gradient)
            variable.assign_sub(0.1 * momentum / (tf.abs(momentum) + 1.0))
        return loss

    return train


def profiled(run: Callable[[], Any]) -> list[str]:
    """The operators of a run that take the pool's thread, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=3)
        with tf.profiler.experimental.Profile(folder, options):
            run()
        [path] = Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
    events = [
        (line.timestamp_ns * 1000 + event.offset_ps, plane.event_metadata[event.metadata_id].name)
        for plane in space.planes
        for line in plane.lines
        if "Compute" in line.name
        for event in line.events
    ]
    return [name.rpartition(":")[0] for _, name in sorted(events) if ":" in name and "::" not in name]


def with_reads_as(nodes: Sequence[Node], real: Sequence[str]) -> list[Node]:
    """The nodes with those without inputs in the order that has reads of variables as they really were."""
    places = {name: place for place, name in enumerate(real)}
    first_read = {node.inputs[0].partition(":")[0]: places[node.name] for node in reversed(nodes) if _reads(node)}
    inputs = [node for node in nodes if not node.inputs and not node.after]
    inputs.sort(key=lambda node: -first_read.get(node.name, len(real)))
    return [*inputs, *(node for node in nodes if node.inputs or node.after)]


def _reads(node: Node) -> bool:
    return node.kind == "ReadVariableOp" and not node.after


def main() -> None:
    tf.config.threading.set_intra_op_parallelism_threads(2)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    train, x = step(), tf.ones((16, WIDTHS[0]))
    train(x)
    real = profiled(lambda: train(x))
    nodes = nodes_of(optimized(train.get_concrete_function().graph)).nodes
    planned = [node.name for node in next(orders(with_reads_as(nodes, real), 1))]
    print(json.dumps({"real": real, "planned": [name for name in planned if name in set(real)]}))


if __name__ == "__main__":
    sys.exit(main())
