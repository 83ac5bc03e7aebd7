"""What one call of a block makes autograd keep, in words that fit any block like it; see `repeats`."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

from pytest_modelbudget.backends.torch.compat import saving_hooks
from pytest_modelbudget.backends.torch.memory.saved_tensors import Entry, Handle, Saved
from pytest_modelbudget.backends.torch.model.meta_tensors import META
from pytest_modelbudget.backends.torch.model.modules import unwrapped
from pytest_modelbudget.backends.torch.model.pytree import storage_key, tensors
from pytest_modelbudget.backends.torch.replay.cache import Make, Modules
from pytest_modelbudget.backends.torch.replay.fingerprint import Given, Unreadable


@dataclass(frozen=True, slots=True)
class _Kept:
    """The storage of an argument or a result (see `SavedLog`), and the place of the module that saved it first."""

    storage: tuple[str, int]
    bytes: int
    module: int


@dataclass(frozen=True, slots=True)
class _Added:
    """What a block keeps, and the arguments that its result leads back to.

    Of storages that nobody outside of the block sees, `inner` has the bytes by the place of the module.
    """

    kept: tuple[_Kept, ...]
    inner: tuple[tuple[int, int], ...]
    reached: tuple[int, ...]


class SavedLog:
    """The `Log` of a `Saved`; see `repeats`.

    A storage is that of the `("given", n)`th argument or of the `("made", n)`th result, or nobody outside of the block
    sees it.
    """

    def __init__(self, saved: Saved) -> None:
        self._saved = saved
        self._leaf = torch.empty((), device=META, requires_grad=True)
        self._inner = 0

    def surroundings(self, modules: Modules, given: Given) -> Hashable:
        """Which arguments are counted at all."""
        if not torch.is_grad_enabled():
            raise Unreadable("gradients are off")
        hooks = saving_hooks()
        if hooks is None or hooks[0] != self._saved.pack:
            raise Unreadable("others look at what autograd saves, as checkpointing does")
        return tuple([storage_key(tensor) in self._saved.excluded for tensor in given.tensors])

    def mark(self, modules: Modules, given: Given) -> tuple[int, int, int]:
        """How much was saved before."""
        return len(self._saved.entries), self._saved.operators, self._inner

    def since(self, mark: tuple[int, int, int], modules: Modules, given: Given, made: list[torch.Tensor]) -> _Added:
        """What the block keeps."""
        entries, operators, inner = mark
        places = {id(unwrapped(module)): place for place, module in enumerate(modules)}
        words: dict[int, tuple[str, int]] = {}
        for place, tensor in enumerate(given.tensors):
            words.setdefault(storage_key(tensor), ("given", place))
        for place, tensor in enumerate(made):
            words.setdefault(storage_key(tensor), ("made", place))
        kept, within, seen = [], Counter[int](), set[int]()
        for entry in self._saved.entries[entries:]:
            if entry.handle() is None:
                continue
            if entry.module not in places:
                raise Unreadable("a module that is no part of it saved a tensor")
            if entry.storage in seen:
                continue
            seen.add(entry.storage)
            if (word := words.get(entry.storage)) is not None:
                kept.append(_Kept(word, entry.bytes, places[entry.module]))
            elif self._is_inner(entry.storage, operators, inner):
                within[places[entry.module]] += entry.bytes
            else:
                raise Unreadable("it saves a tensor that it neither got nor made")
        trained = [
            tensor for tensor in made if tensor.requires_grad and all(tensor is not one for one in given.tensors)
        ]
        if seen and not trained:
            raise Unreadable("it saves tensors, and returns none that needs a gradient")
        reached = _reached(trained[0].grad_fn, given.tensors) if trained else ()
        return _Added(tuple(kept), tuple(within.items()), reached)

    def _is_inner(self, storage: int, operators: int, inner: int) -> bool:
        """Whether a storage was made since there were so many operators, and so many inner ones that were told."""
        return -storage > inner if storage < 0 else self._saved.made.get(storage, 0) > operators

    def again(self, added: _Added, modules: Modules, given: Given, make: Make) -> Any:
        """Keep as much for another block, as long as its result is kept."""
        handle = Handle(self._leaf)
        held: list[object] = [handle]

        def train(tensor: torch.Tensor) -> torch.Tensor:
            reached = (given.tensors[place] for place in added.reached)
            result: torch.Tensor = _Told.apply(self._leaf, [tensor], held, *reached)
            return result

        out = make(train)
        self._saved.operators += 1
        made = tensors(out)
        for tensor in made:
            self._saved.made[storage_key(tensor)] = self._saved.operators
        alive = weakref.ref(handle)

        def keep(storage: int, size: int, module: int) -> None:
            self._saved.entries.append(Entry(alive, storage, size, id(unwrapped(modules[module]))))

        for kept in added.kept:
            kind, place = kept.storage
            storage = (given.tensors if kind == "given" else made)[place].untyped_storage()
            held.append(storage)  # without the graph of its tensor: a result that its own graph holds would never go
            keep(storage._cdata, kept.bytes, kept.module)
        for module, size in added.inner:
            self._inner += 1
            keep(-self._inner, size, module)
        return out


class AskedBack(RuntimeError):
    """A model asked for gradients through a block that was only told again."""


class _Told(torch.autograd.Function):  # type: ignore[misc]
    """Stands in autograd's graph for a block, and holds what the block keeps."""

    @staticmethod
    def forward(ctx: Any, leaf: torch.Tensor, made: list[torch.Tensor], held: list[object], *given: Any) -> Any:
        """The one tensor in `made`."""
        ctx.held = held
        return made.pop()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Not known."""
        raise AskedBack


def _reached(result: Any, given: list[torch.Tensor]) -> tuple[int, ...]:
    """The places of the arguments that the graph of a result leads back to."""
    ends = {}
    for place, tensor in enumerate(given):
        if tensor.requires_grad:
            if tensor.grad_fn is None:
                raise Unreadable("an argument is a leaf that needs a gradient")
            ends[tensor.grad_fn, tensor.output_nr] = place
    found: set[int] = set()
    seen, waiting = {result}, [result]
    while waiting:
        for step in waiting.pop().next_functions:
            if step in ends:
                found.add(ends[step])
            elif step[0] is not None and step[0] not in seen:
                seen.add(step[0])
                waiting.append(step[0])
    return tuple(sorted(found))
