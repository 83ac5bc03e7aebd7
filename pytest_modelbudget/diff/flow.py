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
    for old_specs, new_specs in zip(old.outputs, new.outputs, strict=False):
        for old_spec, new_spec in zip(old_specs, new_specs, strict=False):
            yield from shifts(old_spec.shape, new_spec.shape)
            if old_spec.dtype != new_spec.dtype:
                yield old_spec.dtype, new_spec.dtype


class Flow:
    """The connections of two matched summaries; paths of the old one can be told as paths of the new one."""

    def __init__(self, before: Summary, after: Summary, matched: Match) -> None:
        self.old = {layer.path: layer for layer in before.layers}
        self.new = {layer.path: layer for layer in after.layers}
        self.path = {old.path: new.path for _, old, _, new in matched.rows}
        self.origin = {new: old for old, new in self.path.items()}
        self.renamed_inputs = {
            _port_name(old, self.old): _port_name(new, self.new) for old, new in _same_ports(before, after)
        }
        self.inputs_before = {_port_name(port.name, self.old): (port.spec,) for port in before.inputs}
        self.inputs_after = {_port_name(port.name, self.new): (port.spec,) for port in after.inputs}
        self._behind_old: dict[str, frozenset[str]] = {}
        self._behind_new: dict[str, frozenset[str]] = {}
        self.unsettled = set(_containers_of_change(self))
        self.shifted = Counter(shift for old, new in self._pairs for shift in _row_shifts(old, new))
        for name, new_name in self.renamed_inputs.items():
            for old_spec, new_spec in zip(self.inputs_before[name], self.inputs_after[new_name], strict=True):
                self.shifted.update(shifts(old_spec.shape, new_spec.shape))

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
        if old.connected_to == new.connected_to and all(
            self._keeps_name(name) for call in old.connected_to for name in call
        ):
            return None
        if tuple(tuple(map(self._new_name, call)) for call in old.connected_to) == new.connected_to:
            return None
        old_names, new_names = _unique_names(old.connected_to), _unique_names(new.connected_to)
        behind_old = frozenset().union(*map(self._behind, old_names)) if old_names else frozenset()
        behind_new = frozenset().union(*map(self._behind_now, new_names)) if new_names else frozenset()
        gained = [name for name in new_names if not self._is_added(name) and name not in behind_old]
        lost = [name for name in old_names if not self._is_removed(name) and self._new_name(name) not in behind_new]
        touched = any(map(self._is_added, new_names)) or any(map(self._is_removed, old_names))
        return "connection" if gained or lost or not touched else "follows"

    def _keeps_name(self, name: str) -> bool:
        return self._new_name(name) == name

    def _new_name(self, name: str) -> str:
        return self.path.get(name) or (name if name in self.old else self.renamed_inputs.get(name, name))

    def _is_removed(self, name: str) -> bool:
        return name in self.old and name not in self.path

    def _is_added(self, name: str) -> bool:
        return name in self.new and name not in self.origin

    def _behind(self, name: str) -> frozenset[str]:
        """The kept rows and inputs that an old source stands for, by their new names."""
        sources = _resolve(name, self.old, self._is_removed, self._behind_old)
        return frozenset(map(self._new_name, sources))

    def _behind_now(self, name: str) -> frozenset[str]:
        return _resolve(name, self.new, self._is_added, self._behind_new)

    def changed_sources(
        self, old: Layer, new: Layer
    ) -> Iterator[tuple[str, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]]:
        """Each source whose output changed, or that took the place of one with another output."""
        old_names, new_names = _unique_names(_feeding(old, self.old)), _unique_names(_feeding(new, self.new))
        for old_name, new_name in zip(old_names, new_names, strict=False):
            before, after = (
                _outputs_of(old_name, self.old, self.inputs_before),
                _outputs_of(new_name, self.new, self.inputs_after),
            )
            if before and after and before != after:
                yield new_name, before, after

    def output_follows(self, old: Layer, new: Layer) -> bool:
        """Whether another output shape is explained by what feeds the row, or by what it holds."""
        if new.path in self.unsettled or any(self.changed_sources(old, new)):
            return True
        if _unique_names(new.connected_to):
            return False
        changed = list(spec_shifts(old, new))
        return bool(changed) and all(self.shifted[shift] for shift in changed)


