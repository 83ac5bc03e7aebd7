"""What stands in autograd's graph for a block that was replayed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pytest_modelbudget.backends.torch.model.pytree import storage_key
from pytest_modelbudget.backends.torch.replay.fingerprint import NotComparable


class BackwardThroughReplay(RuntimeError):
    """A model asked for gradients through a block that was only replayed."""


class GraphHold:
    """Goes when the graph lets go of a replayed block, with the storages that it keeps."""

    __slots__ = ("__weakref__", "_storages")

    def __init__(self) -> None:
        self._storages: list[torch.UntypedStorage] = []

    def storage_of(self, tensor: torch.Tensor) -> int:
        """The key of the storage of `tensor`, which is kept: no other one gets its address.

        It is kept without the graph of its tensor: a result that its own graph holds would never go.
        """
        self._storages.append(tensor.untyped_storage())
        return storage_key(tensor)


class _ReplayedBlock(torch.autograd.Function):  # type: ignore[misc]
    """A block, with what it keeps."""

    @staticmethod
    def forward(ctx: Any, leaf: torch.Tensor, results: list[torch.Tensor], hold: GraphHold, *arguments: Any) -> Any:
        """The one tensor in `results`."""
        ctx.hold = hold
        return results.pop()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Not known."""
        raise BackwardThroughReplay


def as_result_of(leaf: torch.Tensor, arguments: Sequence[torch.Tensor], hold: GraphHold, tensor: torch.Tensor) -> Any:
    """`tensor` as what a block made of `arguments` and `leaf`, which is trained; its graph holds `hold`."""
    return _ReplayedBlock.apply(leaf, [tensor], hold, *arguments)


def trained_result(results: Sequence[torch.Tensor], arguments: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """The first of `results` that needs a gradient, and is none of `arguments`."""
    others = [result for result in results if all(result is not argument for argument in arguments)]
    return next((result for result in others if result.requires_grad), None)


def reached_arguments(results: Sequence[torch.Tensor], arguments: Sequence[torch.Tensor]) -> tuple[int, ...]:
    """The places of the arguments that the graph of the trained result leads back to.

    Raises:
        NotComparable: one of them is a leaf.
    """
    if (result := trained_result(results, arguments)) is None:
        return ()
    ends = {}
    for place, tensor in enumerate(arguments):
        if tensor.requires_grad:
            if tensor.grad_fn is None:
                raise NotComparable("an argument is a leaf that needs a gradient")
            ends[tensor.grad_fn, tensor.output_nr] = place
    places: set[int] = set()
    visited, pending = {result.grad_fn}, [result.grad_fn]
    while pending:
        for edge in pending.pop().next_functions:
            if edge in ends:
                places.add(ends[edge])
            elif edge[0] is not None and edge[0] not in visited:
                visited.add(edge[0])
                pending.append(edge[0])
    return tuple(sorted(places))
