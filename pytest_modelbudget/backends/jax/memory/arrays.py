"""Bytes of all arrays of a jaxpr, as if each had memory of its own: more than a compiler that fuses and reuses takes.

A loop has what it gives and what one run of its body makes, a branch what the larger one makes. A convolution has its
columns beside its result: what its kernel is multiplied with at each place, unfolded, which CPUs do in memory that XLA
does not tell. What XLA copies on its way and what other kernels take inside themselves is not counted.
"""

from __future__ import annotations

from math import prod
from typing import Any

from pytest_modelbudget.backends.costs.jaxpr import inner_jaxprs, needed_equations
from pytest_modelbudget.backends.jax.memory.step import array_bytes

_LOOPS = ("scan", "while")
_CONVOLUTION = "conv_general_dilated"
_LEAST_COLUMN_ITEM = 4
"""Bytes of a number in a column: smaller floats are multiplied as these."""


def bytes_without_reuse(closed: Any) -> int:
    """Bytes of all arguments, results and what is made between them."""
    jaxpr = closed.jaxpr
    return sum(array_bytes(variable.aval) for variable in [*jaxpr.invars, *jaxpr.constvars]) + _made_bytes(jaxpr)


def _made_bytes(jaxpr: Any) -> int:
    return sum(map(_bytes_of, needed_equations(jaxpr)))


def _bytes_of(eqn: Any) -> int:
    """What an equation makes; the results of a function or branch are made inside it."""
    results = sum(array_bytes(variable.aval) for variable in eqn.outvars)
    if str(eqn.primitive.name) == _CONVOLUTION:
        return results + _column_bytes(eqn)
    inside = max((_made_bytes(inner.jaxpr) for inner in inner_jaxprs(eqn)), default=0)
    return results + inside if str(eqn.primitive.name) in _LOOPS else max(results, inside)


def _column_bytes(eqn: Any) -> int:
    """One number for each element of the kernel at each place of the result, for all groups."""
    kernel, result = eqn.invars[1].aval, eqn.outvars[0].aval
    numbers, params = eqn.params["dimension_numbers"], eqn.params
    batch, _, *places = (result.shape[axis] for axis in numbers.out_spec)
    _, *elements = (kernel.shape[axis] for axis in numbers.rhs_spec)
    groups = params["feature_group_count"] * params["batch_group_count"]
    return int(prod((batch, *places, *elements, groups))) * max(int(kernel.dtype.itemsize), _LEAST_COLUMN_ITEM)
