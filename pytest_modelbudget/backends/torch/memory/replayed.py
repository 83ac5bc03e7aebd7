"""What one call of a block makes autograd keep, in words that fit any block like it; see `repeats`."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

from pytest_modelbudget.backends.torch.compat import saving_hooks
from pytest_modelbudget.backends.torch.memory.saved_tensors import SavedEntry, SavedHandle, SavedTensors
from pytest_modelbudget.backends.torch.model.meta_tensors import META
from pytest_modelbudget.backends.torch.model.modules import unwrap
from pytest_modelbudget.backends.torch.model.pytree import storage_key, tensors
from pytest_modelbudget.backends.torch.replay.cache import MakeResult, Modules
from pytest_modelbudget.backends.torch.replay.fingerprint import CallSignature, NotComparable


@dataclass(frozen=True, slots=True)
class _SharedStorage:
    """The storage of an argument or a result (see `SavedLog`), and the place of the module that saved it first."""

    storage: tuple[str, int]
    bytes: int
    module: int


@dataclass(frozen=True, slots=True)
class _SavedDelta:
    """What a block keeps, and the arguments that its result leads back to.

    Of storages that nobody outside of the block sees, `inner` has the bytes by the place of the module.
    """

    shared: tuple[_SharedStorage, ...]
    inner: tuple[tuple[int, int], ...]
    reached: tuple[int, ...]


class SavedLog:
    """The `Log` of a `SavedTensors`; see `repeats`.

    A storage is that of the `("given", n)`th argument or of the `("made", n)`th result, or nobody outside of the block
    sees it.
    """

    def __init__(self, saved: SavedTensors) -> None:
        self._saved = saved
        self._leaf = torch.empty((), device=META, requires_grad=True)
        self._inner = 0

    def context_key(self, modules: Modules, signature: CallSignature) -> Hashable:
        """Which arguments are counted at all."""
        if not torch.is_grad_enabled():
            raise NotComparable("gradients are off")
        hooks = saving_hooks()
        if hooks is None or hooks[0] != self._saved.pack:
            raise NotComparable("others look at what autograd saves, as checkpointing does")
        return tuple([storage_key(tensor) in self._saved.excluded for tensor in signature.tensors])

    def checkpoint(self, modules: Modules, signature: CallSignature) -> tuple[int, int, int]:
        """How much was saved before."""
        return len(self._saved.entries), self._saved.operators, self._inner

    def delta(
        self, checkpoint: tuple[int, int, int], modules: Modules, signature: CallSignature, results: list[torch.Tensor]
    ) -> _SavedDelta:
        """What the block keeps."""
        entries, operators, inner = checkpoint
        positions = {id(unwrap(module)): position for position, module in enumerate(modules)}
        refs: dict[int, tuple[str, int]] = {}
        for position, tensor in enumerate(signature.tensors):
            refs.setdefault(storage_key(tensor), ("given", position))
        for position, tensor in enumerate(results):
            refs.setdefault(storage_key(tensor), ("made", position))
        shared, inner_bytes, storages_seen = [], Counter[int](), set[int]()
        for entry in self._saved.entries[entries:]:
            if entry.handle() is None:
                continue
            if entry.module not in positions:
                raise NotComparable("a module that is no part of it saved a tensor")
            if entry.storage in storages_seen:
                continue
            storages_seen.add(entry.storage)
            if (ref := refs.get(entry.storage)) is not None:
                shared.append(_SharedStorage(ref, entry.bytes, positions[entry.module]))
            elif self._is_inner(entry.storage, operators, inner):
                inner_bytes[positions[entry.module]] += entry.bytes
            else:
                raise NotComparable("it saves a tensor that it neither got nor made")
        trained = [
            tensor
            for tensor in results
            if tensor.requires_grad and all(tensor is not argument for argument in signature.tensors)
        ]
        if storages_seen and not trained:
            raise NotComparable("it saves tensors, and returns none that needs a gradient")
        reached = _reached_arguments(trained[0].grad_fn, signature.tensors) if trained else ()
        return _SavedDelta(tuple(shared), tuple(inner_bytes.items()), reached)

    def _is_inner(self, storage: int, operators: int, inner: int) -> bool:
        """Whether a storage was made since there were so many operators, and so many inner ones that were told."""
        return -storage > inner if storage < 0 else self._saved.created_at.get(storage, 0) > operators

    def apply(self, delta: _SavedDelta, modules: Modules, signature: CallSignature, make_result: MakeResult) -> Any:
        """Keep as much for another block, as long as its result is kept."""
        handle = SavedHandle(self._leaf)
        pinned: list[object] = [handle]

        def train(tensor: torch.Tensor) -> torch.Tensor:
            reached = (signature.tensors[position] for position in delta.reached)
            result: torch.Tensor = _ReplayedBlock.apply(self._leaf, [tensor], pinned, *reached)
            return result

        out = make_result(train)
        self._saved.operators += 1
        results = tensors(out)
        for tensor in results:
            self._saved.created_at[storage_key(tensor)] = self._saved.operators
        alive = weakref.ref(handle)

        def keep(storage: int, size: int, module: int) -> None:
            self._saved.entries.append(SavedEntry(alive, storage, size, id(unwrap(modules[module]))))

        for entry in delta.shared:
            kind, position = entry.storage
            storage = (signature.tensors if kind == "given" else results)[position].untyped_storage()
            pinned.append(storage)  # without the graph of its tensor: a result that its own graph holds would never go
            keep(storage._cdata, entry.bytes, entry.module)
        for module, size in delta.inner:
            self._inner += 1
            keep(-self._inner, size, module)
        return out


class BackwardThroughReplay(RuntimeError):
    """A model asked for gradients through a block that was only replayed."""


class _ReplayedBlock(torch.autograd.Function):  # type: ignore[misc]
    """Stands in autograd's graph for a block, and holds what the block keeps."""

    @staticmethod
    def forward(
        ctx: Any, leaf: torch.Tensor, results: list[torch.Tensor], pinned: list[object], *arguments: Any
    ) -> Any:
        """The one tensor in `results`."""
        ctx.held = pinned
        return results.pop()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Not known."""
        raise BackwardThroughReplay


def _reached_arguments(result: Any, arguments: list[torch.Tensor]) -> tuple[int, ...]:
    """The places of the arguments that the graph of a result leads back to."""
    ends = {}
    for position, tensor in enumerate(arguments):
        if tensor.requires_grad:
            if tensor.grad_fn is None:
                raise NotComparable("an argument is a leaf that needs a gradient")
            ends[tensor.grad_fn, tensor.output_nr] = position
    positions: set[int] = set()
    visited, pending = {result}, [result]
    while pending:
        for edge in pending.pop().next_functions:
            if edge in ends:
                positions.add(ends[edge])
            elif edge[0] is not None and edge[0] not in visited:
                visited.add(edge[0])
                pending.append(edge[0])
    return tuple(sorted(positions))
