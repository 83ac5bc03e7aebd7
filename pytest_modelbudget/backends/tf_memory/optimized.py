"""A graph as TensorFlow's own optimizer of graphs (grappler) leaves it, which is what the executor runs.

It folds constants, fuses operators, splits sums, and leaves the operators in another order, on which the order of
execution depends. Nothing of the graph runs but constants that are folded.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from importlib import import_module
from typing import Any

from pytest_modelbudget.backends.costs.tf_functions import FunctionGraph, called_function
from pytest_modelbudget.backends.tf_memory.function_names import FunctionNames, names_in_function
from pytest_modelbudget.backends.tf_memory.nodes import BRANCHES, CALLS, LOOPS

_DEVICE = "/job:localhost/replica:0/task:0/device:CPU:0"
_CPU_MEMORY = 256 << 20
"""What TensorFlow's own description of a CPU says of its memory, in bytes."""

_SIZED = "InfeedDequeue"
"""An operator without inputs that says what sizes its output has, as an input stands in the graph that is optimized."""

_OPENED = "_lower_using_switch_merge"
"""What marks a loop or branch that TensorFlow opens first; here each branch stays one operator."""

_INSIDE = re.compile(r"/(?P<part>body|cond)/_\d+/")
"""What stands between the name of an opened loop and that of an operator of its function."""

_CALLED = re.compile(r"Func/.*/(?P<part>body|cond)/_\d+/input_control_node/_\d+")
"""The operator after which the function of an opened loop begins, which waits for all that the function is given."""

_BODY_BEGINS = re.compile(r"/loop_body_control/_\d+$")
"""The operator that lets the body run where the condition is true."""


def optimized(graph: Any) -> FunctionGraph:
    """What TensorFlow makes of the traced function `graph` before its first step on a CPU.

    Its operators have the names that they were traced with, as far as they are still there.
    """
    tf = sys.modules["tensorflow"]  # a graph cannot exist before its framework is imported
    meta = tf.compat.v1.MetaGraphDef()
    meta.graph_def.CopyFrom(graph.as_graph_def())
    names = names_in_function(graph)
    _mark_inputs(meta.graph_def, graph.inputs)
    _rename(meta.graph_def, names.of_nodes)
    returned = _add_outputs(meta.graph_def, graph.outputs, names)
    control = [names.of_nodes.get(op.name, op.name) for op in getattr(graph, "control_outputs", None) or ()]
    _sort(meta.graph_def, [names.of_nodes.get(tensor.op.name, tensor.op.name) for tensor in graph.inputs])
    for node in meta.graph_def.node:
        node.device = _DEVICE
    for node in _all_nodes(meta.graph_def):
        if node.op in BRANCHES and _OPENED in node.attr:
            node.attr[_OPENED].b = False
    meta.collection_def["train_op"].node_list.value.extend(dict.fromkeys([*returned, *control]))
    if any(node.op in LOOPS or node.op in CALLS for node in meta.graph_def.node):
        meta.graph_def.CopyFrom(_with_open_loops(meta))
    definition = _optimize(meta)
    _rename(definition, {name: before for before, name in names.of_nodes.items()})
    return _imported(definition, graph, returned, [op.name for op in getattr(graph, "control_outputs", None) or ()])


def is_for_onednn() -> bool:
    """Whether TensorFlow optimizes graphs for oneDNN in this process, as the processor and its environment have it."""
    return bool(import_module("tensorflow.python.util._pywrap_util_port").IsMklEnabled())


def _with_open_loops(meta: Any) -> Any:
    """The graph with its loops and calls opened, which TensorFlow does before it optimizes.

    There, a round does not wait until all that it is given is ready, as it does where the optimizer opens loops.
    """
    opened = _optimize(meta, "function")
    for node in opened.node:
        if (called := _CALLED.fullmatch(node.name)) is not None:
            kept = [name for name in node.input if _BODY_BEGINS.search(name)]
            if called["part"] == "cond":
                kept = sorted((name for name in node.input if "/merge/_" in name), key=_number)[:1]
            node.input[:] = kept or node.input
    return opened


def _number(name: str) -> int:
    return int(name.rpartition("_")[2])


