"""Bytes that a forward pass in training mode holds for the backward pass, as Keras' backend keeps them.

Counted as for torch models: each storage whole and once, in its own dtype; no variables, no inputs, no outputs as
such, and no losses that layers add. A graph of Keras' own layers is followed call by call, so that calls which do the
same are run once; any other model runs as one call, and the shares of its layers are then not known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras

from pytest_modelbudget.backends.keras import jax_residuals, private, private_torch
from pytest_modelbudget.backends.keras.composing import ByCalls, CannotFollow, Place, given, run
from pytest_modelbudget.backends.keras.fingerprints import all_keras
from pytest_modelbudget.backends.residuals import Keep, NotKnown


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes in all, those of each row (none where the shares are not known), and in whose manner they are kept."""

    total: int
    manner: str
    by_row: Mapping[Place, int] = field(default_factory=dict)


_MANNERS = {
    "jax": "as jax.vjp keeps them under Keras on jax, before the compiler",
    "torch": "as torch's autograd keeps them under Keras on torch, with the operators of the CPU",
}


def measured(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Held:
    """What `model` holds after a call on Keras tensors that have all their sizes.

    Raises:
        NotKnown: with the reason.
    """
    backend = keras.backend.backend()
    if backend not in _MANNERS:
        raise NotKnown(f"what {backend} keeps for the backward pass is not followed")
    try:
        with private.called_for(training=True), _keeper(backend) as keep:
            total, by_row = _by_calls(model, args, kwargs, keep) or (_at_once(model, args, kwargs, keep), {})
    except NotKnown:
        raise
    except Exception as mistake:  # whatever the model's code raises in training mode
        said = next(iter(str(mistake).strip().splitlines()), "")
        raise NotKnown(f"the pass in training mode failed: {type(mistake).__name__}: {said}") from mistake
    return Held(total, _MANNERS[backend], by_row)


@contextmanager
def _keeper(backend: str) -> Iterator[Keep]:
    if backend == "jax":
        with keras.SymbolicScope(), jax_residuals.keeper() as keep:
            yield keep
        return
    from pytest_modelbudget.backends.torch.memory.residuals import keeper

    with keras.SymbolicScope(), private_torch.torch_on_meta(), keeper() as keep:
        yield keep


def _at_once(model: Any, args: Any, kwargs: Any, keep: Keep) -> int:
    """All that one call of the whole model keeps."""
    tensors = [given(one) for one in keras.tree.flatten((args, kwargs)) if isinstance(one, keras.KerasTensor)]
    kept = run(keep, model, (args, kwargs), tensors, keras.KerasTensor, strict=False)
    return sum(count for (kind, _), count in kept.storages if kind != "given")


def _by_calls(model: Any, args: Any, kwargs: Any, keep: Keep) -> tuple[int, Mapping[Place, int]] | None:
    """The same from the calls of its graph, and by row; None where they cannot be told apart."""
    graph = private.graph_of(model)
    if graph is None or kwargs or len(args) != 1 or not all_keras(model):
        return None
    try:
        return ByCalls(keep).of(model, graph, keras.tree.flatten(args[0]))
    except CannotFollow:
        return None