def _same_ports(before: Summary, after: Summary) -> Iterator[tuple[str, str]]:
    """Inputs by name; by position where the names are others."""
    if {port.name for port in before.inputs} == {port.name for port in after.inputs}:
        yield from ((port.name, port.name) for port in before.inputs)
    elif len(before.inputs) == len(after.inputs):
        yield from (
            (old_port.name, new_port.name) for old_port, new_port in zip(before.inputs, after.inputs, strict=True)
        )


def _port_name(name: str, rows: Mapping[str, Layer]) -> str:
    """What an input is called among connections; torch's are numbered, as layers may be."""
    return f"input {name}" if name in rows else name


def _unique_names(calls: Iterable[tuple[str, ...]]) -> list[str]:
    return list(dict.fromkeys(name for call in calls for name in call))


def _feeding(layer: Layer, rows: Mapping[str, Layer]) -> tuple[tuple[str, ...], ...]:
    """What feeds a row; the first row of a nested model is fed by what feeds that model."""
    path = layer.path
    while not any(rows[path].connected_to if path in rows else ()):
        end = max(path.rfind("."), path.rfind("/"))
        if end <= 0:
            return ()
        path = path[:end]
    return rows[path].connected_to


def _outputs_of(
    name: str, rows: Mapping[str, Layer], inputs: Mapping[str, tuple[TensorSpec, ...]]
) -> tuple[TensorSpec, ...]:
    if name in rows:
        return rows[name].outputs[0] if rows[name].outputs else ()
    return inputs.get(name, ())


def _row_shifts(old: Layer, new: Layer) -> Iterator[Shift]:
    """What changed in the weights of a row."""
    if old.type != new.type or old.weights == new.weights:
        return
    new_by_name = {weight.name: weight for weight in new.weights}
    for weight in old.weights:
        if (counterpart := new_by_name.get(weight.name)) is not None:
            yield from shifts(weight.shape, counterpart.shape)
            if weight.dtype != counterpart.dtype:
                yield weight.dtype, counterpart.dtype


def _containers_of_change(flow: Flow) -> Iterator[str]:
    """New paths of rows that hold a row which is new, gone, or has another output."""
    changed = [new.path for old, new in flow._pairs if old.outputs != new.outputs]
    changed += [path for path in flow.new if path not in flow.origin]
    removed = [path for path in flow.old if path not in flow.path]
    if changed or removed:
        yield ROOT
    for path in changed:
        yield from _parents(path)
    for path in removed:
        yield from (flow.path[parent] for parent in _parents(path) if parent in flow.path)


def _parents(path: str) -> Iterator[str]:
    end = len(path)
    for _ in range(_MOST_SOURCES):
        end = max(path.rfind(".", 0, end), path.rfind("/", 0, end))
        if end <= 0:
            return
        yield path[:end]


def _resolve(
    name: str, rows: Mapping[str, Layer], is_unmatched: object, resolved: dict[str, frozenset[str]]
) -> frozenset[str]:
    """Go back from `name` through rows that the other summary does not have."""
    assert callable(is_unmatched)
    waiting, entered = [name], set()
    while waiting:
        top = waiting[-1]
        if top in resolved:
            waiting.pop()
        elif not is_unmatched(top):
            resolved[waiting.pop()] = frozenset((top,))
        else:
            sources = _unique_names(rows[top].connected_to)
            missing = (
                [] if top in entered else [name for name in sources if name not in resolved and name not in entered]
            )
            entered.add(top)
            waiting += missing
            if not missing:
                origins = frozenset().union(*(resolved.get(source, frozenset()) for source in sources))
                resolved[waiting.pop()] = frozenset(sorted(origins)[:_MOST_SOURCES])
    return resolved[name]