def _all_nodes(definition: Any) -> Iterator[Any]:
    yield from definition.node
    for function in definition.library.function:
        yield from function.node_def


def _optimize(meta: Any, *optimizers: str) -> Any:
    """What grappler makes of a graph for one CPU that is only described, so that no device is asked for.

    Only `optimizers` work on it where some are named, else those that TensorFlow has by itself.
    """
    config = import_module("tensorflow.core.protobuf.config_pb2").ConfigProto()
    if optimizers:
        config.graph_options.rewrite_options.min_graph_nodes = -1
        config.graph_options.rewrite_options.optimizers.extend(optimizers)
    properties = import_module("tensorflow.core.protobuf.device_properties_pb2")
    cpu = properties.DeviceProperties(type="CPU", num_cores=2, memory_size=_CPU_MEMORY)
    named = properties.NamedDevice(name=_DEVICE, properties=cpu)
    cluster = import_module("tensorflow.python.grappler.cluster").Cluster(devices=[named])
    try:
        optimize = import_module("tensorflow.python.grappler.tf_optimizer").OptimizeGraph
        return optimize(config, meta, verbose=False, cluster=cluster)
    finally:
        cluster.Shutdown()


def _mark_inputs(definition: Any, inputs: Sequence[Any]) -> None:
    """Inputs become arguments, and those of known sizes what the optimizer reads the sizes of.

    It forgets the sizes of arguments when it is handed a graph, not those that operators have by themselves.
    """
    handles = import_module("tensorflow.python.ops.handle_data_util")
    nodes = {node.name: node for node in definition.node}
    for index, tensor in enumerate(inputs):
        node = nodes[tensor.op.name]
        node.attr.clear()
        if tensor.dtype.size and tensor.shape.is_fully_defined():
            node.op = _SIZED
            node.attr["dtype"].type = tensor.dtype.as_datatype_enum
            node.attr["shape"].shape.CopyFrom(tensor.shape.as_proto())
            continue
        node.op = "_Arg"
        node.attr["T"].type = tensor.dtype.as_datatype_enum
        node.attr["index"].i = index
        handle_data = handles.get_resource_handle_data(tensor) if tensor.dtype.name == "resource" else None
        for item in handle_data.shape_and_type if handle_data is not None and handle_data.is_set else ():
            node.attr["_handle_dtypes"].list.type.append(item.dtype)
            node.attr["_handle_shapes"].list.shape.add().CopyFrom(item.shape)


def _add_outputs(definition: Any, outputs: Sequence[Any], names: FunctionNames) -> list[str]:
    """Append what gives the outputs back, as the graph of a function has it; its names."""
    for index, (tensor, name) in enumerate(zip(outputs, names.of_results, strict=True)):
        maker, _, place = tensor.name.rpartition(":")
        maker = names.of_nodes.get(maker, maker)
        node = definition.node.add(name=name, op="_Retval", input=[maker if place == "0" else f"{maker}:{place}"])
        node.attr["T"].type = tensor.dtype.as_datatype_enum
        node.attr["index"].i = index
    return list(names.of_results)


def _rename(definition: Any, names: Mapping[str, str]) -> None:
    """Operators, and what reads them, by other names."""
    for node in definition.node:
        node.name = names.get(node.name, node.name)
        for index, read in enumerate(node.input):
            before = read.lstrip("^").partition(":")[0]
            if before in names:
                node.input[index] = read.replace(before, names[before], 1)


def _sort(definition: Any, inputs: Sequence[str]) -> None:
    """Inputs first, then each operator after what it needs, else in the order in which they were made.

    So TensorFlow reads a function (`GraphConstructor::Convert` in its source); what the optimizer does depends on it.
    """
    first = {name: place for place, name in enumerate(inputs)}
    nodes = sorted(definition.node, key=lambda node: first.get(node.name, len(first)))
    places = {node.name: place for place, node in enumerate(nodes)}
    followers: list[list[int]] = [[] for _ in nodes]
    missing = [len(node.input) for node in nodes]
    for place, node in enumerate(nodes):
        for name in node.input:
            followers[places[name.lstrip("^").partition(":")[0]]].append(place)
    ready = [place for place, count in enumerate(missing) if not count]
    heapify(ready)
    ordered = []
    while ready:
        place = heappop(ready)
        ordered.append(nodes[place])
        for follower in followers[place]:
            missing[follower] -= 1
            if not missing[follower]:
                heappush(ready, follower)
    copies = [type(node).FromString(node.SerializeToString()) for node in ordered]
    del definition.node[:]
    definition.node.extend(copies)


