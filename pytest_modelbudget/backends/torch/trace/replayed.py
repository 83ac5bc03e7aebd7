"""What one call of a block added to a trace, in words that fit any block like it; see `repeats`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

import torch

from pytest_modelbudget.backends.torch.model.pytree import tensors
from pytest_modelbudget.backends.torch.replay.cache import Make, Modules
from pytest_modelbudget.backends.torch.replay.fingerprint import Given, Unreadable
from pytest_modelbudget.backends.torch.trace.joins import Join, Output, Source
from pytest_modelbudget.backends.torch.trace.tracer import Record, Trace


class Word(NamedTuple):
    """What can be a source in a block: its module at a `place`, or the `number`th join of a `kind` in that module."""

    kind: str
    place: int
    number: int = 0


_Calls = tuple[tuple[Output, ...], ...]
_MODULE = "module"


@dataclass(frozen=True, slots=True)
class _More:
    """What one module or join saw more; see `Added` for the numbers."""

    node: int
    calls: _Calls
    given: _Calls
    fed_by: tuple[tuple[int, ...], ...]
    flops: int


@dataclass(frozen=True, slots=True)
class Added:
    """Everything a call added.

    `nodes` are the modules and joins that took part, those seen for the first time before the others, and joins with
    the module that came before. A source is written as a number: the place of the tensor that was given, or, counted
    on from there, of the node. `labels` are the sources of what was made, `relabelled` those of what was given, where
    they are others now.
    """

    nodes: tuple[tuple[Word, int | None], ...]
    more: tuple[_More, ...]
    labels: tuple[int | None, ...]
    relabelled: tuple[tuple[int, int], ...]
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
            raise Unreadable("it is a part of one operator, or gradients are on")
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
        trace = self._trace
        fresh = range(mark.met, len(trace.in_order))
        numbers = _Numbers(mark.labels, fresh)
        more, calls = [], 0
        for one in map(trace.in_order.__getitem__, (*mark.seen, *fresh)):
            if (seen := _more(one, mark, numbers)) is not None:
                more.append(seen)
                calls += len(seen.calls) if isinstance(one, Record) and one.module is not modules[0] else 0
        now = self._labels(given.tensors)
        labels = tuple([None if label is None else numbers.of(label) for label in self._labels(made)])
        relabelled = tuple(
            [
                (place, numbers.of(label))
                for place, (label, before) in enumerate(zip(now, mark.labels, strict=True))
                if label is not None and label != before
            ]
        )
        places = _places(modules)
        nodes = [trace.in_order[index] for index in numbers.nodes]
        added = Added(
            nodes=tuple([(_known(_word(one, places)), _before(one, places)) for one in nodes]),
            more=tuple(more),
            labels=labels,
            relabelled=relabelled,
            flops=trace.flops - mark.flops,
            calls=trace.calls - mark.calls,
            uncounted=tuple(sorted((trace.uncounted - mark.uncounted).items())),
        )
        flops = sum(seen.flops for seen in more)
        if trace.autocast != mark.autocast or (added.calls, added.flops) != (calls, flops):
            raise Unreadable("modules that are no part of it took part")
        return added

    def again(self, added: Added, modules: Modules, given: Given, make: Make) -> Any:
        """Note it all for other modules."""
        trace = self._trace
        nodes = [self._node(what, before, modules) for what, before in added.nodes]
        # Calls that are alike have sources in the same places: where there is none, nobody asks for it.
        sources = cast(list[Source], [*self._labels(given.tensors), *[node.index for node in nodes]])
        for more in added.more:
            node = nodes[more.node]
            node.calls += more.calls
            node.given += more.given
            node.fed_by += [tuple([sources[number] for number in call]) for call in more.fed_by]
            node.flops += more.flops
        trace.flops += added.flops
        trace.calls += added.calls
        trace.uncounted.update(dict(added.uncounted))
        trace.done(modules[0])
        for place, number in added.relabelled:
            trace.label(given.tensors[place], sources[number])
        out = make(_as_it_is)
        for tensor, label in zip(tensors(out), added.labels, strict=True):
            if label is not None:
                trace.label(tensor, sources[label])
        return out

    def _node(self, what: Word, before: int | None, modules: Modules) -> Record | Join:
        module = modules[what.place]
        if what.kind == _MODULE:
            return self._trace.record(module)
        key = id(module), what.kind, what.number  # a module may be in many blocks
        after = None if before is None else modules[before]
        return self._trace.joins.get(key) or self._trace.new_join(key, module, after)

    def _labels(self, found: list[torch.Tensor]) -> list[Source | None]:
        return [self._trace.label_of(tensor) for tensor in found]

    def _inside(self, source: Source, places: Mapping[int, int]) -> Word | None:
        """The word for a source that is one of the block's own."""
        return None if isinstance(source, str) else _word(self._trace.in_order[source], places)


class _Numbers:
    """The numbers of sources in one `Added`; `nodes` are the numbers of nodes alone, by their index in the trace."""

    def __init__(self, given: list[Source | None], fresh: Iterable[int]) -> None:
        self._first = len(given)
        self._given: dict[Source, int] = {}
        for place, label in enumerate(given):
            if label is not None:
                self._given.setdefault(label, place)
        self.nodes = {index: number for number, index in enumerate(fresh)}

    def of(self, source: Source) -> int:
        """The number of a source, which is a tensor that was given, or else a node."""
        known = self._given.get(source)
        return self._first + self.node(source) if known is None else known

    def node(self, source: Source) -> int:
        """The number of a module or join."""
        if isinstance(source, str):
            raise Unreadable("it reads an input of the model that is no argument of it")
        return self.nodes.setdefault(source, len(self.nodes))


def _more(one: Record | Join, mark: _Mark, numbers: _Numbers) -> _More | None:
    calls, fed, flops = mark.seen.get(one.index, (0, 0, 0))
    if len(one.calls) == calls and one.flops == flops:
        return None
    fed_by = tuple([tuple(map(numbers.of, call)) for call in one.fed_by[fed:]])
    return _More(numbers.node(one.index), tuple(one.calls[calls:]), tuple(one.given[calls:]), fed_by, one.flops - flops)


def _places(modules: Modules) -> dict[int, int]:
    return {id(module): place for place, module in enumerate(modules)}


def _word(one: Record | Join, places: Mapping[int, int]) -> Word | None:
    owner = places.get(id(one.owner if isinstance(one, Join) else one.module))
    if owner is None:
        return None
    return Word(one.kind, owner, one.number) if isinstance(one, Join) else Word(_MODULE, owner)


def _before(one: Record | Join, places: Mapping[int, int]) -> int | None:
    """The place of the module that came before a join."""
    if not isinstance(one, Join) or one.after is None:
        return None
    return _known(places.get(id(one.after)))


_T = TypeVar("_T")


def _known(value: _T | None) -> _T:
    if value is None:
        raise Unreadable("a module or join that is no part of it took part")
    return value


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
