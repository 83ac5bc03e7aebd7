"""Graphs of one call, traced and never run: what a model gives back, and what its operators cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from pytest_modelbudget.backends.calls import ShapeDtype
from pytest_modelbudget.backends.costs import Operator, total
from pytest_modelbudget.backends.tensorflow.private import ConversionOptions, converted_call, func_graph_from_py_func
from pytest_modelbudget.inputs import BATCH, Inputs
from pytest_modelbudget.summary import Fill, Flops, TensorSpec

Sizes = Mapping[str, int]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def trace_graph(call: Callable[..., Any], arguments: Arguments) -> Any:
    """The graph of `call` on tensors of the given specs; plain values are passed as they are."""
    flat = tf.nest.flatten(arguments)
    spec_indices = [index for index, value in enumerate(flat) if isinstance(value, tf.TensorSpec)]

    def run(*tensors: Any) -> Any:
        tensor_at = dict(zip(spec_indices, tensors, strict=True))
        args, kwargs = tf.nest.pack_sequence_as(
            arguments, [tensor_at.get(position, default) for position, default in enumerate(flat)]
        )
        return call(*args, **kwargs)

    return func_graph_from_py_func("model", run, tuple(flat[index] for index in spec_indices), {})


def converted(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` with Python's own branches and loops on tensors written into the graph, as `tf.function` does.

    AutoGraph's optional features are left out, as there: they add scopes and control edges, which change the order.
    """
    options = ConversionOptions(recursive=True, user_requested=True, optional_features=None)
    return lambda *args, **kwargs: converted_call(call, args, kwargs, options=options)


def argument_specs(inputs: Inputs, sizes: Sizes) -> Arguments:
    """The arguments of one call as `tf.TensorSpec`, dimensions at their sizes; constants where a value is declared."""
    return inputs.build(lambda name, spec: _argument(spec, sizes))


def _argument(declared: TensorSpec, sizes: Sizes) -> Any:
    spec = tensor_spec(declared, sizes)
    if not isinstance(declared.values, Fill) or not spec.shape.is_fully_defined():
        return spec
    value = declared.values.value
    with tf.init_scope():
        return tf.constant(sizes[value] if isinstance(value, str) else value, spec.dtype, spec.shape)


def tensor_spec(spec: TensorSpec, sizes: Sizes) -> Any:
    """A tensor as TensorFlow's own spec; a dimension without a size stays open."""
    return tf.TensorSpec([sizes.get(dim) if isinstance(dim, str) else dim for dim in spec.shape], spec.dtype)


def spec_of(tensor: Any) -> TensorSpec:
    """A tensor of a graph as plain data: an open first axis is the batch, and one of unknown rank has no axes."""
    sizes = tensor.shape.as_list() if tensor.shape.rank is not None else []
    dims = tuple(BATCH if axis == 0 and size is None else size for axis, size in enumerate(sizes))
    return TensorSpec(dims, tf.as_dtype(tensor.dtype).name)


def outputs(tensors: Sequence[Any]) -> tuple[ShapeDtype, ...]:
    """Tensors of a graph as plain data; one of unknown rank is left out."""
    return tuple((tuple(one.shape.as_list()), one.dtype.name) for one in tensors if one.shape.rank is not None)


def flops(operators: Sequence[Operator]) -> Flops:
    """The FLOPs of operators, by the project's rules."""
    count = total(operators)
    return Flops(count.flops, count.uncounted)


def has_xla(graph: Any) -> bool:
    """Whether a function that is called is compiled with XLA: a `tf.function(jit_compile=True)`."""
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    functions = [function for function in definition.library.function if function.attr["_XlaMustCompile"].b]
    return bool(functions) or any(node.attr["_XlaMustCompile"].b for node in nodes if "_XlaMustCompile" in node.attr)
