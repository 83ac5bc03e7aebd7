"""What one call of a block did: the events that an observer noted, in words that fit any block like it.

Of a block that was run, `relative_events` keeps the events with a `RelativeRef` in place of each module and storage
that they name; for a block like it, `note_again` puts what is there instead, and notes them once more. An observer
whose events name other things says what these are in a block: `EventLog.owner_ref`, `relative_ref` and `absolute`.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import nn

from pytest_modelbudget.backends.torch.model.pytree import storage_key
from pytest_modelbudget.backends.torch.replay.fingerprint import NotComparable
from pytest_modelbudget.backends.torch.replay.graph import GraphHold, trained_result

Modules = Sequence[nn.Module]
"""A module and all modules below it, in order."""

ARGUMENT, RESULT, INNER, MODULE, HELD = "argument", "result", "inner", "module", "held"

MET = "met"
"""What happens first to each owner of events. It is not noted again for a block that is alike, where it happens."""


class RelativeRef(NamedTuple):
    """What an event of a block is about, by its `kind`.

    `place` is that of a module in the block, of a tensor in what the block got (`ARGUMENT`) or returned (`RESULT`), or
    the number of a storage that nobody outside sees (`INNER`). `HELD` is what autograd's graph holds. Other kinds are
    what an observer has in a module: the `number`th of its kind there, first met after the module at the place `after`.
    """

    kind: str
    place: int = 0
    number: int = 0
    after: int | None = None


Event = tuple[str, Any, tuple[Any, ...], tuple[Any, ...]]
"""Something that an observer noted: what happened, the owner, references, and values.

The owner is a module or what the observer has in one, the references are what else the event is about; values are the
same for each block that is alike. There are very many events: plain tuples are made fastest.
"""


class BlockCall:
    """One call of a block, which is a module and all `modules` below it, with the tensors that it got and returned.

    `sources` are those of the arguments before the call; `created` the storages that operators made since it began;
    `hold` is what autograd's graph holds in place of a block that is replayed.
    """

    def __init__(self, modules: Modules, arguments: list[torch.Tensor]) -> None:
        self.modules, self.arguments = modules, arguments
        self.results: list[torch.Tensor] = []
        self.sources: list[Any] = []
        self.created: set[int] = set()
        self.hold = GraphHold()
        self._inner: dict[int, int] = {}

    @cached_property
    def places(self) -> dict[int, int]:
        """The place of each module, by its `id`."""
        return {id(module): place for place, module in enumerate(self.modules)}

    @cached_property
    def _outer_storages(self) -> dict[int, RelativeRef]:
        """The storages that others see."""
        refs: dict[int, RelativeRef] = {}
        for kind, tensors in ((ARGUMENT, self.arguments), (RESULT, self.results)):
            for place, tensor in enumerate(tensors):
                refs.setdefault(storage_key(tensor), RelativeRef(kind, place))
        return refs

    def storage_ref(self, storage: int) -> RelativeRef:
        """What a storage is in this call."""
        if (ref := self._outer_storages.get(storage)) is not None:
            return ref
        if storage not in self.created:
            raise NotComparable("it saves a tensor that it neither got nor made")
        return RelativeRef(INNER, self._inner.setdefault(storage, len(self._inner)))


class EventLog:
    """The events of a pass that an observer noted.

    Here the owner of an event is a module, by `id`, and it refers to storages, and to what autograd's graph holds, by a
    weak reference.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._inner_storages = itertools.count(-1, -1)  # no key of a storage is negative

    def note(self, *events: Event) -> None:
        """Something happened."""
        self.events += events

    def source_of(self, tensor: torch.Tensor) -> Any:
        """Where `tensor` comes from, None when that is not known."""
        return None

    def label(self, tensor: torch.Tensor, source: Any) -> None:
        """Say where `tensor` comes from."""

    def context_key(self, call: BlockCall) -> Hashable:
        """What else must be equal for two calls to be alike.

        Raises:
            NotComparable: nothing may be replayed here.
        """
        return ()

    def lasting(self, events: Sequence[Event]) -> Sequence[Event]:
        """Of the events of a call those that still say something when it is over."""
        return events

    def owner_ref(self, owner: Any, call: BlockCall) -> RelativeRef:
        """What the owner of an event is in a block.

        Raises:
            NotComparable: it is no part of it.
        """
        if (place := call.places.get(owner)) is None:
            raise NotComparable("a module that is no part of it took part")
        return RelativeRef(MODULE, place)

    def relative_ref(self, key: Any, call: BlockCall) -> RelativeRef:
        """What else an event is about, in a block.

        Raises:
            NotComparable: something that the block neither got nor made.
        """
        if not isinstance(key, weakref.ref):
            return call.storage_ref(key)
        if trained_result(call.results, call.arguments) is None:
            raise NotComparable("it saves tensors, and returns none that needs a gradient")
        return RelativeRef(HELD)

    def absolute(self, ref: RelativeRef, call: BlockCall) -> Any:
        """What `ref` is in a block that is replayed."""
        if ref.kind == MODULE:
            return id(call.modules[ref.place])
        if ref.kind == HELD:
            return weakref.ref(call.hold)
        if ref.kind == INNER:
            call.created.add(storage := next(self._inner_storages))
            return storage
        return call.hold.storage_of((call.arguments if ref.kind == ARGUMENT else call.results)[ref.place])


class RelativeEvents(NamedTuple):
    """The events of a call, which name what they are about by its number in `refs`.

    `result_sources` has the source of each result, `new_sources` those of arguments that are others now, by place.
    """

    refs: tuple[RelativeRef, ...]
    events: tuple[Event, ...]
    result_sources: tuple[int | None, ...]
    new_sources: tuple[tuple[int, int], ...]


def relative_events(log: EventLog, call: BlockCall, events: Sequence[Event]) -> RelativeEvents:
    """`events`, which `log` noted during `call`, and where its tensors come from now.

    Raises:
        NotComparable: something that is not of the call.
    """
    numbers: dict[RelativeRef, int] = {}

    def number(key: Any) -> int:
        return numbers.setdefault(log.relative_ref(key, call), len(numbers))

    def owner_number(owner: Any) -> int:
        return numbers.setdefault(log.owner_ref(owner, call), len(numbers))

    for what, owner, *_ in events:
        if what == MET:
            owner_number(owner)  # first of all, so that they are met in the same order
    relative = tuple(
        [
            (what, owner_number(owner), tuple(map(number, refs)), values)
            for what, owner, refs, values in log.lasting([event for event in events if event[0] != MET])
        ]
    )
    results = tuple([None if (source := log.source_of(tensor)) is None else number(source) for tensor in call.results])
    now = enumerate(zip(map(log.source_of, call.arguments), call.sources, strict=True))
    changed = tuple(
        [(place, number(source)) for place, (source, before) in now if source is not None and source != before]
    )
    return RelativeEvents(tuple(numbers), relative, results, changed)


def note_again(log: EventLog, call: BlockCall, relative: RelativeEvents) -> None:
    """Note for `call`, whose results are there, what a call like it did."""
    absolute = [log.absolute(ref, call) for ref in relative.refs]
    log.note(
        *[
            (what, absolute[owner], tuple(map(absolute.__getitem__, refs)), values)
            for what, owner, refs, values in relative.events
        ]
    )
    for place, number in relative.new_sources:
        log.label(call.arguments[place], absolute[number])
    for tensor, source in zip(call.results, relative.result_sources, strict=True):
        if source is not None:
            log.label(tensor, absolute[source])
