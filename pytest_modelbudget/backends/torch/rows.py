"""From traces to rows: paths, inputs and outputs with symbolic dimensions, edges, weights, and rows for joins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from pytest_modelbudget.backends.assemble import distinct
from pytest_modelbudget.backends.dimensions import Naming
from pytest_modelbudget.backends.torch.memory.saved_tensors import Activations
from pytest_modelbudget.backends.torch.model.modules import ROOT, Node
from pytest_modelbudget.backends.torch.trace.forward import Pass
from pytest_modelbudget.backends.torch.trace.joins import Join, Source
from pytest_modelbudget.backends.torch.trace.tracer import Record, Trace
from pytest_modelbudget.summary import Layer, Weight


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
    return distinct(calls)
