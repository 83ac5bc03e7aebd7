"""What one call of a block added to a trace, in words that fit any block like it; see `repeats`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

import torch

from pytest_modelbudget.backends.torch.model.pytree import tensors
from pytest_modelbudget.backends.torch.replay.cache import MakeResult, Modules
from pytest_modelbudget.backends.torch.replay.fingerprint import CallSignature, NotComparable
from pytest_modelbudget.backends.torch.trace.joins import Join, ShapeDtype, Source
from pytest_modelbudget.backends.torch.trace.tracer import ModuleRecord, ModuleTrace


class RelativeRef(NamedTuple):
    """What can be a source in a block: its module at a `place`, or the `number`th join of a `kind` in that module."""

    kind: str
    place: int
    number: int = 0


_Calls = tuple[tuple[ShapeDtype, ...], ...]
_MODULE = "module"


@dataclass(frozen=True, slots=True)
class _NodeDelta:
    """What one module or join saw more; see `Delta` for the numbers."""

    node: int
    calls: _Calls
    inputs: _Calls
    fed_by: tuple[tuple[int, ...], ...]
    flops: int


@dataclass(frozen=True, slots=True)
class Delta:
    """Everything a call added.

    `nodes` are the modules and joins that took part, those seen for the first time before the others, and joins with
    the module that came before. A source is written as a number: the place of the tensor that was given, or, counted
    on from there, of the node. `labels` are the sources of what was made, `relabelled` those of what was given, where
    they are others now.
    """

    nodes: tuple[tuple[RelativeRef, int | None], ...]
    node_deltas: tuple[_NodeDelta, ...]
    labels: tuple[int | None, ...]
    relabelled: tuple[tuple[int, int], ...]
    flops: int
    calls: int
    uncounted: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class _TraceCheckpoint:
    counts: dict[int, tuple[int, int, int]]
    node_count: int
    flops: int
    calls: int
    uncounted: Counter[str]
    autocast: bool
    labels: list[Source | None]


class TraceLog:
    """The `Log` of a `ModuleTrace`."""

    def __init__(self, trace: ModuleTrace) -> None:
        self._trace = trace

    def context_key(self, modules: Modules, signature: CallSignature) -> Hashable:
        """How the sources of the arguments are arranged, among each other and among the modules of the block."""
        if self._trace.in_one_operator or torch.is_grad_enabled():
            raise NotComparable("it is a part of one operator, or gradients are on")
        positions = _positions(modules)
        numbers: dict[Source, int] = {}
        return tuple(
            [
                None
                if label is None
                else (numbers.setdefault(label, len(numbers)), self._ref_in_block(label, positions))
                for label in self._labels(signature.tensors)
            ]
        )

    def checkpoint(self, modules: Modules, signature: CallSignature) -> _TraceCheckpoint:
        """Where the trace stands."""
        trace, positions = self._trace, _positions(modules)
        nodes = [
            *map(trace.record_of, modules),
            *(join for join in trace.joins.values() if id(join.owner) in positions),
        ]
        counts = {node.index: (len(node.calls), len(node.fed_by), node.flops) for node in nodes if node is not None}
        return _TraceCheckpoint(
            counts,
            len(trace.by_index),
            trace.flops,
            trace.calls,
            trace.uncounted.copy(),
            trace.autocast,
            self._labels(signature.tensors),
        )

    def delta(
        self, checkpoint: _TraceCheckpoint, modules: Modules, signature: CallSignature, results: list[torch.Tensor]
    ) -> Delta:
        """What was added, if all of it is of these modules."""
        trace = self._trace
        new_nodes = range(checkpoint.node_count, len(trace.by_index))
        numbers = _SourceNumbers(checkpoint.labels, new_nodes)
        node_deltas, calls = [], 0
        for node in map(trace.by_index.__getitem__, (*checkpoint.counts, *new_nodes)):
            if (node_delta := _node_delta(node, checkpoint, numbers)) is not None:
                node_deltas.append(node_delta)
                calls += (
                    len(node_delta.calls) if isinstance(node, ModuleRecord) and node.module is not modules[0] else 0
                )
        labels_after = self._labels(signature.tensors)
        labels = tuple([None if label is None else numbers.of(label) for label in self._labels(results)])
        relabelled = tuple(
            [
                (position, numbers.of(label))
                for position, (label, label_before) in enumerate(zip(labels_after, checkpoint.labels, strict=True))
                if label is not None and label != label_before
            ]
        )
        positions = _positions(modules)
        nodes = [trace.by_index[index] for index in numbers.nodes]
        delta = Delta(
            nodes=tuple(
                [(_comparable(_relative_ref(node, positions)), _position_before(node, positions)) for node in nodes]
            ),
            node_deltas=tuple(node_deltas),
            labels=labels,
            relabelled=relabelled,
            flops=trace.flops - checkpoint.flops,
            calls=trace.calls - checkpoint.calls,
            uncounted=tuple(sorted((trace.uncounted - checkpoint.uncounted).items())),
        )
        flops = sum(node_delta.flops for node_delta in node_deltas)
        if trace.autocast != checkpoint.autocast or (delta.calls, delta.flops) != (calls, flops):
            raise NotComparable("modules that are no part of it took part")
        return delta

    def apply(self, delta: Delta, modules: Modules, signature: CallSignature, make_result: MakeResult) -> Any:
        """Note it all for other modules."""
        trace = self._trace
        nodes = [self._node(ref, previous, modules) for ref, previous in delta.nodes]
        # Calls that are alike have sources in the same places: where there is none, nobody asks for it.
        sources = cast(list[Source], [*self._labels(signature.tensors), *[node.index for node in nodes]])
        for node_delta in delta.node_deltas:
            node = nodes[node_delta.node]
            node.calls += node_delta.calls
            node.inputs += node_delta.inputs
            node.fed_by += [tuple([sources[number] for number in call]) for call in node_delta.fed_by]
            node.flops += node_delta.flops
        trace.flops += delta.flops
        trace.calls += delta.calls
        trace.uncounted.update(dict(delta.uncounted))
        trace.call_finished(modules[0])
        for position, number in delta.relabelled:
            trace.label(signature.tensors[position], sources[number])
        out = make_result(_identity)
        for tensor, label in zip(tensors(out), delta.labels, strict=True):
            if label is not None:
                trace.label(tensor, sources[label])
        return out

    def _node(self, ref: RelativeRef, previous: int | None, modules: Modules) -> ModuleRecord | Join:
        module = modules[ref.place]
        if ref.kind == _MODULE:
            return self._trace.record(module)
        key = id(module), ref.kind, ref.number  # a module may be in many blocks
        after = None if previous is None else modules[previous]
        return self._trace.joins.get(key) or self._trace.new_join(key, module, after)

    def _labels(self, tensors: list[torch.Tensor]) -> list[Source | None]:
        return [self._trace.source_of(tensor) for tensor in tensors]

    def _ref_in_block(self, source: Source, positions: Mapping[int, int]) -> RelativeRef | None:
        """The word for a source that is one of the block's own."""
        return None if isinstance(source, str) else _relative_ref(self._trace.by_index[source], positions)


