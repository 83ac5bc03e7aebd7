"""The arena that LiteRT plans for the tensors of a graph, by the rules of its planner.

Tensors live from the operator that makes them to the last that needs them; inputs, outputs of the graph and states live
for all of it. Largest first, each gets the smallest gap between those that live at the same time and are placed
already, at a multiple of 64 bytes. What an operator may write in place shares the memory of its input, if nothing else
needs that. What is kept from run to run (states, weights that were unpacked) has an arena of its own, which counts too.

Which kernels: `arena_bytes` is that of the reference kernels. They have no temporaries of their own choice, so that it
is what the graph itself needs, the same on each machine, and the nearest to what microcontrollers plan, whose users are
those that budget an arena (theirs aligns at 16 bytes and holds tables of the interpreter too). The built-in
kernels unfold the inputs of convolutions, which takes several times the rest, and are used where XNNPACK is not: by
default that takes over float and 8-bit graphs on phones and servers, in memory of its own that no file tells.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from pytest_modelbudget.backends.exported.litert.content import Graph, Tensor, packed_bytes
from pytest_modelbudget.backends.exported.litert.kernels import (
    IN_PLACE,
    Call,
    Kernels,
    Place,
    UnknownMemory,
    place,
    scratch,
)
from pytest_modelbudget.summary import ITEM_BYTES

_ALIGNMENT = 64
_SMALLEST_SHARED = 5
"""Bytes from which on the memory of an input is written over."""

_FOREVER = 2**31 - 1
"""Behind the last operator."""

_MOST_TENSORS = 5_000
"""Tensors of a plan, which takes time with their square."""


def arena_bytes(graph: Graph, kernels: Kernels) -> int:
    """The bytes of both arenas, at the sizes that the file plans for (an open batch is 1).

    Raises:
        UnknownMemory: an operator is not known well enough.
    """
    return sum(high_water_marks(graph, kernels))


def high_water_marks(graph: Graph, kernels: Kernels) -> tuple[int, int]:
    """The bytes of the arena of a run, and of the one of what is kept; see `arena_bytes`."""
    if len(graph.tensors) > _MOST_TENSORS:
        count = len(graph.tensors)
        raise UnknownMemory(f"there are {count:,} tensors, more than the {_MOST_TENSORS:,} that are planned")
    spans = list(_Lifetimes(graph, kernels).spans())
    of_run, kept = ([span for span in spans if span.persistent == persistent] for persistent in (False, True))
    return _high_water_mark(of_run), _high_water_mark(kept)


@dataclass(frozen=True, slots=True)
class _Span:
    """The bytes of one tensor, and the first and the last operator that needs it (`_FOREVER`: needed after all).

    A `persistent` one is held longer than it is needed, since the next run needs it again.
    """

    size: int
    first: int
    last: int
    persistent: bool = False


@dataclass(slots=True)
class _Lifetimes:
    """How long each tensor of a graph is held, once those that share memory are one."""

    graph: Graph
    kernels: Kernels
    places: dict[int, Place] = field(default_factory=dict)
    known: list[bool] = field(default_factory=list)
    owners: dict[int, int] = field(default_factory=dict)
    inputs: frozenset[int] = frozenset()
    outputs: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        tensors = self.graph.tensors
        self.inputs, self.outputs = frozenset(self.graph.inputs), frozenset(self.graph.outputs)
        self.known = [tensor.stored is not None for tensor in tensors]
        self.places = {index: "persistent" for index, tensor in enumerate(tensors) if tensor.variable}

    def spans(self) -> Iterator[_Span]:
        """All that is held, in the order in which the planner meets it."""
        calls = [self._call(number) for number in range(len(self.graph.steps))]
        temporaries = [scratch(call, self.kernels) for call in calls]
        self._share()
        first, last = self._held()
        met: dict[int, list[int]] = {}
        for index, number in first.items():
            met.setdefault(number, []).append(index)
        for number in range(max(len(calls), 1)):
            for index in sorted(met.get(number, ())):
                yield from self._span(index, number, last.get(index, _FOREVER))
            for needed in temporaries[number] if calls else ():
                if needed.size:
                    yield _Span(needed.size, number, number, needed.persistent)

    def _call(self, number: int) -> Call:
        """A call, once it is noted where its outputs lie."""
        step = self.graph.steps[number]
        call = Call.of(step, self.graph, self.known)
        where = place(call)
        for index in step.outputs:
            if index >= 0:
                self.places.setdefault(index, where)
                self.known[index] = where == "outside"
        return call

    def _share(self) -> None:
        """Note whose memory each output is written to where that is the memory of an input."""
        counts = self._reference_counts()
        for step in self.graph.steps:
            rule = IN_PLACE.get(step.type)
            if rule is None or not step.outputs or step.custom:
                continue
            output = step.outputs[0]
            shared = [step.inputs[position] for position in rule.inputs if position < len(step.inputs)]
            fitting = [index for index in shared if self._may_share(index, output, counts, changes=rule.changes)]
            if not fitting:
                continue
            owner = self.owners.get(fitting[0], fitting[0])
            if not (rule.changes and counts.get(owner, 0) > 1):
                self.owners[output] = owner

    def _may_share(self, index: int, output: int, counts: dict[int, int], *, changes: bool) -> bool:
        graph = self.graph
        if index < 0 or index in self.inputs or output in self.outputs or graph.tensors[index].stored:
            return False
        if graph.tensors[index].variable and not graph.tensors[output].variable:
            return False
        size = _size(graph.tensors[index])
        alike = size == _size(graph.tensors[output]) and size >= _SMALLEST_SHARED
        return not changes or (alike and counts.get(index, 0) <= 1)

    def _reference_counts(self, owners: dict[int, int] | None = None) -> dict[int, int]:
        """How often each tensor is needed: by operators, as an input or output of the graph, as a state."""
        graph = self.graph
        states = [index for index, tensor in enumerate(graph.tensors) if tensor.variable]
        counts: dict[int, int] = {}
        for index in (*graph.outputs, *states, *graph.inputs):
            counts[index] = counts.get(index, 0) + 1
        for step in graph.steps:
            for index in step.inputs:
                owner = (owners or {}).get(index, index)
                counts[owner] = counts.get(owner, 0) + 1
        return counts

    def _held(self) -> tuple[dict[int, int], dict[int, int]]:
        """The first and the last operator of each tensor; one that is never let go has no last."""
        graph = self.graph
        counts = self._reference_counts(self.owners)
        states = [index for index, tensor in enumerate(graph.tensors) if tensor.variable]
        first = {index: 0 for index in (*states, *graph.inputs) if index >= 0}
        last: dict[int, int] = {}
        for number, step in enumerate(graph.steps):
            for index in step.outputs:
                if index >= 0:
                    first.setdefault(index, number)
            for index in step.inputs:
                owner = self.owners.get(index, index)
                counts[owner] -= 1
                if counts[owner] == 0 and owner in first:
                    last[owner] = number
        return first, last

    def _span(self, index: int, number: int, last: int) -> Iterator[_Span]:
        tensor = self.graph.tensors[index]
        if tensor.stored or self.places.get(index) == "outside":
            return
        owner = self.owners.get(index)
        if owner is not None and self._in_arena(owner) and _size(self.graph.tensors[owner]) == _size(tensor):
            return
        if size := _size(tensor):
            yield _Span(size, number, last, self.places.get(index) == "persistent")

    def _in_arena(self, index: int) -> bool:
        return self.places.get(index, "arena") == "arena" and not self.graph.tensors[index].stored


def _size(tensor: Tensor) -> int:
    item = ITEM_BYTES.get(tensor.dtype)
    if not tensor.shaped:
        raise UnknownMemory(f"the file has no shape of {tensor.name or 'a tensor'}")
    if item is None or item < 1:
        raise UnknownMemory(f"tensors of {tensor.dtype} have no fixed place")
    return packed_bytes(tensor)


def _high_water_mark(spans: Sequence[_Span]) -> int:
    """The end of the last byte, once each tensor has its place."""
    placed: list[tuple[int, int, int, int]] = []  # begin and end in bytes, first and last operator
    for span in sorted(spans, key=_order):
        first, last = span.first, _FOREVER if span.persistent else span.last
        neighbours = [(begin, end) for begin, end, from_, to in placed if from_ <= last and first <= to]
        begin = _best_gap(span.size, neighbours)
        insort(placed, (begin, begin + span.size, first, last), key=itemgetter(0))
    return max((end for _, end, _, _ in placed), default=0)


def _order(span: _Span) -> tuple[bool, int, int]:
    """What is held for all of the run first, in the order met, then the largest, then the earliest."""
    always = span.first == 0 and span.last == _FOREVER
    return (not always, 0 if always else -span.size, 0 if always else span.first)


def _best_gap(size: int, neighbours: Sequence[tuple[int, int]]) -> int:
    """The offset in the smallest gap that `size` fits in, or behind all; `neighbours` begin and end in this order."""
    best, smallest, behind = None, _FOREVER, 0
    for begin, end in neighbours:
        offset = _aligned(behind)
        if offset + size <= begin and (best is None or begin - offset < smallest):
            best, smallest = offset, begin - behind
        behind = max(behind, end)
        if smallest == 0:
            break
    return _aligned(behind) if best is None else best


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
