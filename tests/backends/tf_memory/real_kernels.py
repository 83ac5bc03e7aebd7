"""What single kernels of TensorFlow really do with memory: each runs on the CPU, and its executor's own record is read.

The oracle is `RunMetadata` of a session with FULL_TRACE: of each operator the addresses of its outputs, and what its
allocator gave and got back while it ran. Nothing of what is planned is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.framework import op_def_library, op_def_registry

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class KernelCall:
    """An operator with its inputs: arrays are tensors that may be written over, all else constants."""

    kind: str
    inputs: Sequence[Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KernelRun:
    """What a kernel did with memory when only its input `fresh` could be written over.

    `operator` is that of the graph; `shared` has the outputs whose memory is that of the input, `made` is what it had
    allocated when it was over, and `scratch` what it took besides at its peak, in bytes.
    """

    operator: Any
    fresh: int
    shared: tuple[int, ...]
    made: int
    scratch: int


def run_kernels(calls: Sequence[KernelCall]) -> list[KernelRun]:
    """Each call once for each of its arrays, which is then the only input that nothing else holds."""
    with tf.Graph().as_default() as graph:
        feeds: dict[Any, Array] = {}
        cases = [case for call in calls for case in _cases(call, feeds)]
        targets = [tf.identity(tensor).op for operator, _, _ in cases for tensor in operator.outputs]
        nodes = _executed(graph, feeds, targets)
    return [_run(operator, fresh, position, nodes) for operator, fresh, position in cases]


def _cases(call: KernelCall, feeds: dict[Any, Array]) -> Iterator[tuple[Any, Any, int]]:
    flat = [item for value in call.inputs for item in (value if isinstance(value, tuple) else (value,))]
    arrays = [position for position, value in enumerate(flat) if isinstance(value, np.ndarray) and value.size]
    for fresh in arrays or [-1]:
        tensors: list[Any] = []
        number = count()
        copy = None
        for value in call.inputs:
            items = [_tensor(item, next(number) == fresh, feeds) for item in _as_tuple(value)]
            copy = next((item for item in items if item.op.type == "DeepCopy"), copy)
            tensors.append(items if isinstance(value, tuple) else items[0])
        yield _operator(call, tensors), copy, fresh


def _tensor(value: Any, fresh: bool, feeds: dict[Any, Array]) -> Any:
    if not isinstance(value, np.ndarray) or not value.size:
        return tf.convert_to_tensor(value)
    placeholder = tf.compat.v1.placeholder(value.dtype, value.shape)
    feeds[placeholder] = value
    return tf.raw_ops.DeepCopy(x=placeholder) if fresh else placeholder


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _operator(call: KernelCall, tensors: Sequence[Any]) -> Any:
    definition = op_def_registry.get(call.kind)
    inputs = dict(zip((argument.name for argument in definition.input_arg), tensors, strict=True))
    attributes = {**_defaults(definition), **call.attributes}
    outputs = op_def_library.apply_op(call.kind, name="called", **inputs, **attributes)
    while isinstance(outputs, (list, tuple)):
        outputs = outputs[0]
    return outputs if isinstance(outputs, tf.Operation) else outputs.op


def _defaults(definition: Any) -> dict[str, Any]:
    """What attributes are that no input says."""
    names_from_inputs = {
        name for item in definition.input_arg for name in (item.type_attr, item.type_list_attr, item.number_attr)
    }
    unset = [item for item in definition.attr if item.HasField("default_value") and item.name not in names_from_inputs]
    return {item.name: _plain(item.default_value) for item in unset}


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "list":
        [items] = [items for _, items in value.list.ListFields()] or [[]]
        return list(items)
    return tf.as_dtype(value.type) if kind == "type" else getattr(value, kind)


def _executed(graph: Any, feeds: Mapping[Any, Array], targets: Sequence[Any]) -> dict[str, Any]:
    """The executor's record of each operator, by name, on one thread and with nothing optimized away."""
    config = config_pb2.ConfigProto(inter_op_parallelism_threads=1, intra_op_parallelism_threads=2)
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.graph_options.optimizer_options.opt_level = config_pb2.OptimizerOptions.L0
    metadata = config_pb2.RunMetadata()
    options = config_pb2.RunOptions(trace_level=config_pb2.RunOptions.FULL_TRACE)
    with tf.compat.v1.Session(graph=graph, config=config) as session:
        session.run(list(targets), dict(feeds), options=options, run_metadata=metadata)
    return {node.node_name: node for device in metadata.step_stats.dev_stats for node in device.node_stats}


def _run(operator: Any, fresh: Any, position: int, nodes: Mapping[str, Any]) -> KernelRun:
    record = nodes[operator.name]
    fresh_address = _address(nodes[fresh.op.name].output[0]) if fresh is not None else -1
    shared = tuple(output.slot for output in record.output if _address(output) == fresh_address)
    peak = sum(used.peak_bytes for used in record.memory)
    made = sum(used.live_bytes for used in record.memory)
    return KernelRun(operator, position, shared, made, peak - made)


def _address(output: Any) -> int:
    return int(output.tensor_description.allocation_description.ptr)
