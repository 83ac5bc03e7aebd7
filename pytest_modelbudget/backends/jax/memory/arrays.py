"""Bytes of all arrays of a jaxpr, as if each had memory of its own: more than a compiler that fuses and reuses takes.

A loop has what it gives and what one run of its body makes, a branch what the larger one makes. What XLA copies on its
way and what kernels take inside themselves is not counted.
"""

from __future__ import annotations

from typing import Any

from pytest_modelbudget.backends.costs.jaxpr import inner_jaxprs, needed_equations
from pytest_modelbudget.backends.jax.memory.step import array_bytes

_LOOPS = ("scan", "while")


def bytes_without_reuse(closed: Any) -> int:
    """Bytes of all arguments, results and what is made between them."""
    jaxpr = closed.jaxpr
    return sum(array_bytes(variable.aval) for variable in [*jaxpr.invars, *jaxpr.constvars]) + _made_bytes(jaxpr)


def _made_bytes(jaxpr: Any) -> int:
    return sum(map(_bytes_of, needed_equations(jaxpr)))


def _bytes_of(eqn: Any) -> int:
    """What an equation makes; the results of a function or branch are made inside it."""
    results = sum(array_bytes(variable.aval) for variable in eqn.outvars)
    inside = max((_made_bytes(inner.jaxpr) for inner in inner_jaxprs(eqn)), default=0)
    return results + inside if str(eqn.primitive.name) in _LOOPS else max(results, inside)
