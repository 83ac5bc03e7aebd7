"""What a loop of a TensorFlow graph gives back, and what it piles up in lists as it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytest_modelbudget.backends.costs.tf_functions import FunctionGraph, called_function
from pytest_modelbudget.backends.costs.tf_values import KnownValues, loop_trips
from pytest_modelbudget.backends.tf_memory.kernels import VIEWS
from pytest_modelbudget.backends.tf_memory.nodes import Node, bytes_of

_GROWING = {"TensorListPushBack": 1, "TensorListSetItem": 2}
"""What puts an item into a list, and the input that is the item."""

_THERE_ALREADY = frozenset(["ReadVariableOp", "Const"])
"""What makes an item that is in memory anyway, once."""


@dataclass(frozen=True, slots=True)
class Loop:
    """The bodies of a loop, how often it runs (None: only values would tell), and which outputs are just an input.

    `pushed` are the bytes that a round adds to each list, by the place of the list; None for an item of open size.
    """

    body: FunctionGraph
    trips: int | None
    unchanged: frozenset[int]
    pushed: dict[int, int | None]


def loop_of(node: Node, trips_before: Sequence[int | None] = ()) -> Loop | None:
    """The loop of an operator; None where its graph is not known.

    `trips_before` are those of the loops that made its inputs: the gradient of a loop runs as often as the loop.
    """
    cond, body = (called_function(node.graph, node.op.get_attr(key).name, node.op.inputs) for key in ("cond", "body"))
    if cond is None or body is None:
        return None
    values = KnownValues()
    try:
        trips = loop_trips(cond, body, [values.value_of(tensor) for tensor in node.op.inputs])
    except Exception:  # numbers of a kind that are not computed
        trips = None
    if trips is None:
        known = {count for count in trips_before if count is not None}
        trips = known.pop() if len(known) == 1 else None
    places = {tensor.name: place for place, tensor in enumerate(body.inputs)}
    unchanged = frozenset(
        place for place, tensor in enumerate(body.outputs) if places.get(_source(tensor).name, -1) == place
    )
    return Loop(body, trips, unchanged, _pushed(body, unchanged))


def _pushed(body: FunctionGraph, unchanged: frozenset[int]) -> dict[int, int | None]:
    """New bytes that one round puts into each list, by the place of the list; None where a size is open.

    What no round changes, or what the round before has put into another list, is in memory anyway.
    """
    items = {
        place: _items(tensor)
        for place, tensor in enumerate(body.outputs)
        if _is_list(tensor) and place not in unchanged
    }
    elsewhere = {item.name for pushed in items.values() for item in pushed}
    there = {
        tensor.name
        for place, tensor in enumerate(body.inputs)
        if place in unchanged or _source(body.outputs[place]).name in elsewhere
    }
    return {place: _new_bytes(pushed, there) for place, pushed in items.items()}


def _is_list(tensor: Any) -> bool:
    return str(tensor.dtype.name) == "variant"


def _source(tensor: Any) -> Any:
    """The tensor whose memory this one has, looked at through views."""
    while tensor.op.type in VIEWS and tensor.op.inputs:
        tensor = tensor.op.inputs[tensor.value_index]
    return tensor


def _items(tensor: Any) -> list[Any]:
    """What one round puts into a list."""
    items = []
    current = _source(tensor)
    while current.op.type in _GROWING:
        items.append(_source(current.op.inputs[_GROWING[current.op.type]]))
        current = _source(current.op.inputs[0])
    return items


def _new_bytes(items: Sequence[Any], there: set[str]) -> int | None:
    """Bytes of items that are not `there`; None where a size is open."""
    sizes = [bytes_of(item) for item in items if item.op.type not in _THERE_ALREADY and item.name not in there]
    return None if None in sizes else sum(size for size in sizes if size is not None)
