"""Small integers in a TensorFlow graph without running it: enough to say how often a loop with a counter runs."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

from pytest_modelbudget.backends.costs import trips

Value = Any
"""A number, a truth value, a list of numbers, or the items of a TensorList as a tuple; None when it is not known."""

_ARITHMETIC: dict[str, Callable[..., Value]] = {
    "Add": operator.add,
    "AddV2": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "FloorDiv": operator.floordiv,
    "FloorMod": operator.mod,
    "Minimum": min,
    "Maximum": max,
    "Neg": operator.neg,
    "Less": operator.lt,
    "LessEqual": operator.le,
    "Greater": operator.gt,
    "GreaterEqual": operator.ge,
    "Equal": operator.eq,
    "NotEqual": operator.ne,
    "LogicalNot": operator.not_,
}
_IDENTITY_NAMES = """Identity StopGradient PreventGradient Cast Snapshot EnsureShape Enter Exit LoopCond NextIteration
Switch"""
_IDENTITY_OPS = frozenset(_IDENTITY_NAMES.split())


class KnownValues:
    """What the tensors of one graph are worth, with what is known of its inputs (by the names of their operators)."""

    def __init__(self, inputs: Mapping[str, Value] | None = None) -> None:
        self._inputs = {} if inputs is None else inputs
        self._values: dict[int, Value] = {}

    def value_of(self, tensor: Any) -> Value:
        """The value of `tensor`, None when it is not known."""
        key = id(tensor)
        if key not in self._values:
            self._values[key] = None
            self._values[key] = self._find(tensor)
        return self._values[key]

    def _find(self, tensor: Any) -> Value:
        op = tensor.op
        if op.name in self._inputs:
            return self._inputs[op.name]
        if op.type == "Const":
            return _constant(op)
        if op.type in ("Shape", "ShapeN"):
            shape = op.inputs[tensor.value_index].shape
            return None if shape.rank is None or None in shape.as_list() else shape.as_list()
        if op.type in _LIST_OPS:
            return self._list_value(tensor)
        if op.type == "Max" and op.inputs[0].shape.rank == 0:  # of one length, as Keras takes it of all of a batch
            return self.value_of(op.inputs[0])
        if op.type == "LogicalAnd":
            return _and(*map(self.value_of, op.inputs))
        if op.type not in _COMPUTED_OPS:
            return None
        inputs = [self.value_of(operand) for operand in op.inputs]
        return None if None in inputs else _compute(op, inputs)

    def _list_value(self, tensor: Any) -> Value:
        """What is known of the items of a list, of its length, or of what is taken from it."""
        op = tensor.op
        if op.type == "EmptyTensorList":
            return ()
        items = self.value_of(op.inputs[0])
        if not isinstance(items, tuple):
            return None
        if op.type == "TensorListPushBack":
            item = op.inputs[1]
            return (*items, None if item.dtype.is_floating else self.value_of(item))
        if op.type == "TensorListLength" or not items:
            return len(items) if op.type == "TensorListLength" else None
        return items[-1] if tensor.value_index else items[:-1]


_LIST_OPS = frozenset({"EmptyTensorList", "TensorListPushBack", "TensorListPopBack", "TensorListLength"})
_COMPUTED_OPS = frozenset(
    {*_ARITHMETIC, *_IDENTITY_OPS, "Pack", "Prod", "StridedSlice", "Squeeze", "Reshape", "GatherV2", "Size"}
)


def _and(left: Value, right: Value) -> Value:
    if left is False or right is False:
        return False
    return None if left is None or right is None else True


def _compute(op: Any, inputs: Sequence[Value]) -> Value:
    first = inputs[0] if inputs else None
    if op.type in _IDENTITY_OPS:
        return first
    if op.type == "Pack":
        return list(inputs)
    if op.type == "Size":
        return prod(op.inputs[0].shape.as_list())
    if op.type == "Prod":
        return prod(first) if isinstance(first, list) else first
    if op.type == "StridedSlice":
        return _item(op, first, inputs[1])
    if op.type == "GatherV2":
        return first[inputs[1]] if isinstance(first, list) and isinstance(inputs[1], int) else None
    if op.type in ("Squeeze", "Reshape"):
        return (first[0] if isinstance(first, list) and len(first) == 1 else first) if not op.outputs[0].shape else None
    if any(isinstance(value, list) for value in inputs):
        return None
    return _ARITHMETIC[op.type](*inputs)


def _item(op: Any, values: Value, begin: Value) -> Value:
    """`values[n]`; longer slices are not followed."""
    if op.get_attr("shrink_axis_mask") != 1 or not isinstance(values, list) or not isinstance(begin, list):
        return None
    return values[begin[0]] if len(begin) == 1 and -len(values) <= begin[0] < len(values) else None


def _constant(op: Any) -> Value:
    """A constant of few elements, as plain numbers."""
    proto = op.get_attr("value")
    if prod(dim.size for dim in proto.tensor_shape.dim) > 16 or len(proto.tensor_shape.dim) > 1:
        return None
    array = sys.modules["tensorflow"].make_ndarray(proto)  # a graph cannot exist before its framework is imported
    return array.tolist() if array.dtype.kind in "biuf" else None


def loop_trips(cond: Any, body: Any, initial: Sequence[Value]) -> int | None:
    """How often a loop of two graphs runs, `cond` and `body`, whose variables begin as `initial`; see `trips`."""
    needed = _deciding_variables(cond, body)

    def values_in(graph: Any, current: Mapping[int, Value]) -> KnownValues:
        return KnownValues({graph.inputs[position].op.name: value for position, value in current.items()})

    def following(current: dict[int, Value]) -> dict[int, Value]:
        values = values_in(body, current)
        return {position: values.value_of(body.outputs[position]) for position in needed}

    start = {position: initial[position] for position in needed}
    return trips(start, lambda current: values_in(cond, current).value_of(cond.outputs[0]), following)


def _deciding_variables(cond: Any, body: Any) -> list[int]:
    """The positions of the loop variables that decide whether the loop goes on."""
    positions: set[int] = set()
    pending = list(_inputs_read(cond, [cond.outputs[0]]))
    while pending:
        position = pending.pop()
        if position not in positions:
            positions.add(position)
            pending.extend(_inputs_read(body, [body.outputs[position]]))
    return sorted(positions)


def _inputs_read(graph: Any, tensors: list[Any]) -> Iterator[int]:
    """The positions of the inputs of `graph` that `tensors` are computed from."""
    inputs = {tensor.op.name: position for position, tensor in enumerate(graph.inputs)}
    visited: set[str] = set()
    while tensors:
        op = tensors.pop().op
        if op.name in visited:
            continue
        visited.add(op.name)
        if op.name in inputs:
            yield inputs[op.name]
        else:
            tensors.extend(op.inputs)