def _imported(definition: Any, graph: Any, returned: Sequence[str], control: Sequence[str]) -> FunctionGraph:
    """The graph of `definition`, whose functions are those of `graph`, as they were traced, where it has them."""
    tf = sys.modules["tensorflow"]
    handles = import_module("tensorflow.python.ops.handle_data_util")
    _clear_marks(definition, {tensor.op.name: tensor.dtype.as_datatype_enum for tensor in graph.inputs})
    _keep_functions(definition.library, [item for item in definition.library.function if not _has(graph, item)])
    present = {node.name for node in definition.node}
    with graph.as_default():  # where functions are looked up
        made = import_module("tensorflow.python.framework.func_graph").FuncGraph("optimized")
    inputs, stand_ins = [], {}
    with made.as_default():
        for tensor in graph.inputs:
            stand_in = tf.compat.v1.placeholder(tensor.dtype, tensor.shape, name="input")
            handles.copy_handle_data(tensor, stand_in)
            inputs.append(stand_in)
            if tensor.op.name in present:
                stand_ins[tensor.name] = stand_in
        ends = tf.graph_util.import_graph_def(definition, stand_ins, [*returned, *control], name="")
    _restore_shapes(made, graph)
    return FunctionGraph(made, inputs, [op.inputs[0] for op in ends[: len(returned)]], ends)


def _clear_marks(definition: Any, dtypes: Mapping[str, int]) -> None:
    """Nodes are on no device, and inputs, whose `dtypes` are given by name, are placeholders."""
    for node in definition.node:
        node.device = ""
        if node.name in dtypes:
            node.op = "Placeholder"
            node.attr.clear()
            node.attr["dtype"].type = dtypes[node.name]


def _has(graph: Any, function: Any) -> bool:
    return graph._get_function(function.signature.name) is not None


def _keep_functions(library: Any, functions: Sequence[Any]) -> None:
    copies = [type(item).FromString(item.SerializeToString()) for item in functions]
    del library.function[:]
    library.function.extend(copies)


def _restore_shapes(made: Any, traced: Any) -> None:
    """Tensors whose size TensorFlow does not find again get the one that they were traced with.

    An operator that was fused has the name and the result of the last one of those that it does.
    """
    traced_ops = _OpsByName()
    for op in made.get_operations():
        if all(tensor.shape.is_fully_defined() for tensor in op.outputs):
            continue
        before = traced_ops.find(traced, op.name)
        if before is not None and (before.type == op.type or op.type.startswith("_Fused")):
            for tensor, tensor_before in zip(op.outputs, before.outputs, strict=False):
                if not tensor.shape.is_fully_defined() and tensor.shape.is_compatible_with(tensor_before.shape):
                    tensor.set_shape(tensor_before.shape)


class _OpsByName:
    """Finds operators of traced graphs by the names that they have where loops and calls are opened."""

    def __init__(self) -> None:
        self._ops: dict[int, dict[str, Any]] = {}

    def find(self, graph: Any, name: str) -> Any | None:
        """The operator `name` of `graph`, or of what it calls: `LOOP/body/_NUMBER/NAME`, `CALL/NAME`."""
        if id(graph) not in self._ops:
            self._ops[id(graph)] = {op.name: op for op in graph.get_operations()}
        ops = self._ops[id(graph)]
        if name in ops:
            return ops[name]
        for inside in _INSIDE.finditer(name):
            loop = ops.get(name[: inside.start()])
            if loop is not None and inside["part"] in loop.node_def.attr:
                function = called_function(graph, loop.get_attr(inside["part"]).name, loop.inputs)
                if function is not None:
                    return self.find(function.graph, name[inside.end() :])
        for slash in re.finditer("/", name):
            call = ops.get(name[: slash.start()])
            if call is not None and call.type in CALLS:
                function = called_function(graph, call.get_attr("f").name, call.inputs)
                return None if function is None else self.find(function.graph, name[slash.end() :])
        return None
