"""Small integers in a TensorFlow graph without running it: enough to say how often a loop with a counter runs."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

MOST_TRIPS = 100_000
"""A loop that runs longer than this is not followed to its end."""

Value = Any
"""A number, a truth value or a list of numbers; None when it is not known."""

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
_SAME = frozenset({"Identity", "StopGradient", "PreventGradient", "Cast", "Snapshot", "EnsureShape"})


class Values:
    """What the tensors of one graph are worth, with what is known of its inputs (by the names of their operators)."""

    def __init__(self, inputs: Mapping[str, Value] | None = None) -> None:
        self._inputs = inputs or {}
        self._known: dict[int, Value] = {}

    def of(self, tensor: Any) -> Value:
        """The value of `tensor`, None when it is not known."""
        key = id(tensor)
        if key not in self._known:
            self._known[key] = None
            self._known[key] = self._find(tensor)
        return self._known[key]

    def _find(self, tensor: Any) -> Value:
        op = tensor.op
        if op.name in self._inputs:
            return self._inputs[op.name]
        if op.type == "Const":
            return _constant(op)
        if op.type in ("Shape", "ShapeN"):
            shape = op.inputs[tensor.value_index].shape
            return None if shape.rank is None or None in shape.as_list() else shape.as_list()
        if op.type == "TensorListLength":
            return None
        if op.type == "Max" and op.inputs[0].shape.rank == 0:  # of one length, as Keras takes it of all of a batch
            return self.of(op.inputs[0])
        if op.type == "LogicalAnd":
            return _both(*map(self.of, op.inputs))
        if op.type not in _COMPUTED:
            return None
        inputs = [self.of(one) for one in op.inputs]
        return None if None in inputs else _computed(op, inputs)


_COMPUTED = frozenset({*_ARITHMETIC, *_SAME, "Pack", "Prod", "StridedSlice", "Squeeze", "Reshape", "GatherV2", "Size"})


def _both(left: Value, right: Value) -> Value:
    if left is False or right is False:
        return False
    return None if left is None or right is None else True


def _computed(op: Any, inputs: Sequence[Value]) -> Value:
    first = inputs[0] if inputs else None
    if op.type in _SAME:
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
    if any(isinstance(one, list) for one in inputs):
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


def trips(cond: Any, body: Any, given: Sequence[Value]) -> int | None:
    """How often a loop runs whose two graphs are `cond` and `body`, and whose variables begin as `given`.

    None when that depends on values that only a run would know, or when it runs very long.
    """
    needed = _needed(cond, body)
    current = {at: given[at] for at in needed}
    for count in range(MOST_TRIPS + 1):
        inside = Values({cond.inputs[at].op.name: value for at, value in current.items()})
        goes_on = inside.of(cond.outputs[0])
        if not goes_on:
            return None if goes_on is None else count
        values = Values({body.inputs[at].op.name: value for at, value in current.items()})
        following = {at: values.of(body.outputs[at]) for at in needed}
        if following == current:
            return None
        current = following
    return None


def _needed(cond: Any, body: Any) -> list[int]:
    """The positions of the loop variables that decide whether the loop goes on."""
    found: set[int] = set()
    waiting = list(_read(cond, [cond.outputs[0]]))
    while waiting:
        at = waiting.pop()
        if at not in found:
            found.add(at)
            waiting.extend(_read(body, [body.outputs[at]]))
    return sorted(found)


def _read(graph: Any, tensors: list[Any]) -> Iterator[int]:
    """The positions of the inputs of `graph` that `tensors` are computed from."""
    inputs = {one.op.name: at for at, one in enumerate(graph.inputs)}
    seen: set[str] = set()
    while tensors:
        op = tensors.pop().op
        if op.name in seen:
            continue
        seen.add(op.name)
        if op.name in inputs:
            yield inputs[op.name]
        else:
            tensors.extend(op.inputs)
