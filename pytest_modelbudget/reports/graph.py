"""A model as a graph for the HTML page: what feeds each row, and what changed of each since an earlier summary.

Rows are named by their places: those of the summary first, then those that are gone, in the order they had.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pytest_modelbudget.diff import RowChange, compare_rows
from pytest_modelbudget.reports.tree import tree_rows
from pytest_modelbudget.summary import Layer, Summary, TensorSpec
from pytest_modelbudget.summary.show.nesting import parent_rows
from pytest_modelbudget.system.escape import harmless

Source = int | str
"""A row that feeds another, as the distance back to it, so that equal blocks read equal; what is no row by its name."""


def sources(summary: Summary) -> list[list[Source] | None]:
    """For each row what feeds it, each source once; None where that is not known."""
    places = {layer.path: index for index, layer in enumerate(summary.layers)}
    return [
        None if layer.calls is None and not layer.connected_to else _distances(layer, index, places)
        for index, layer in enumerate(summary.layers)
    ]


def _distances(layer: Layer, place: int, places: Mapping[str, int]) -> list[Source]:
    names = dict.fromkeys(name for call in layer.connected_to for name in call)
    return [place - places[name] if name in places else harmless(name) for name in names]


def shapes(summary: Summary) -> list[list[object]]:
    """Of sources that are called several times: [place, distance of the source, the shape that went along this line].

    It is told where just one of the shapes of the source is among those that the row was given; else it is not known.
    """
    places = {layer.path: index for index, layer in enumerate(summary.layers)}
    several = {layer.path: layer for layer in summary.layers if len(layer.outputs) > 1}
    return [
        [place, place - places[name], harmless(shape.pop())]
        for place, layer in enumerate(summary.layers)
        for name in dict.fromkeys(name for call in layer.connected_to for name in call if name in several)
        if len(shape := _tensors(several[name].outputs) & _tensors(layer.inputs)) == 1
    ]


def _tensors(calls: Sequence[Sequence[TensorSpec]]) -> set[str]:
    return {spec.brief for call in calls for spec in call}


def comparison(before: Summary, after: Summary) -> dict[str, object]:
    """What became of each row.

    `changed`: [place, state, the row as it was, its changes as sentences, what fed it and does no longer]; a row that
    is as it was but holds others that are not has the state `inside`. `removed`: [the row, place of its parent, place
    of the row before it in that parent (-1: none), what fed it].
    """
    rows = _Rows.of(before, after)
    return {"changed": list(_changed(rows)), "removed": list(_removed(rows))}


@dataclass(frozen=True, slots=True)
class _Rows:
    """Two summaries side by side; `places` has the place of each old path, kept and gone ones alike."""

    before: Summary
    after: Summary
    changes: tuple[RowChange, ...]
    origin: Mapping[str, str]
    places: Mapping[str, int]
    earlier: Sequence[list[object]]
    old_index: Mapping[str, int]

    @classmethod
    def of(cls, before: Summary, after: Summary) -> _Rows:
        compared = compare_rows(before, after)
        new_index = {layer.path: index for index, layer in enumerate(after.layers)}
        gone = [layer.path for layer in before.layers if layer.path not in compared.paths]
        places = {old: new_index[new] for old, new in compared.paths.items()}
        places |= {path: len(after.layers) + number for number, path in enumerate(gone)}
        return cls(
            before,
            after,
            compared.rows,
            {new: old for old, new in compared.paths.items()},
            places,
            list(tree_rows(before)),
            {layer.path: index for index, layer in enumerate(before.layers)},
        )

    def fed(self, old: str, place: int) -> list[Source]:
        """What fed an old row."""
        return _distances(self.before.layers[self.old_index[old]], place, self.places)


def _changed(rows: _Rows) -> Iterator[list[object]]:
    now = list(tree_rows(rows.after))
    sources_now = sources(rows.after)
    changes = {change.path: change for change in rows.changes if change.path}
    for place, layer in enumerate(rows.after.layers):
        change, was = changes.get(layer.path), rows.origin.get(layer.path)
        if change is None and (was is None or not layer.container):
            continue
        earlier = None if was is None else rows.earlier[rows.old_index[was]]
        if change is None:
            if earlier is not None and earlier[_HELD] != now[place][_HELD]:
                yield [place, "inside", earlier, [], []]
            continue
        lost = [] if was is None else [item for item in rows.fed(was, place) if item not in (sources_now[place] or ())]
        yield [place, change.state, earlier, list(_sentences(change)), lost]


_HELD = 5
"""Where a row of the tree has its params as a number."""


def _sentences(change: RowChange) -> Iterator[str]:
    for item in change.changes:
        why = f": {item.why}" if item.why else ""
        yield harmless(f"{item.kind}: {item.before} -> {item.after}{why}", longest=600)


def _removed(rows: _Rows) -> Iterator[list[object]]:
    parents = parent_rows(rows.before.layers)
    last: dict[int, str] = {}
    for index, layer in enumerate(rows.before.layers):
        parent, place = parents[index], rows.places[layer.path]
        if place >= len(rows.after.layers):
            above = -1 if parent < 0 else rows.places[rows.before.layers[parent].path]
            neighbour = rows.places[last[parent]] if parent in last else -1
            yield [rows.earlier[index], above, neighbour, rows.fed(layer.path, place)]
        last[parent] = layer.path
