"""What feeds what in both summaries: which differences of a row only follow from what changed elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

from pytest_modelbudget.diff.match import Match
from pytest_modelbudget.diff.tree import ROOT
from pytest_modelbudget.summary import Layer, Summary, TensorSpec

Shift = tuple[Hashable, Hashable]
"""A dimension or a dtype, before and after."""

_MOST_SOURCES = 64
"""Rows that stand behind a removed or added one; of more, the first."""


def shifts(old: Sequence[Hashable], new: Sequence[Hashable]) -> Iterator[Shift]:
    """The dimensions that differ, of two shapes of one rank."""
    if len(old) == len(new):
        yield from dict.fromkeys(pair for pair in zip(old, new, strict=True) if pair[0] != pair[1])


def spec_shifts(old: Layer, new: Layer) -> Iterator[Shift]:
    """The same of all outputs of a row, with their dtypes."""
    for was, now in zip(old.outputs, new.outputs, strict=False):
        for one, other in zip(was, now, strict=False):
            yield from shifts(one.shape, other.shape)
            if one.dtype != other.dtype:
                yield one.dtype, other.dtype


class Flow:
    """The connections of two matched summaries; paths of the old one can be told as paths of the new one."""

    def __init__(self, before: Summary, after: Summary, found: Match) -> None:
        self.old = {layer.path: layer for layer in before.layers}
        self.new = {layer.path: layer for layer in after.layers}
        self.path = {old.path: new.path for _, old, _, new in found.rows}
        self.origin = {new: old for old, new in self.path.items()}
        self.renamed_inputs = {_port(old, self.old): _port(new, self.new) for old, new in _same_ports(before, after)}
        self.inputs_before = {_port(port.name, self.old): (port.spec,) for port in before.inputs}
        self.inputs_after = {_port(port.name, self.new): (port.spec,) for port in after.inputs}
        self._behind_old: dict[str, frozenset[str]] = {}
        self._behind_new: dict[str, frozenset[str]] = {}
        self.unsettled = set(_containers_of_change(self))
        self.shifted = Counter(shift for old, new in self._pairs for shift in _row_shifts(old, new))
        for name, other in self.renamed_inputs.items():
            for one, two in zip(self.inputs_before[name], self.inputs_after[other], strict=True):
                self.shifted.update(shifts(one.shape, two.shape))

    @property
    def _pairs(self) -> Iterator[tuple[Layer, Layer]]:
        return ((self.old[old], self.new[new]) for old, new in self.path.items())

    def tie(self, reference: str) -> str:
        """What an old `path.weight` is called now."""
        end = len(reference)
        while (end := max(reference.rfind(".", 0, end), reference.rfind("/", 0, end))) > 0:
            if reference[:end] in self.path:
                return f"{self.path[reference[:end]]}{reference[end:]}"
        return reference

    def commonest(self, resized: Iterable[Shift]) -> Shift | None:
        """Of several shifts the one that is met most in the whole model."""
        return max(resized, key=lambda shift: self.shifted[shift], default=None)

    def connections(self, old: Layer, new: Layer) -> Literal["connection", "follows"] | None:
        """Whether other rows feed it: None when at most their names differ, `follows` when a row came between."""
        if old.connected_to == new.connected_to and all(self._same(name) for call in old.connected_to for name in call):
            return None
        if tuple(tuple(map(self._now, call)) for call in old.connected_to) == new.connected_to:
            return None
        was, now = _flat(old.connected_to), _flat(new.connected_to)
        behind_old = frozenset().union(*map(self._behind, was)) if was else frozenset()
        behind_new = frozenset().union(*map(self._behind_now, now)) if now else frozenset()
        gained = [name for name in now if not self._is_added(name) and name not in behind_old]
        lost = [name for name in was if not self._is_removed(name) and self._now(name) not in behind_new]
        touched = any(map(self._is_added, now)) or any(map(self._is_removed, was))
        return "connection" if gained or lost or not touched else "follows"

    def _same(self, name: str) -> bool:
        return self._now(name) == name

    def _now(self, name: str) -> str:
        return self.path.get(name) or (name if name in self.old else self.renamed_inputs.get(name, name))

    def _is_removed(self, name: str) -> bool:
        return name in self.old and name not in self.path

    def _is_added(self, name: str) -> bool:
        return name in self.new and name not in self.origin

    def _behind(self, name: str) -> frozenset[str]:
        """The kept rows and inputs that an old source stands for, by their new names."""
        found = _resolved(name, self.old, self._is_removed, self._behind_old)
        return frozenset(map(self._now, found))

    def _behind_now(self, name: str) -> frozenset[str]:
        return _resolved(name, self.new, self._is_added, self._behind_new)

    def fed(self, old: Layer, new: Layer) -> Iterator[tuple[str, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]]:
        """Each source whose output changed, or that took the place of one with another output."""
        was, now = _flat(_sources(old, self.old)), _flat(_sources(new, self.new))
        for one, other in zip(was, now, strict=False):
            before, after = _outputs(one, self.old, self.inputs_before), _outputs(other, self.new, self.inputs_after)
            if before and after and before != after:
                yield other, before, after

    def output_follows(self, old: Layer, new: Layer) -> bool:
        """Whether another output shape is explained by what feeds the row, or by what it holds."""
        if new.path in self.unsettled or any(self.fed(old, new)):
            return True
        if _flat(new.connected_to):
            return False
        found = list(spec_shifts(old, new))
        return bool(found) and all(self.shifted[shift] for shift in found)


def _same_ports(before: Summary, after: Summary) -> Iterator[tuple[str, str]]:
    """Inputs by name; by position where the names are others."""
    if {port.name for port in before.inputs} == {port.name for port in after.inputs}:
        yield from ((port.name, port.name) for port in before.inputs)
    elif len(before.inputs) == len(after.inputs):
        yield from ((one.name, two.name) for one, two in zip(before.inputs, after.inputs, strict=True))


def _port(name: str, rows: Mapping[str, Layer]) -> str:
    """What an input is called among connections; torch's are numbered, as layers may be."""
    return f"input {name}" if name in rows else name


