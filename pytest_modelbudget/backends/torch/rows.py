"""From traces to rows: paths, inputs and outputs with symbolic dimensions, edges, weights, and rows for joins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import nn

from pytest_modelbudget.backends.dimensions import explain
from pytest_modelbudget.backends.torch.memory.saved_tensors import Activations
from pytest_modelbudget.backends.torch.model.modules import ROOT, Node
from pytest_modelbudget.backends.torch.trace.forward import Pass
from pytest_modelbudget.backends.torch.trace.joins import Join, Output, Source
from pytest_modelbudget.backends.torch.trace.tracer import Record, Trace
from pytest_modelbudget.summary import Dim, Layer, TensorSpec, Weight

Sizes = Mapping[str, int]
_Calls = Sequence[tuple[Output, ...]]
_Named = tuple[tuple[TensorSpec, ...], ...]


@dataclass(slots=True)
class Naming:
    """Names the dimensions seen in several passes at different sizes; remembers what it could not settle."""

    sizes: Sequence[Sizes]
    settled: bool = True
    twins: tuple[int, ...] = field(init=False)
    _known: dict[tuple[int | None, ...], Dim] = field(default_factory=dict)
    _rows: dict[tuple[tuple[int, ...], ...], tuple[_Named, _Named]] = field(default_factory=dict)
    _said: dict[Hashable, _Named] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """`twins` are the places of the other passes at the first one's sizes."""
        first, *others = self.sizes
        self.twins = tuple(place for place, other in enumerate(others, 1) if other == first)

    def specs(self, seen: Sequence[tuple[Output, ...]]) -> tuple[TensorSpec, ...]:
        """The tensors of one call, given as each pass saw them, the declared one first."""
        first, *others = seen
        alike = all([len(shape) for shape, _ in other] == [len(shape) for shape, _ in first] for other in others)
        if any([len(shape) for shape, _ in seen[place]] != [len(shape) for shape, _ in first] for place in self.twins):
            return tuple(TensorSpec((None,) * len(shape), dtype) for shape, dtype in first)
        if not alike:
            return tuple(TensorSpec(shape, dtype) for shape, dtype in first)
        return tuple(
            TensorSpec(tuple(self._dim(dims) for dims in zip(*(one[index][0] for one in seen), strict=True)), dtype)
            for index, (_, dtype) in enumerate(first)
        )

    def row(self, records: Sequence[Record | Join | None]) -> tuple[_Named, _Named]:
        """The outputs and the inputs of one module or join, given as each pass saw it; see `calls`."""
        # Blocks that repeat share what they made: most rows are known by the ids of it.
        ids = tuple([(*map(id, one.calls), 0, *map(id, one.given)) if one is not None else () for one in records])
        if (known := self._rows.get(ids)) is None:
            outputs = self.calls([one.calls if one is not None else () for one in records])
            inputs = self.calls([one.given if one is not None else () for one in records])
            known = self._rows[ids] = outputs, inputs
        return known

    def calls(self, seen: Sequence[Sequence[tuple[Output, ...]]]) -> _Named:
        """Every call of a module that has tensors, equal ones once; concrete when the passes differ in their number."""
        said = tuple(map(tuple, seen))
        if (known := self._said.get(said)) is None:
            known = self._said[said] = tuple([call for call in self._named(seen) if call])
        return known

    def _named(self, seen: Sequence[Sequence[tuple[Output, ...]]]) -> _Named:
        first = seen[0]
        if any(len(seen[place]) != len(first) for place in self.twins):  # how often it is called depends on values
            return tuple(self._summed_up(seen))
        if any(len(other) != len(first) for other in seen):
            return tuple(dict.fromkeys(tuple(TensorSpec(*one) for one in call) for call in first))
        return tuple(dict.fromkeys(self.specs(call) for call in zip(*seen, strict=True)))

    def _summed_up(self, seen: Sequence[Sequence[tuple[Output, ...]]]) -> Iterator[tuple[TensorSpec, ...]]:
        """One call for all of a kind (so many tensors, of such dtypes and ranks); what varies among them is open."""
        kinds: dict[tuple[tuple[int, str], ...], None] = dict.fromkeys(map(_kind, chain.from_iterable(seen)))
        for kind in kinds:
            calls = [[call for call in calls if _kind(call) == kind] for calls in seen]
            same_sizes = [calls[place] for place in (0, *self.twins)]
            yield tuple(
                TensorSpec(tuple(self._common(calls, same_sizes, index, axis) for axis in range(rank)), dtype)
                for index, (rank, dtype) in enumerate(kind)
            )

    def _common(self, calls: Sequence[_Calls], same_sizes: Sequence[_Calls], index: int, axis: int) -> Dim:
        """A dimension that all calls have, or None."""
        here = {call[index][0][axis] for alike in same_sizes for call in alike}
        if len(here) != 1:
            return None
        [size] = here
        sets = [{call[index][0][axis] for call in alike} or {size} for alike in calls]
        return self._dim(tuple(chain(*sets))) if all(len(sizes) == 1 for sizes in sets) else size

    def _dim(self, dims: tuple[int | None, ...]) -> Dim:
        if dims not in self._known:
            known = [dim for dim in dims if dim is not None]
            self._known[dims], settled = explain(self.sizes, known) if len(known) == len(dims) else (None, True)
            self.settled = self.settled and settled
        return self._known[dims]


