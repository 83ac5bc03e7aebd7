"""The graphs of the functions that a TensorFlow graph calls, with the shapes they are called with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pytest_modelbudget.backends.costs.formulas import Shape


@dataclass(frozen=True, slots=True)
class Body:
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


def function(graph: Any, name: str) -> Body | None:
    """The function `name` of the library of `graph`, None when there is none of that name."""
    found, where = None, graph
    while found is None and where is not None:
        found, where = where._get_function(name), getattr(where, "outer_graph", None)
    if found is None:
        return None
    inside: Any = getattr(found, "graph", None)
    untraced = not hasattr(inside, "inputs")
    if untraced:
        inside = _from_definition(graph, found)
    return Body(inside, inside.inputs, inside.outputs, getattr(inside, "control_outputs", None) or (), untraced)


def called(graph: Any, name: str, given: Sequence[Any]) -> Body | None:
    """The function `name` as it runs on the tensors `given`, whose sizes its own graph may have left open."""
    body = function(graph, name)
    if body is None:
        return None
    opened = body.untraced or any(
        shape_of(inner) is None and shape_of(outer) is not None
        for inner, outer in zip(body.inputs, given, strict=False)
    )
    return specialised(body, given) if opened else body


def specialised(body: Body, given: Sequence[Any]) -> Body:
    """`body` once more, in a graph of its own, with inputs that have the sizes of `given`."""
    tf = sys.modules["tensorflow"]  # a graph cannot exist before its framework is imported
    graph = tf.Graph()
    with graph.as_default():
        inputs = [_stand_in(tf, inner, outer) for inner, outer in zip(body.inputs, given, strict=False)]
        names = [inner.name for inner in body.inputs[: len(inputs)]]
        wanted = [*(one.name for one in body.outputs), *(one.name for one in body.control)]
        made = tf.graph_util.import_graph_def(
            body.graph.as_graph_def(), dict(zip(names, inputs, strict=True)), wanted, name=""
        )
    count = len(body.outputs)
    return Body(graph, inputs, made[:count], made[count:])


def _stand_in(tf: Any, inner: Any, outer: Any) -> Any:
    """An input for a body, sized as what is given; a handle knows the sizes of its variable or list."""
    handles = import_module("tensorflow.python.ops.handle_data_util")
    if inner.dtype not in (tf.resource, tf.variant):
        return tf.compat.v1.placeholder(inner.dtype, outer.shape, name="given")
    made = tf.compat.v1.placeholder(inner.dtype, [], name="given")
    for tensor in (inner, outer):
        handles.copy_handle_data(tensor, made)
    return made


def _from_definition(graph: Any, found: Any) -> Any:
    """The graph of a function that was read from a file, and so was never traced here."""
    read = import_module("tensorflow.python.framework.function_def_to_graph")
    with graph.as_default():  # where the functions that it calls are looked up
        return read.function_def_to_graph(found.cached_definition, include_library_functions=True)


def reached(outputs: Sequence[Any], control: Sequence[Any]) -> list[Any]:
    """The operators that run to make `outputs`: what nothing needs, TensorFlow leaves out."""
    seen: dict[str, Any] = {}
    waiting = [*(tensor.op for tensor in outputs), *control]
    while waiting:
        op = waiting.pop()
        if op.name not in seen:
            seen[op.name] = op
            waiting.extend(tensor.op for tensor in op.inputs)
            waiting.extend(op.control_inputs)
    return list(seen.values())