def _flat(calls: Iterable[tuple[str, ...]]) -> list[str]:
    return list(dict.fromkeys(name for call in calls for name in call))


def _sources(layer: Layer, rows: Mapping[str, Layer]) -> tuple[tuple[str, ...], ...]:
    """What feeds a row; the first row of a nested model is fed by what feeds that model."""
    path = layer.path
    while not any(rows[path].connected_to if path in rows else ()):
        end = max(path.rfind("."), path.rfind("/"))
        if end <= 0:
            return ()
        path = path[:end]
    return rows[path].connected_to


def _outputs(
    name: str, rows: Mapping[str, Layer], inputs: Mapping[str, tuple[TensorSpec, ...]]
) -> tuple[TensorSpec, ...]:
    if name in rows:
        return rows[name].outputs[0] if rows[name].outputs else ()
    return inputs.get(name, ())


def _row_shifts(old: Layer, new: Layer) -> Iterator[Shift]:
    """What changed in the weights of a row."""
    if old.type != new.type or old.weights == new.weights:
        return
    there = {weight.name: weight for weight in new.weights}
    for weight in old.weights:
        if (other := there.get(weight.name)) is not None:
            yield from shifts(weight.shape, other.shape)
            if weight.dtype != other.dtype:
                yield weight.dtype, other.dtype


def _containers_of_change(flow: Flow) -> Iterator[str]:
    """New paths of rows that hold a row which is new, gone, or has another output."""
    changed = [new.path for old, new in flow._pairs if old.outputs != new.outputs]
    changed += [path for path in flow.new if path not in flow.origin]
    gone = [path for path in flow.old if path not in flow.path]
    if changed or gone:
        yield ROOT
    for path in changed:
        yield from _above(path)
    for path in gone:
        yield from (flow.path[above] for above in _above(path) if above in flow.path)


def _above(path: str) -> Iterator[str]:
    end = len(path)
    for _ in range(_MOST_SOURCES):
        end = max(path.rfind(".", 0, end), path.rfind("/", 0, end))
        if end <= 0:
            return
        yield path[:end]


def _resolved(name: str, rows: Mapping[str, Layer], inside: object, known: dict[str, frozenset[str]]) -> frozenset[str]:
    """Go back from `name` through rows that the other summary does not have."""
    assert callable(inside)
    waiting, entered = [name], set()
    while waiting:
        top = waiting[-1]
        if top in known:
            waiting.pop()
        elif not inside(top):
            known[waiting.pop()] = frozenset((top,))
        else:
            sources = _flat(rows[top].connected_to)
            missing = [] if top in entered else [name for name in sources if name not in known and name not in entered]
            entered.add(top)
            waiting += missing
            if not missing:
                found = frozenset().union(*(known.get(source, frozenset()) for source in sources))
                known[waiting.pop()] = frozenset(sorted(found)[:_MOST_SOURCES])
    return known[name]