def _kind(call: tuple[Output, ...]) -> tuple[tuple[int, str], ...]:
    """The rank and dtype of each tensor of a call."""
    return tuple((len(shape), dtype) for shape, dtype in call)


def rows(
    found: Sequence[Node],
    weights: Sequence[tuple[Weight, ...]],
    passes: Sequence[Pass],
    naming: Naming,
    held: Activations | None,
) -> tuple[Layer, ...]:
    """One row for each module, in order; lists of modules and a root without anything of its own have none.

    The joins of a module stand in the order they first ran, each below what the module had called last. `held` says
    what each module saved for the backward pass; what a join saved is at the module it stands in.
    """
    trace = passes[0].trace
    joins = _placed(found, trace)
    paths = _join_paths(found, joins)
    names = _names(found, paths, passes[0])
    layers = []
    for position, (node, own) in enumerate(zip(found, weights, strict=True)):
        if _has_row(node, own, trace):
            layers.append(_row(node, own, passes, naming, names, held))
        for join in joins.get(position, ()):
            layers.append(_join_row(join, paths[join.key], passes, naming, names, held))
    return tuple(layers)


def _placed(found: Sequence[Node], trace: Trace) -> dict[int, list[Join]]:
    """The joins by the position of the row that they come after; there, those of inner modules first."""
    path_of = {id(node.module): node.path for node in found}
    own = {node.path: position for position, node in enumerate(found)}
    last = _last_rows(found)
    reached: dict[str, int] = {}
    placed: dict[int, list[Join]] = {}
    for join in trace.joins.values():
        if (owner := path_of.get(id(join.owner))) is None:  # a module that forward made for itself
            owner = ROOT
        below = _child(owner, path_of.get(id(join.after), ""))
        at = max(reached.get(owner, own[owner]), last.get(below, 0))
        reached[owner] = at
        placed.setdefault(at, []).append(join)
    for joins in placed.values():
        joins.sort(key=lambda join: -len(_prefix(path_of.get(id(join.owner), ROOT))))
    return placed


def _last_rows(found: Sequence[Node]) -> dict[str, int]:
    """The position of the last node at or below each path."""
    last: dict[str, int] = {}
    for position, node in enumerate(found):
        end = len(node.path)
        while end > 0:
            last[node.path[:end]] = position
            end = node.path.rfind(".", 0, end)
    return last


def _prefix(path: str) -> str:
    """What the paths of the rows inside a module begin with."""
    return "" if path == ROOT else f"{path}."


def _child(owner: str, path: str) -> str:
    """The child of `owner` that holds the module at `path`; empty when it is not below `owner`."""
    prefix = _prefix(owner)
    return f"{prefix}{path[len(prefix) :].partition('.')[0]}" if path.startswith(prefix) else ""


