"""From traces to rows: paths, outputs with symbolic dimensions, edges, weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from pytest_modelbudget.backends.symbols import explain
from pytest_modelbudget.backends.torch.forward import Pass
from pytest_modelbudget.backends.torch.modules import ROOT, Node
from pytest_modelbudget.backends.torch.trace import Output, Record, Source, Trace
from pytest_modelbudget.summary import Dim, Layer, TensorSpec, Weight

Sizes = Mapping[str, int]


@dataclass(slots=True)
class Naming:
    """Names the dimensions seen in several passes at different sizes; remembers what it could not settle."""

    sizes: Sequence[Sizes]
    settled: bool = True
    _known: dict[tuple[int, ...], Dim] = field(default_factory=dict)

    def specs(self, seen: Sequence[tuple[Output, ...]]) -> tuple[TensorSpec, ...]:
        """The tensors of one call, given as each pass saw them, the declared one first."""
        first, *others = seen
        alike = all([len(shape) for shape, _ in other] == [len(shape) for shape, _ in first] for other in others)
        if not alike:
            return tuple(TensorSpec(shape, dtype) for shape, dtype in first)
        return tuple(
            TensorSpec(tuple(self._dim(dims) for dims in zip(*(one[index][0] for one in seen), strict=True)), dtype)
            for index, (_, dtype) in enumerate(first)
        )

    def calls(self, seen: Sequence[Sequence[tuple[Output, ...]]]) -> tuple[tuple[TensorSpec, ...], ...]:
        """Every call of a module, equal ones once; concrete when the passes differ in their number of calls."""
        first = seen[0]
        if any(len(other) != len(first) for other in seen):
            return tuple(dict.fromkeys(tuple(TensorSpec(*one) for one in call) for call in first))
        return tuple(dict.fromkeys(self.specs(call) for call in zip(*seen, strict=True)))

    def _dim(self, dims: tuple[int, ...]) -> Dim:
        if dims not in self._known:
            self._known[dims], settled = explain(self.sizes, dims)
            self.settled = self.settled and settled
        return self._known[dims]


def rows(
    found: Sequence[Node], weights: Sequence[tuple[Weight, ...]], passes: Sequence[Pass], naming: Naming
) -> tuple[Layer, ...]:
    """One row for each module, in order; lists of modules and a root without anything of its own have none."""
    trace = passes[0].trace
    names = _names(found, passes[0])
    return tuple(
        _row(node, own, passes, naming, names)
        for node, own in zip(found, weights, strict=True)
        if _has_row(node, own, trace)
    )


def _names(found: Sequence[Node], first: Pass) -> dict[Source, str]:
    """What each source is called; an input that is called like a layer gets the word before its name."""
    trace = first.trace
    names: dict[Source, str] = {
        record.index: node.path for node in found if (record := trace.seen(node.module)) is not None
    }
    taken = {node.path for node in found}
    return names | {port: f"input {port}" if port in taken else port for port in first.ports}


def _has_row(node: Node, own: tuple[Weight, ...], trace: Trace) -> bool:
    if own:
        return True
    if node.path == ROOT:
        return not node.container
    called = trace.seen(node.module) is not None
    return called or not isinstance(node.module, (nn.ModuleList, nn.ModuleDict))


def _row(
    node: Node, own: tuple[Weight, ...], passes: Sequence[Pass], naming: Naming, names: Mapping[Source, str]
) -> Layer:
    records = [one.trace.seen(node.module) for one in passes]
    record = records[0]
    if record is None:
        return Layer(node.path, node.type, weights=own, calls=0, flops=0, container=node.container)
    return Layer(
        path=node.path,
        type=node.type,
        outputs=tuple(call for call in naming.calls([seen.calls if seen else [] for seen in records]) if call),
        connected_to=_edges(record, names),
        weights=own,
        calls=len(record.calls),
        flops=_flops(record, records, naming.sizes),
        container=node.container,
    )


def _flops(record: Record, records: Sequence[Record | None], sizes: Sequence[Sizes]) -> int | None:
    """Its FLOPs, None when another pass at the same sizes counted differently."""
    twins = [other for other, size in zip(records, sizes, strict=True) if size == sizes[0]]
    return record.flops if all(other is not None and other.flops == record.flops for other in twins) else None


def _edges(record: Record, names: Mapping[Source, str]) -> tuple[tuple[str, ...], ...]:
    calls = (tuple(names[source] for source in call if source in names) for call in record.fed_by)
    return tuple(dict.fromkeys(call for call in calls if call))
