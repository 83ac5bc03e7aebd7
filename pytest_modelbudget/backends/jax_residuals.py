"""What `jax.vjp` keeps of one call: read from the jaxpr of the call and its residuals, which runs nothing.

Each array of the jaxpr is a storage of its own, and single numbers, which are constants of the call, are not counted.
What the compiler later keeps or computes anew is not followed. Nothing here imports jax: whoever has a call has it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pytest_modelbudget.backends.residuals import (
    Differentiable,
    FindResiduals,
    Parameter,
    Residuals,
    StorageRef,
    Tensor,
)


@dataclass(frozen=True, slots=True)
class Differentiated:
    """The jaxpr of a call and of what its backward pass needs: its first `results` outputs are those of the call."""

    jaxpr: Any
    results: int

    @property
    def kept(self) -> list[Any]:
        """The variables that are kept, each once, without single numbers; arguments of the call are among them."""
        kept = (variable for variable in self.jaxpr.outvars[self.results :] if not hasattr(variable, "val"))
        return list(dict.fromkeys(variable for variable in kept if variable.aval.shape))


def differentiate(call: Callable[..., Sequence[Any]], specs: Sequence[Any], trained: Sequence[int]) -> Differentiated:
    """Trace `call` on arrays of these `specs`, with gradients that flow to the `trained` ones (their positions)."""
    jax: Any = sys.modules["jax"]
    results = 0

    def differentiated(*values: Any) -> list[Any]:
        def forward(*trained_values: Any) -> list[Any]:
            all_values = list(values)
            for position, value in zip(trained, trained_values, strict=True):
                all_values[position] = value
            return list(call(*all_values))

        nonlocal results
        outputs, backward = jax.vjp(forward, *[values[position] for position in trained])
        results = len(outputs)
        return [*outputs, *jax.tree_util.tree_leaves(backward)]

    jaxpr = jax.make_jaxpr(differentiated)(*specs).jaxpr
    return Differentiated(jaxpr, results)


def array_bytes(aval: Any) -> int:
    """The bytes of an array of a jaxpr."""
    return int(aval.size) * int(aval.dtype.itemsize)


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
    split = len(parameters)
    differentiated = differentiate(lambda *values: call(values[:split], values[split:]), specs, trained)
    jaxpr, results = differentiated.jaxpr, differentiated.results
    refs = _storage_refs(jaxpr, len(parameters), results)
    bytes_by_ref: dict[StorageRef, int] = {}
    for tensor in differentiated.kept:
        bytes_by_ref[refs.setdefault(tensor, ("inner", len(refs)))] = array_bytes(tensor.aval)
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
    return Tensor(tuple(aval.shape), str(aval.dtype), trained and _is_float(jax, aval.dtype), 0, array_bytes(aval))


def _is_float(jax: Any, dtype: Any) -> bool:
    return bool(jax.numpy.issubdtype(dtype, jax.numpy.inexact))