def _join_paths(found: Sequence[Node], placed: Mapping[int, Sequence[Join]]) -> dict[tuple[int, str, int], str]:
    """`block.add`, `block.add_1`, ...: numbered in each module, past the names that modules have."""
    path_of = {id(node.module): node.path for node in found}
    taken = set(path_of.values())
    numbers: Counter[str] = Counter()
    paths: dict[tuple[int, str, int], str] = {}
    for joins in placed.values():
        for join in joins:
            base = f"{_prefix(path_of.get(id(join.owner), ROOT))}{join.kind}"
            paths[join.key] = _free(base, numbers, taken)
    return paths


def _free(base: str, numbers: Counter[str], taken: set[str]) -> str:
    while True:
        number = numbers[base]
        numbers[base] += 1
        path = f"{base}_{number}" if number else base
        if path not in taken:
            taken.add(path)
            return path


def _names(found: Sequence[Node], joins: Mapping[tuple[int, str, int], str], first: Pass) -> dict[Source, str]:
    """What each source is called; an input that is called like a layer gets the word before its name."""
    trace = first.trace
    names: dict[Source, str] = {
        record.index: node.path for node in found if (record := trace.seen(node.module)) is not None
    }
    names |= {join.index: joins[key] for key, join in trace.joins.items()}
    taken = {*(node.path for node in found), *joins.values()}
    return names | {port: f"input {port}" if port in taken else port for port in first.ports}


def _has_row(node: Node, own: tuple[Weight, ...], trace: Trace) -> bool:
    if own:
        return True
    if node.path == ROOT:
        return not node.container
    called = trace.seen(node.module) is not None
    return called or not isinstance(node.module, (nn.ModuleList, nn.ModuleDict))


def _row(
    node: Node,
    own: tuple[Weight, ...],
    passes: Sequence[Pass],
    naming: Naming,
    names: Mapping[Source, str],
    held: Activations | None,
) -> Layer:
    kept = None if held is None else held.by_module.get(id(node.module), 0)
    records = [one.trace.seen(node.module) for one in passes]
    record = records[0]
    if record is None:
        # Whether there was a call, and what it cost, is not known inside scripted code or where other values make one.
        elsewhere = any(records[place] is not None for place in naming.twins)
        never = None if elsewhere or isinstance(node.module, torch.jit.ScriptModule) else 0
        return Layer(
            node.path, node.type, weights=own, calls=never, flops=never, container=node.container, activation_bytes=kept
        )
    outputs, inputs = naming.row(records)
    return Layer(
        path=node.path,
        type=node.type,
        outputs=outputs,
        connected_to=_edges(record, names),
        weights=own,
        calls=_times(record, records, naming.twins),
        flops=_flops(record, records, naming.twins),
        container=node.container,
        inputs=inputs,
        activation_bytes=kept,
    )


def _join_row(
    join: Join,
    path: str,
    passes: Sequence[Pass],
    naming: Naming,
    names: Mapping[Source, str],
    held: Activations | None,
) -> Layer:
    records = [one.trace.joins.get(join.key) for one in passes]
    outputs, inputs = naming.row(records)
    return Layer(
        path=path,
        type=join.kind,
        outputs=outputs,
        connected_to=_edges(join, names),
        calls=_times(join, records, naming.twins),
        flops=_flops(join, records, naming.twins),
        inputs=inputs,
        activation_bytes=None if held is None else 0,
    )


def _times(first: Record | Join, records: Sequence[Record | Join | None], twins: Sequence[int]) -> int | None:
    """How often it was called, None when that depends on values."""
    if not twins:
        return len(first.calls)
    again = [len(record.calls) if (record := records[place]) is not None else 0 for place in twins]
    return len(first.calls) if all(times == len(first.calls) for times in again) else None


def _flops(first: Record | Join, records: Sequence[Record | Join | None], twins: Sequence[int]) -> int | None:
    """Its FLOPs, None when another pass at the same sizes counted differently."""
    if not twins:
        return first.flops
    again = [records[place] for place in twins]
    return first.flops if all(other is not None and other.flops == first.flops for other in again) else None


def _edges(record: Record | Join, names: Mapping[Source, str]) -> tuple[tuple[str, ...], ...]:
    if not record.fed_by:
        return ()
    calls = [tuple([names[source] for source in call if source in names]) for call in record.fed_by]
    return tuple(dict.fromkeys(filter(None, calls)))
