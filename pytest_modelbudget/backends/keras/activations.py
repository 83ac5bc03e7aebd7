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

from pytest_modelbudget.backends import jax_residuals
from pytest_modelbudget.backends.keras import private, private_torch
from pytest_modelbudget.backends.keras.composing import (
    GraphNotFollowed,
    GraphResiduals,
    RowKey,
    find_call_residuals,
    input_tensor,
)
from pytest_modelbudget.backends.keras.fingerprints import runs_only_keras_code
from pytest_modelbudget.backends.residuals import FindResiduals, ResidualsUnknown
from pytest_modelbudget.backends.tf_memory import residuals as tf_residuals


@dataclass(frozen=True, slots=True)
class KerasActivations:
    """Bytes in all, those of each row (none where the shares are not known), and in whose manner they are kept."""

    total: int
    manner: str
    by_row: Mapping[RowKey, int] = field(default_factory=dict)


_MANNER_BY_BACKEND = {
    "jax": "as jax.vjp keeps them under Keras on jax, before the compiler",
    "torch": "as torch's autograd keeps them under Keras on torch, with the operators of the CPU",
    "tensorflow": "as a graph with GradientTape keeps them under Keras on tensorflow, before its optimizer",
}


def measure_activations(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> KerasActivations:
    """What `model` holds after a call on Keras tensors that have all their sizes.

    Raises:
        NotKnown: with the reason.
    """
    backend = keras.backend.backend()
    if backend not in _MANNER_BY_BACKEND:
        raise ResidualsUnknown(f"what {backend} keeps for the backward pass is not followed")
    try:
        with private.called_for(training=True), _residuals_finder(backend) as find_residuals:
            total, by_row = _call_by_call(model, args, kwargs, find_residuals) or (
                _whole_model(model, args, kwargs, find_residuals),
                {},
            )
    except ResidualsUnknown:
        raise
    except Exception as error:  # whatever the model's code raises in training mode
        first_line = next(iter(str(error).strip().splitlines()), "")
        raise ResidualsUnknown(f"the pass in training mode failed: {type(error).__name__}: {first_line}") from error
    return KerasActivations(total, _MANNER_BY_BACKEND[backend], by_row)


@contextmanager
def _residuals_finder(backend: str) -> Iterator[FindResiduals]:
    if backend == "jax":
        with keras.SymbolicScope(), jax_residuals.residuals_finder() as keep:
            yield keep
        return
    if backend == "tensorflow":
        with keras.SymbolicScope(), tf_residuals.residuals_finder() as keep:
            yield keep
        return
    from pytest_modelbudget.backends.torch.memory.residuals import residuals_finder

    with keras.SymbolicScope(), private_torch.torch_on_meta(), residuals_finder() as keep:
        yield keep


def _whole_model(model: Any, args: Any, kwargs: Any, find_residuals: FindResiduals) -> int:
    """All that one call of the whole model keeps."""
    tensors = [input_tensor(leaf) for leaf in keras.tree.flatten((args, kwargs)) if isinstance(leaf, keras.KerasTensor)]
    residuals = find_call_residuals(find_residuals, model, (args, kwargs), tensors, keras.KerasTensor, strict=False)
    return sum(count for (kind, _), count in residuals.storages if kind != "given")


def _call_by_call(
    model: Any, args: Any, kwargs: Any, find_residuals: FindResiduals
) -> tuple[int, Mapping[RowKey, int]] | None:
    """The same from the calls of its graph, and by row; None where they cannot be told apart."""
    graph = private.graph_of(model)
    if graph is None or kwargs or len(args) != 1 or not runs_only_keras_code(model):
        return None
    try:
        return GraphResiduals(find_residuals).of(model, graph, keras.tree.flatten(args[0]))
    except GraphNotFollowed:
        return None
