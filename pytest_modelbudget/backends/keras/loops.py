"""Loops and branches among Keras' operations: their bodies are looked into, as many times as they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras
import numpy as np

from pytest_modelbudget.backends.costs import FlopsCount, cheapest
from pytest_modelbudget.backends.keras import rules
from pytest_modelbudget.backends.keras.calls import LayerCall

MOST_TRIPS = 10_000
"""A `while_loop` that runs longer than this is not followed to its end."""


class Tracer(Protocol):
    """Who writes down the calls that bodies make, each as often as `times` says."""

    calls: list[LayerCall]
    times: int


def trace_bodies(tracer: Tracer, operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> FlopsCount | None:
    """Run the bodies of `operation` on symbolic tensors, and say what it costs beside the calls that they made.

    None for any other operation, and for a loop whose number of runs only values would tell.
    """
    if not has_bodies(operation):
        return None
    run = _BODIES[type(operation).__name__]
    mark, times = len(tracer.calls), tracer.times
    try:
        count = run(tracer, operation, *args, **kwargs)
    except Exception:  # a body that does not take symbolic tensors
        count = None
    finally:
        tracer.times = times
    if count is None:
        del tracer.calls[mark:]
    return count


def has_bodies(operation: Any) -> bool:
    """Whether an operation of Keras runs functions that it was given."""
    return type(operation).__module__.startswith("keras.src.") and type(operation).__name__ in _BODIES


def with_arrays(loop: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of `loop` for inferring shapes: a `while_loop` has them of arrays only, so numbers become such."""
    if type(loop).__name__ != "WhileLoop":
        return args
    arrays: tuple[Any, ...] = keras.tree.map_structure(
        lambda value: value if hasattr(value, "shape") else np.asarray(value), args
    )
    return arrays


def _slices(values: Any) -> tuple[int, Any]:
    """The length of the first axis, and what is left of each tensor without it."""
    length = int(keras.tree.flatten(values)[0].shape[0])
    return length, keras.tree.map_structure(lambda tensor: keras.KerasTensor(tensor.shape[1:], tensor.dtype), values)


def _map(tracer: Tracer, _: Any, function: Callable[..., Any], values: Any) -> FlopsCount:
    length, first = _slices(values)
    tracer.times *= length
    function(first)
    return FlopsCount()


def _vectorized_map(tracer: Tracer, operation: Any, values: Any) -> FlopsCount:
    return _map(tracer, operation, operation.function, values)


def _scan(
    tracer: Tracer, operation: Any, function: Callable[..., Any], init: Any, values: Any = None, length: Any = None
) -> FlopsCount:
    """Its length is its own, or in early releases an argument of the call."""
    length = getattr(operation, "length", length)
    length, first = _slices(values) if values is not None else (int(length), None)
    tracer.times *= length
    function(init, first)
    return FlopsCount()


def _fori(tracer: Tracer, operation: Any, init: Any) -> FlopsCount:
    lower, upper = int(operation.lower), int(operation.upper)
    if upper <= lower:
        return FlopsCount()
    tracer.times *= upper - lower
    mark = len(tracer.calls)
    try:
        operation.body_fun(keras.KerasTensor((), "int32"), init)
    except Exception:  # a body that wants a number for its index
        del tracer.calls[mark:]
        operation.body_fun(lower, init)
    return FlopsCount()


def _while(_: Tracer, operation: Any, variables: Any) -> FlopsCount | None:
    """Runs as it would, with numbers for what are numbers, so that a counter ends it."""
    is_single = not isinstance(variables, (tuple, list))
    current = (variables,) if is_single else tuple(variables)
    limit = MOST_TRIPS if operation.maximum_iterations is None else int(operation.maximum_iterations)
    for _trip in range(limit):
        condition = operation.cond(*current)
        if isinstance(condition, keras.KerasTensor):
            return None
        if not bool(condition):
            return FlopsCount()
        next_variables = operation.body(*current)
        current = tuple(next_variables) if isinstance(next_variables, (tuple, list)) else (next_variables,)
    return None if operation.maximum_iterations is None else FlopsCount()


def _cond(tracer: Tracer, operation: Any, pred: Any, true_fn: Any, false_fn: Any) -> FlopsCount:
    return _cheapest_branch(tracer, operation, [true_fn, false_fn], ())


def _switch(tracer: Tracer, operation: Any, index: Any, branches: Sequence[Any], *operands: Any) -> FlopsCount:
    return _cheapest_branch(tracer, operation, branches, operands)


def _cheapest_branch(tracer: Tracer, operation: Any, branches: Sequence[Any], operands: Sequence[Any]) -> FlopsCount:
    """The cheapest branch is kept; where others do not cost the same, that is a lower bound."""
    mark, branch_calls = len(tracer.calls), []
    for branch in branches:
        branch(*operands)
        branch_calls.append(tracer.calls[mark:])
        del tracer.calls[mark:]
    index, same = cheapest([rules.total(calls) for calls in branch_calls])
    tracer.calls.extend(branch_calls[index])
    return FlopsCount() if same else FlopsCount(0, ((type(operation).__name__, 1),))


def _associative_scan(tracer: Tracer, _: Any, function: Callable[..., Any], values: Any) -> FlopsCount | None:
    """How often pairs are combined depends on the backend, so only what costs nothing has a number."""
    mark = len(tracer.calls)
    function(values, values)
    cost = rules.total(tracer.calls[mark:])
    del tracer.calls[mark:]
    return FlopsCount() if cost == FlopsCount() else None


_BODIES: dict[str, Callable[..., FlopsCount | None]] = {
    "Map": _map,
    "VectorizedMap": _vectorized_map,
    "Scan": _scan,
    "ForiLoop": _fori,
    "WhileLoop": _while,
    "Cond": _cond,
    "Switch": _switch,
    "AssociativeScan": _associative_scan,
}
