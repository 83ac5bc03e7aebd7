"""What `jax.vjp` keeps of one call: read from the jaxpr of the call and its residuals, which runs nothing.

Each array of the jaxpr is a storage of its own, and single numbers, which are constants of the call, are not counted.
What the compiler later keeps or computes anew is not followed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pytest_modelbudget.backends.residuals import (
    Differentiable,
    FindResiduals,
    Parameter,
    Residuals,
    StorageRef,
    Tensor,
)


@contextmanager
def residuals_finder() -> Iterator[FindResiduals]:
    """Give a function that says what a call keeps."""
    yield _find_residuals


def _find_residuals(call: Differentiable, parameters: Sequence[Parameter], arguments: Sequence[Tensor]) -> Residuals:
    jax: Any = sys.modules["jax"]
    all_inputs: list[Parameter | Tensor] = [*parameters, *arguments]
    specs = [jax.ShapeDtypeStruct(tensor.shape, tensor.dtype) for tensor in all_inputs]
    trained = [
        position
        for position, tensor in enumerate(all_inputs)
        if tensor.trained and _is_float(jax, specs[position].dtype)
    ]
    results = 0

    def differentiated(*values: Any) -> list[Any]:
        def forward(*trained_values: Any) -> list[Any]:
            all_values = list(values)
            for position, value in zip(trained, trained_values, strict=True):
                all_values[position] = value
            return list(call(all_values[: len(parameters)], all_values[len(parameters) :]))

        nonlocal results
        outputs, backward = jax.vjp(forward, *[values[position] for position in trained])
        results = len(outputs)
        return [*outputs, *jax.tree_util.tree_leaves(backward)]

    jaxpr = jax.make_jaxpr(differentiated)(*specs).jaxpr
    refs = _storage_refs(jaxpr, len(parameters), results)
    residuals = [tensor for tensor in jaxpr.outvars[results:] if tensor.aval.shape and not hasattr(tensor, "val")]
    bytes_by_ref: dict[StorageRef, int] = {}
    for tensor in residuals:
        bytes_by_ref[refs.setdefault(tensor, ("inner", len(refs)))] = _bytes(tensor.aval)
    outputs = jaxpr.outvars[:results]
    return Residuals(
        tuple((ref, count) for ref, count in bytes_by_ref.items() if ref[0] != "parameter"),
        tuple(_plain_tensor(jax, tensor.aval, bool(trained)) for tensor in outputs),
        tuple(
            ("made", position) if hasattr(tensor, "val") else refs[tensor] for position, tensor in enumerate(outputs)
        ),
        tuple(position - len(parameters) for position in trained if position >= len(parameters)),
    )


def _storage_refs(jaxpr: Any, parameters: int, results: int) -> dict[Any, StorageRef]:
    refs: dict[Any, StorageRef] = {}
    for position, variable in enumerate(jaxpr.invars):
        refs[variable] = ("parameter", position) if position < parameters else ("given", position - parameters)
    for position, variable in enumerate(jaxpr.outvars[:results]):
        if not hasattr(variable, "val"):
            refs.setdefault(variable, ("made", position))
    return refs


def _plain_tensor(jax: Any, aval: Any, trained: bool) -> Tensor:
    return Tensor(tuple(aval.shape), str(aval.dtype), trained and _is_float(jax, aval.dtype), 0, _bytes(aval))


def _is_float(jax: Any, dtype: Any) -> bool:
    return bool(jax.numpy.issubdtype(dtype, jax.numpy.inexact))


def _bytes(aval: Any) -> int:
    return int(aval.size) * int(aval.dtype.itemsize)
