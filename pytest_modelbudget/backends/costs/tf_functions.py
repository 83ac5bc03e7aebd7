"""The graphs of the functions that a TensorFlow graph calls, with the shapes they are called with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pytest_modelbudget.backends.costs.formulas import Shape


@dataclass(frozen=True, slots=True)
class FunctionGraph:
    """The graph of a function, its inputs and outputs, and the operators that run though no output needs them."""

    graph: Any
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    control: Sequence[Any] = ()
    untraced: bool = False
    """Whether it was read from a file, where variables have no shapes."""


def shape_of(tensor: Any) -> Shape | None:
    """The sizes of `tensor`, None when one of them is open."""
    shape = tensor.shape
    if shape.rank is None or None in (sizes := shape.as_list()):
        return None
    return tuple(sizes)


def function(graph: Any, name: str) -> FunctionGraph | None:
    """The function `name` of the library of `graph`, None when there is none of that name."""
    definition, scope = None, graph
    while definition is None and scope is not None:
        definition, scope = scope._get_function(name), getattr(scope, "outer_graph", None)
    if definition is None:
        return None
    graph_of_definition: Any = getattr(definition, "graph", None)
    untraced = not hasattr(graph_of_definition, "inputs")
    if untraced:
        graph_of_definition = _from_definition(graph, definition)
    return FunctionGraph(
        graph_of_definition,
        graph_of_definition.inputs,
        graph_of_definition.outputs,
        getattr(graph_of_definition, "control_outputs", None) or (),
        untraced,
    )


def called_function(graph: Any, name: str, operands: Sequence[Any]) -> FunctionGraph | None:
    """The function `name` as it runs on the tensors `operands`, whose sizes its own graph may have left open."""
    body = function(graph, name)
    if body is None:
        return None
    opened = body.untraced or any(
        shape_of(inner) is None and shape_of(outer) is not None
        for inner, outer in zip(body.inputs, operands, strict=False)
    )
    return with_input_shapes(body, operands) if opened else body


def with_input_shapes(body: FunctionGraph, operands: Sequence[Any]) -> FunctionGraph:
    """`body` once more, in a graph of its own, with inputs that have the sizes of `operands`."""
    tf = sys.modules["tensorflow"]  # a graph cannot exist before its framework is imported
    graph = tf.Graph()
    with graph.as_default():
        inputs = [_stand_in(tf, inner, outer) for inner, outer in zip(body.inputs, operands, strict=False)]
        names = [inner.name for inner in body.inputs[: len(inputs)]]
        wanted_names = [*(tensor.name for tensor in body.outputs), *(tensor.name for tensor in body.control)]
        imported = tf.graph_util.import_graph_def(
            body.graph.as_graph_def(), dict(zip(names, inputs, strict=True)), wanted_names, name=""
        )
    count = len(body.outputs)
    return FunctionGraph(graph, inputs, imported[:count], imported[count:])


def _stand_in(tf: Any, inner: Any, outer: Any) -> Any:
    """An input for a body, sized as what is given; a handle knows the sizes of its variable or list."""
    handles = import_module("tensorflow.python.ops.handle_data_util")
    if inner.dtype not in (tf.resource, tf.variant):
        return tf.compat.v1.placeholder(inner.dtype, outer.shape, name="given")
    placeholder = tf.compat.v1.placeholder(inner.dtype, [], name="given")
    for tensor in (inner, outer):
        handles.copy_handle_data(tensor, placeholder)
    return placeholder


def _from_definition(graph: Any, definition: Any) -> Any:
    """The graph of a function that was read from a file, and so was never traced here."""
    read = import_module("tensorflow.python.framework.function_def_to_graph")
    with graph.as_default():  # where the functions that it calls are looked up
        return read.function_def_to_graph(definition.cached_definition, include_library_functions=True)


def needed_operators(outputs: Sequence[Any], control: Sequence[Any]) -> list[Any]:
    """The operators that run to make `outputs`: what nothing needs, TensorFlow leaves out."""
    ops_by_name: dict[str, Any] = {}
    pending = [*(tensor.op for tensor in outputs), *control]
    while pending:
        op = pending.pop()
        if op.name not in ops_by_name:
            ops_by_name[op.name] = op
            pending.extend(tensor.op for tensor in op.inputs)
            pending.extend(op.control_inputs)
    return list(ops_by_name.values())