class _SourceNumbers:
    """The numbers of sources in one `Delta`; `nodes` are the numbers of nodes alone, by their index in the trace."""

    def __init__(self, argument_labels: list[Source | None], new_nodes: Iterable[int]) -> None:
        self._first = len(argument_labels)
        self._given: dict[Source, int] = {}
        for position, label in enumerate(argument_labels):
            if label is not None:
                self._given.setdefault(label, position)
        self.nodes = {index: number for number, index in enumerate(new_nodes)}

    def of(self, source: Source) -> int:
        """The number of a source, which is a tensor that was given, or else a node."""
        argument = self._given.get(source)
        return self._first + self.node(source) if argument is None else argument

    def node(self, source: Source) -> int:
        """The number of a module or join."""
        if isinstance(source, str):
            raise NotComparable("it reads an input of the model that is no argument of it")
        return self.nodes.setdefault(source, len(self.nodes))


def _node_delta(node: ModuleRecord | Join, checkpoint: _TraceCheckpoint, numbers: _SourceNumbers) -> _NodeDelta | None:
    calls_before, fed_before, flops_before = checkpoint.counts.get(node.index, (0, 0, 0))
    if len(node.calls) == calls_before and node.flops == flops_before:
        return None
    fed_by = tuple([tuple(map(numbers.of, call)) for call in node.fed_by[fed_before:]])
    return _NodeDelta(
        numbers.node(node.index),
        tuple(node.calls[calls_before:]),
        tuple(node.inputs[calls_before:]),
        fed_by,
        node.flops - flops_before,
    )


def _positions(modules: Modules) -> dict[int, int]:
    return {id(module): position for position, module in enumerate(modules)}


def _relative_ref(node: ModuleRecord | Join, positions: Mapping[int, int]) -> RelativeRef | None:
    position = positions.get(id(node.owner if isinstance(node, Join) else node.module))
    if position is None:
        return None
    return RelativeRef(node.kind, position, node.number) if isinstance(node, Join) else RelativeRef(_MODULE, position)


def _position_before(node: ModuleRecord | Join, positions: Mapping[int, int]) -> int | None:
    """The place of the module that came before a join."""
    if not isinstance(node, Join) or node.after is None:
        return None
    return _comparable(positions.get(id(node.after)))


_T = TypeVar("_T")


def _comparable(value: _T | None) -> _T:
    if value is None:
        raise NotComparable("a module or join that is no part of it took part")
    return value


def _identity(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
