"""Calls of one function that do the same again and again: two that were seen to are repeated, and not run a third time.

What a call did is kept in numbers of its own: storages that it made count from 0, those of its arguments are negative.
So two calls that did the same are equal, and a third one is noted with storages of its own. It is refused where a call
let go of what it did not make, or left behind more than it returned.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from pytest_modelbudget.backends.torch.compat import no_modes
from pytest_modelbudget.backends.torch.memory.recorder import Recorder
from pytest_modelbudget.backends.torch.memory.work import NotedWork
from pytest_modelbudget.backends.torch.model.pytree import storage_key
from pytest_modelbudget.backends.torch.replay.fingerprint import CallSignature, NotComparable
from pytest_modelbudget.planner import MemoryEvent
from pytest_modelbudget.summary import Role


@dataclass(frozen=True, slots=True)
class _Result:
    """A tensor that a call returned: how it lies in the storage with this number, of so many bytes."""

    storage: int
    bytes: int
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Call:
    """What a call did that made so many `storages`; see the module for its numbers.

    `freed_after` go with what runs next. `sums` are sums of gradients by event, as a recorder keeps them, and `extra`
    is what another recorder notes beside.
    """

    storages: int
    events: tuple[MemoryEvent, ...]
    freed_after: tuple[int, ...]
    sums: tuple[tuple[int, int, int], ...]
    roles: tuple[tuple[int, Role], ...]
    work: NotedWork | None
    extra: Hashable
    result: tuple[Any, ...]


class RepeatingRecorder(Recorder):
    """Knows functions that are called again and again; `repeating` calls one, or repeats what it did."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._calls: dict[Hashable, _Call] = {}
        self._trusted: set[Hashable] = set()

    def repeating(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What `function` gives, which looks at nothing but these arguments, and calls no module."""
        try:
            signature = CallSignature((), dict(kwargs))
            inputs = [self._numbers[storage_key(tensor)] for tensor in signature.tensors]
            path = self._path()
            key = function, args, signature.key, self.phase, self.kernel, self.on_device, self._work is not None
            call = self._calls.get(key)
        except (NotComparable, TypeError, KeyError):  # TypeError: what has no hash; KeyError: a tensor that is not held
            return function(*args, **kwargs)
        if call is not None and key in self._trusted:
            return self._repeat(call, inputs, path)
        self._note_freed()
        before = len(self._events), self._next_number, len(self._initial), self._extra_position()
        if self._work is not None:
            self._work.begin_noting()
        result = function(*args, **kwargs)
        work = self._work.noted() if self._work is not None else None
        try:
            recorded = self._relative(before, inputs, path, work, result)
        except NotComparable:
            self._calls.pop(key, None)
            return result
        if recorded == call:
            self._trusted.add(key)
        self._calls[key] = recorded
        return result

    def _extra_position(self) -> int:
        """How much another recorder noted beside."""
        return 0

    def _extra_since(self, position: int, first_event: int) -> Hashable:
        """What was noted beside since then, with events as numbers from `first_event` on."""
        return ()

    def _repeat_extra(self, extra: Any, first_event: int) -> None:
        """Note it once more."""

    def _relative(
        self,
        before: tuple[int, int, int, int],
        inputs: Sequence[int],
        path: str,
        work: NotedWork | None,
        result: Any,
    ) -> _Call:
        """What a call did since there were so many events, storages and held ones."""
        first_event, first, held, position = before
        self._note_freed()
        events = self._events[first_event:]
        if not events or len(self._initial) > held or any(event.path != path for event in events):
            raise NotComparable("it did nothing, met what was there before, or called modules")
        if any(number < first for event in events[1:] for number in event.freed):
            raise NotComparable("it let go of what it did not make")
        places = {number: -1 - place for place, number in reversed(list(enumerate(inputs)))}

        def own(number: int) -> int:
            if number >= first:
                return number - first
            if number not in places:
                raise NotComparable("it read what it neither got nor made")
            return places[number]

        relative = tuple(
            MemoryEvent(
                event.op, "", event.phase, tuple([(own(number), size) for number, size in event.made]),
                tuple([number - first for number in event.freed if number >= first]), event.workspace,
            )
            for event in events
        )  # fmt: skip
        freed_after = tuple([number - first for number in self._freed if number >= first])
        template = self._template(result, first)
        allocated = {number for event in relative for number, size in event.made if size}
        gone = {number for event in relative for number in event.freed} | set(freed_after)
        if not allocated - gone <= {part.storage for part in template if type(part) is _Result}:
            raise NotComparable("it left something behind")
        sums = [
            (index - first_event, own(made_number), own(operand))
            for index, (made_number, operand) in self._sums.items()
            if index >= first_event
        ]
        roles = [(number - first, role) for number, role in self._roles.items() if number >= first]
        return _Call(
            self._next_number - first, relative, freed_after, tuple(sums), tuple(roles),
            work.renumbered(own, "") if work is not None else None, self._extra_since(position, first_event), template,
        )  # fmt: skip

    def _template(self, result: Any, first: int) -> tuple[Any, ...]:
        if type(result) is not tuple:
            raise NotComparable("it returns no tuple")
        return tuple([self._described(part, first) if isinstance(part, torch.Tensor) else part for part in result])

    def _described(self, tensor: torch.Tensor, first: int) -> _Result:
        number = self._numbers.get(storage_key(tensor), -1)
        if type(tensor) is not torch.Tensor or not tensor.is_meta or number < first:
            raise NotComparable("it returns what it did not make")
        offset, shape, stride = tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
        return _Result(number - first, tensor.untyped_storage().nbytes(), tensor.dtype, offset, shape, stride)

    def _repeat(self, call: _Call, inputs: Sequence[int], path: str) -> tuple[Any, ...]:
        """Note what `call` did, for a module at `path` and other arguments."""
        first_event, first = len(self._events), self._next_number
        self._next_number += call.storages

        def number(own: int) -> int:
            return first + own if own >= 0 else inputs[-1 - own]

        pending = self._take_freed()
        for event in call.events:
            made = tuple([(number(own), size) for own, size in event.made])
            freed = (*pending, *[first + own for own in event.freed])
            self._events.append(MemoryEvent(event.op, path, event.phase, made, freed, event.workspace))
            pending = ()
        self._freed += [first + own for own in call.freed_after]
        self._sums.update({first_event + index: (number(made), number(operand)) for index, made, operand in call.sums})
        self._roles.update({first + own: role for own, role in call.roles})
        if self._work is not None and call.work is not None:
            self._work.note_again(call.work.renumbered(number, path))
        self._repeat_extra(call.extra, first_event)
        storages: dict[int, torch.UntypedStorage] = {}
        with no_modes(), torch.no_grad():
            return tuple([self._made(part, first, storages) if type(part) is _Result else part for part in call.result])

    def _made(self, part: _Result, first: int, storages: dict[int, torch.UntypedStorage]) -> torch.Tensor:
        """A tensor in a storage of its own, or in that of another result."""
        if (storage := storages.get(part.storage)) is None:
            storage = storages[part.storage] = torch.UntypedStorage(part.bytes, device="meta")
            key = int(storage._cdata)
            self._sizes[key], self._numbers[key] = part.bytes, first + part.storage
            self._alive[key] = weakref.ref(storage, lambda _: self._maybe_freed.append(key)), StorageWeakRef(storage)
        return torch.empty(0, dtype=part.dtype, device="meta").set_(storage, part.offset, part.shape, part.stride)
