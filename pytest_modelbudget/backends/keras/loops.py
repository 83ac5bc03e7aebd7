"""Loops and branches among Keras' operations: their bodies are looked into, as many times as they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras
import numpy as np

from pytest_modelbudget.backends.costs import Count
from pytest_modelbudget.backends.keras import rules
from pytest_modelbudget.backends.keras.calls import Call

MOST_TRIPS = 10_000
"""A `while_loop` that runs longer than this is not followed to its end."""


class Tracer(Protocol):
    """Who writes down the calls that bodies make, each as often as `times` says."""

    calls: list[Call]
    times: int


def look_into(tracer: Tracer, one: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Count | None:
    """Run the bodies of `one` on symbolic tensors, and say what it costs beside the calls that they made.

    None for any other operation, and for a loop whose number of runs only values would tell.
    """
    run = _BODIES.get(type(one).__name__) if type(one).__module__.startswith("keras.src.") else None
    if run is None:
        return None
    mark, times = len(tracer.calls), tracer.times
    try:
        count = run(tracer, one, *args, **kwargs)
    except Exception:  # a body that does not take symbolic tensors
        count = None
    finally:
        tracer.times = times
    if count is None:
        del tracer.calls[mark:]
    return count


def sized(one: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of `one` for inferring shapes: a `while_loop` has them of arrays only, so numbers become such."""
    if type(one).__name__ != "WhileLoop":
        return args
    arrays: tuple[Any, ...] = keras.tree.map_structure(
        lambda value: value if hasattr(value, "shape") else np.asarray(value), args
    )
    return arrays


def _slices(values: Any) -> tuple[int, Any]:
    """The length of the first axis, and what is left of each tensor without it."""
    length = int(keras.tree.flatten(values)[0].shape[0])
    return length, keras.tree.map_structure(lambda one: keras.KerasTensor(one.shape[1:], one.dtype), values)


def _map(tracer: Tracer, _: Any, function: Callable[..., Any], values: Any) -> Count:
    length, first = _slices(values)
    tracer.times *= length
    function(first)
    return Count()


def _vectorized_map(tracer: Tracer, one: Any, values: Any) -> Count:
    return _map(tracer, one, one.function, values)


def _scan(
    tracer: Tracer, one: Any, function: Callable[..., Any], init: Any, values: Any = None, length: Any = None
) -> Count:
    """Its length is its own, or in early releases an argument of the call."""
    length = getattr(one, "length", length)
    length, first = _slices(values) if values is not None else (int(length), None)
    tracer.times *= length
    function(init, first)
    return Count()


def _fori(tracer: Tracer, one: Any, init: Any) -> Count:
    lower, upper = int(one.lower), int(one.upper)
    if upper <= lower:
        return Count()
    tracer.times *= upper - lower
    mark = len(tracer.calls)
    try:
        one.body_fun(keras.KerasTensor((), "int32"), init)
    except Exception:  # a body that wants a number for its index
        del tracer.calls[mark:]
        one.body_fun(lower, init)
    return Count()


def _while(_: Tracer, one: Any, variables: Any) -> Count | None:
    """Runs as it would, with numbers for what are numbers, so that a counter ends it."""
    single = not isinstance(variables, (tuple, list))
    current = (variables,) if single else tuple(variables)
    most = MOST_TRIPS if one.maximum_iterations is None else int(one.maximum_iterations)
    for _trip in range(most):
        goes_on = one.cond(*current)
        if isinstance(goes_on, keras.KerasTensor):
            return None
        if not bool(goes_on):
            return Count()
        following = one.body(*current)
        current = tuple(following) if isinstance(following, (tuple, list)) else (following,)
    return None if one.maximum_iterations is None else Count()


def _cond(tracer: Tracer, one: Any, pred: Any, true_fn: Any, false_fn: Any) -> Count:
    return _branches(tracer, one, [true_fn, false_fn], ())


def _switch(tracer: Tracer, one: Any, index: Any, branches: Sequence[Any], *operands: Any) -> Count:
    return _branches(tracer, one, branches, operands)


def _branches(tracer: Tracer, one: Any, branches: Sequence[Any], operands: Sequence[Any]) -> Count:
    """The cheapest branch is kept; where others do not cost the same, that is a lower bound."""
    mark, found = len(tracer.calls), []
    for branch in branches:
        branch(*operands)
        found.append(tracer.calls[mark:])
        del tracer.calls[mark:]
    costs = [rules.total(calls) for calls in found]
    least = min(range(len(found)), key=lambda at: (costs[at].flops, len(costs[at].uncounted)))
    tracer.calls.extend(found[least])
    same = all(cost == costs[least] for cost in costs)
    return Count() if same else Count(0, ((type(one).__name__, 1),))


def _associative_scan(tracer: Tracer, _: Any, function: Callable[..., Any], values: Any) -> Count | None:
    """How often pairs are combined depends on the backend, so only what costs nothing has a number."""
    mark = len(tracer.calls)
    function(values, values)
    cost = rules.total(tracer.calls[mark:])
    del tracer.calls[mark:]
    return Count() if cost == Count() else None


_BODIES: dict[str, Callable[..., Count | None]] = {
    "Map": _map,
    "VectorizedMap": _vectorized_map,
    "Scan": _scan,
    "ForiLoop": _fori,
    "WhileLoop": _while,
    "Cond": _cond,
    "Switch": _switch,
    "AssociativeScan": _associative_scan,
}
