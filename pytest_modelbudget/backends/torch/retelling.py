"""What one call of a block added to a trace, in words that fit any block like it; see `repeats`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from pytest_modelbudget.backends.torch.joins import Join, Output, Source
from pytest_modelbudget.backends.torch.prints import Given, Unreadable
from pytest_modelbudget.backends.torch.repeats import Make, Modules
from pytest_modelbudget.backends.torch.trace import Record, Trace
from pytest_modelbudget.backends.torch.trees import tensors


@dataclass(frozen=True, slots=True)
class Word:
    """A source or what has one: the tensor `given` at a place, the `module` at a place, or a `kind` of join in it."""

    kind: str
    place: int
    number: int = 0


_Calls = tuple[tuple[Output, ...], ...]
_GIVEN, _MODULE = "given", "module"
_SELF = Word(_MODULE, 0)


@dataclass(frozen=True, slots=True)
class _More:
    """What one module or join saw more."""

    what: Word
    calls: _Calls
    given: _Calls
    fed_by: tuple[tuple[Word, ...], ...]
    flops: int


@dataclass(frozen=True, slots=True)
class Added:
    """Everything a call added.

    `met` are the modules and joins seen for the first time, these with the module that came before; `labels` the
    sources of what was made, `relabelled` those of what was given, where they are others now.
    """

    met: tuple[tuple[Word, Word | None], ...]
    more: tuple[_More, ...]
    labels: tuple[Word | None, ...]
    relabelled: tuple[tuple[int, Word], ...]
    flops: int
    calls: int
    uncounted: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class _Mark:
    seen: dict[int, tuple[int, int, int]]
    met: int
    flops: int
    calls: int
    uncounted: Counter[str]
    autocast: bool
    labels: list[Source | None]


class TraceLog:
    """The `Log` of a `Trace`."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def surroundings(self, modules: Modules, given: Given) -> Hashable:
        """How the sources of the arguments are arranged, among each other and among the modules of the block."""
        if self._trace.in_whole or torch.is_grad_enabled():
            raise Unreadable
        places = _places(modules)
        found: dict[Source, int] = {}
        return tuple(
            [
                None if label is None else (found.setdefault(label, len(found)), self._inside(label, places))
                for label in self._labels(given.tensors)
            ]
        )

    def mark(self, modules: Modules, given: Given) -> _Mark:
        """Where the trace stands."""
        trace, held = self._trace, _places(modules)
        known = [*map(trace.seen, modules), *(join for join in trace.joins.values() if id(join.owner) in held)]
        seen = {one.index: (len(one.calls), len(one.fed_by), one.flops) for one in known if one is not None}
        return _Mark(
            seen,
            len(trace.in_order),
            trace.flops,
            trace.calls,
            trace.uncounted.copy(),
            trace.autocast,
            self._labels(given.tensors),
        )

    def since(self, mark: _Mark, modules: Modules, given: Given, made: list[torch.Tensor]) -> Added:
        """What was added, if all of it is of these modules."""
        trace, places = self._trace, _places(modules)
        words: dict[Source, Word] = {}
        for place, label in enumerate(mark.labels):
            if label is not None:
                words.setdefault(label, Word(_GIVEN, place))

        def word(source: Source) -> Word:
            return words.get(source) or _known(self._inside(source, places))

        fresh = trace.in_order[mark.met :]
        more = []
        for one in (*map(trace.in_order.__getitem__, mark.seen), *fresh):
            calls, fed, flops = mark.seen.get(one.index, (0, 0, 0))
            if len(one.calls) > calls or one.flops != flops:
                what = _known(_word(one, places))
                fed_by = tuple([tuple(map(word, call)) for call in one.fed_by[fed:]])
                more.append(_More(what, tuple(one.calls[calls:]), tuple(one.given[calls:]), fed_by, one.flops - flops))
        now = self._labels(given.tensors)
        added = Added(
            met=tuple([(_known(_word(one, places)), _before(one, places)) for one in fresh]),
            more=tuple(more),
            labels=tuple([None if label is None else word(label) for label in self._labels(made)]),
            relabelled=tuple(
                [
                    (place, word(label))
                    for place, (label, before) in enumerate(zip(now, mark.labels, strict=True))
                    if label is not None and label != before
                ]
            ),
            flops=trace.flops - mark.flops,
            calls=trace.calls - mark.calls,
            uncounted=tuple(sorted((trace.uncounted - mark.uncounted).items())),
        )
        calls = sum(len(one.calls) for one in more if one.what.kind == _MODULE and one.what != _SELF)
        flops = sum(one.flops for one in more)
        if trace.autocast != mark.autocast or (added.calls, added.flops) != (calls, flops):
            raise Unreadable  # something beside these modules took part
        return added

    def again(self, added: Added, modules: Modules, given: Given, make: Make) -> Any:
        """Note it all for other modules."""
        trace = self._trace
        for what, before in added.met:
            module = modules[what.place]
            if what.kind == _MODULE:
                trace.record(module)
            elif (key := (id(module), what.kind, what.number)) not in trace.joins:  # a module may be in many blocks
                trace.new_join(key, module, None if before is None else modules[before.place])
        labels = self._labels(given.tensors)

        def seen(word: Word) -> Record | Join:
            module = modules[word.place]
            return trace.record(module) if word.kind == _MODULE else trace.joins[id(module), word.kind, word.number]

        def source(word: Word) -> Source:
            label = labels[word.place] if word.kind == _GIVEN else seen(word).index
            assert label is not None  # calls that are alike have sources in the same places
            return label

        for more in added.more:
            one = seen(more.what)
            one.calls += more.calls
            one.given += more.given
            one.fed_by += [tuple(map(source, call)) for call in more.fed_by]
            one.flops += more.flops
        trace.flops += added.flops
        trace.calls += added.calls
        trace.uncounted.update(dict(added.uncounted))
        trace.done(modules[0])
        for place, label in added.relabelled:
            trace.label(given.tensors[place], source(label))
        out = make(_as_it_is)
        for tensor, told in zip(tensors(out), added.labels, strict=True):
            if told is not None:
                trace.label(tensor, source(told))
        return out

    def _labels(self, found: list[torch.Tensor]) -> list[Source | None]:
        return [self._trace.label_of(tensor) for tensor in found]

    def _inside(self, source: Source, places: Mapping[int, int]) -> Word | None:
        """The word for a source that is one of the block's own."""
        return None if isinstance(source, str) else _word(self._trace.in_order[source], places)


def _places(modules: Modules) -> dict[int, int]:
    return {id(module): place for place, module in enumerate(modules)}


def _word(one: Record | Join, places: Mapping[int, int]) -> Word | None:
    owner = places.get(id(one.owner if isinstance(one, Join) else one.module))
    if owner is None:
        return None
    return Word(one.kind, owner, one.number) if isinstance(one, Join) else Word(_MODULE, owner)


def _before(one: Record | Join, places: Mapping[int, int]) -> Word | None:
    """The module that came before a join."""
    if not isinstance(one, Join) or one.after is None:
        return None
    return Word(_MODULE, _known(places.get(id(one.after))))


_T = TypeVar("_T")


def _known(value: _T | None) -> _T:
    if value is None:
        raise Unreadable
    return value


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
