"""What `jax.vjp` keeps of one call: read from the jaxpr of the call and its residuals, which runs nothing.

Each array of the jaxpr is a storage of its own, and single numbers, which are constants of the call, are not counted.
What the compiler later keeps or computes anew is not followed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pytest_modelbudget.backends.residuals import Call, Keep, Kept, Parameter, Tensor, Word


@contextmanager
def keeper() -> Iterator[Keep]:
    """Give a function that says what a call keeps."""
    yield _kept


def _kept(call: Call, parameters: Sequence[Parameter], given: Sequence[Tensor]) -> Kept:
    jax: Any = sys.modules["jax"]
    everything: list[Parameter | Tensor] = [*parameters, *given]
    specs = [jax.ShapeDtypeStruct(one.shape, one.dtype) for one in everything]
    trained = [at for at, one in enumerate(everything) if one.trained and _is_float(jax, specs[at].dtype)]
    results = 0

    def differentiated(*values: Any) -> list[Any]:
        def forward(*moved: Any) -> list[Any]:
            both = list(values)
            for at, value in zip(trained, moved, strict=True):
                both[at] = value
            return list(call(both[: len(parameters)], both[len(parameters) :]))

        nonlocal results
        made, backward = jax.vjp(forward, *[values[at] for at in trained])
        results = len(made)
        return [*made, *jax.tree_util.tree_leaves(backward)]

    jaxpr = jax.make_jaxpr(differentiated)(*specs).jaxpr
    words = _words(jaxpr, len(parameters), results)
    residuals = [one for one in jaxpr.outvars[results:] if one.aval.shape and not hasattr(one, "val")]
    held: dict[Word, int] = {}
    for one in residuals:
        held[words.setdefault(one, ("inner", len(words)))] = _bytes(one.aval)
    made = jaxpr.outvars[:results]
    return Kept(
        tuple((word, count) for word, count in held.items() if word[0] != "parameter"),
        tuple(_described(jax, one.aval, bool(trained)) for one in made),
        tuple(("made", at) if hasattr(one, "val") else words[one] for at, one in enumerate(made)),
        tuple(at - len(parameters) for at in trained if at >= len(parameters)),
    )


def _words(jaxpr: Any, parameters: int, results: int) -> dict[Any, Word]:
    words: dict[Any, Word] = {}
    for at, one in enumerate(jaxpr.invars):
        words[one] = ("parameter", at) if at < parameters else ("given", at - parameters)
    for at, one in enumerate(jaxpr.outvars[:results]):
        if not hasattr(one, "val"):
            words.setdefault(one, ("made", at))
    return words


def _described(jax: Any, aval: Any, trained: bool) -> Tensor:
    return Tensor(tuple(aval.shape), str(aval.dtype), trained and _is_float(jax, aval.dtype), 0, _bytes(aval))


def _is_float(jax: Any, dtype: Any) -> bool:
    return bool(jax.numpy.issubdtype(dtype, jax.numpy.inexact))


def _bytes(aval: Any) -> int:
    return int(aval.size) * int(aval.dtype.itemsize)
