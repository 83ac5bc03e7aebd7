"""From traces to rows: paths, inputs and outputs with symbolic dimensions, edges, weights, and rows for joins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from pytest_modelbudget.backends.assemble import distinct
from pytest_modelbudget.backends.dimensions import DimensionNaming
from pytest_modelbudget.backends.torch.memory.saved_tensors import Activations
from pytest_modelbudget.backends.torch.model.modules import ROOT, Node
from pytest_modelbudget.backends.torch.trace.forward import ForwardPass
from pytest_modelbudget.backends.torch.trace.joins import Join, Source
from pytest_modelbudget.backends.torch.trace.tracer import ModuleRecord, ModuleTrace
from pytest_modelbudget.summary import Layer, Weight


def rows(
    nodes: Sequence[Node],
    weights: Sequence[tuple[Weight, ...]],
    passes: Sequence[ForwardPass],
    naming: DimensionNaming,
    saved: Activations | None,
) -> tuple[Layer, ...]:
    """One row for each module, in order; lists of modules and a root without anything of its own have none.

    The joins of a module stand in the order they first ran, each below what the module had called last. `saved` says
    what each module saved for the backward pass; what a join saved is at the module it stands in.
    """
    trace = passes[0].trace
    joins = _joins_by_position(nodes, trace)
    paths = _join_paths(nodes, joins)
    names = _source_names(nodes, paths, passes[0])
    layers = []
    for position, (node, own_weights) in enumerate(zip(nodes, weights, strict=True)):
        if _has_row(node, own_weights, trace):
            layers.append(_row(node, own_weights, passes, naming, names, saved))
        for join in joins.get(position, ()):
            layers.append(_join_row(join, paths[join.key], passes, naming, names, saved))
    return tuple(layers)


def _joins_by_position(nodes: Sequence[Node], trace: ModuleTrace) -> dict[int, list[Join]]:
    """The joins by the position of the row that they come after; there, those of inner modules first."""
    path_of = {id(node.module): node.path for node in nodes}
    position_of = {node.path: position for position, node in enumerate(nodes)}
    last = _last_positions(nodes)
    reached: dict[str, int] = {}
    placed: dict[int, list[Join]] = {}
    for join in trace.joins.values():
        if (owner := path_of.get(id(join.owner))) is None:  # a module that forward made for itself
            owner = ROOT
        child_path = _child_path(owner, path_of.get(id(join.after), ""))
        row_position = max(reached.get(owner, position_of[owner]), last.get(child_path, 0))
        reached[owner] = row_position
        placed.setdefault(row_position, []).append(join)
    for joins in placed.values():
        joins.sort(key=lambda join: -len(_path_prefix(path_of.get(id(join.owner), ROOT))))
    return placed


def _last_positions(nodes: Sequence[Node]) -> dict[str, int]:
    """The position of the last node at or below each path."""
    last: dict[str, int] = {}
    for position, node in enumerate(nodes):
        end = len(node.path)
        while end > 0:
            last[node.path[:end]] = position
            end = node.path.rfind(".", 0, end)
    return last


def _path_prefix(path: str) -> str:
    """What the paths of the rows inside a module begin with."""
    return "" if path == ROOT else f"{path}."


def _child_path(owner: str, path: str) -> str:
    """The child of `owner` that holds the module at `path`; empty when it is not below `owner`."""
    prefix = _path_prefix(owner)
    return f"{prefix}{path[len(prefix) :].partition('.')[0]}" if path.startswith(prefix) else ""


def _join_paths(nodes: Sequence[Node], placed: Mapping[int, Sequence[Join]]) -> dict[tuple[int, str, int], str]:
    """`block.add`, `block.add_1`, ...: numbered in each module, past the names that modules have."""
    path_of = {id(node.module): node.path for node in nodes}
    used_paths = set(path_of.values())
    numbers: Counter[str] = Counter()
    paths: dict[tuple[int, str, int], str] = {}
    for joins in placed.values():
        for join in joins:
            base = f"{_path_prefix(path_of.get(id(join.owner), ROOT))}{join.kind}"
            paths[join.key] = _free_path(base, numbers, used_paths)
    return paths


def _free_path(base: str, numbers: Counter[str], used_paths: set[str]) -> str:
    while True:
        number = numbers[base]
        numbers[base] += 1
        path = f"{base}_{number}" if number else base
        if path not in used_paths:
            used_paths.add(path)
            return path


def _source_names(
    nodes: Sequence[Node], joins: Mapping[tuple[int, str, int], str], first: ForwardPass
) -> dict[Source, str]:
    """What each source is called; an input that is called like a layer gets the word before its name."""
    trace = first.trace
    names: dict[Source, str] = {
        record.index: node.path for node in nodes if (record := trace.record_of(node.module)) is not None
    }
    names |= {join.index: joins[key] for key, join in trace.joins.items()}
    used_names = {*(node.path for node in nodes), *joins.values()}
    return names | {port: f"input {port}" if port in used_names else port for port in first.ports}


def _has_row(node: Node, own_weights: tuple[Weight, ...], trace: ModuleTrace) -> bool:
    if own_weights:
        return True
    if node.path == ROOT:
        return not node.container
    called = trace.record_of(node.module) is not None
    return called or not isinstance(node.module, (nn.ModuleList, nn.ModuleDict))


def _row(
    node: Node,
    own_weights: tuple[Weight, ...],
    passes: Sequence[ForwardPass],
    naming: DimensionNaming,
    names: Mapping[Source, str],
    saved: Activations | None,
) -> Layer:
    activation_bytes = None if saved is None else saved.by_module.get(id(node.module), 0)
    records = [forward_pass.trace.record_of(node.module) for forward_pass in passes]
    record = records[0]
    if record is None:
        # Whether there was a call, and what it cost, is not known inside scripted code or where other values make one.
        called_in_variant = any(records[position] is not None for position in naming.twins)
        no_calls = None if called_in_variant or isinstance(node.module, torch.jit.ScriptModule) else 0
        return Layer(
            node.path,
            node.type,
            weights=own_weights,
            calls=no_calls,
            flops=no_calls,
            container=node.container,
            activation_bytes=activation_bytes,
        )
    outputs, inputs = naming.row(records)
    return Layer(
        path=node.path,
        type=node.type,
        outputs=outputs,
        connected_to=_connected_to(record, names),
        weights=own_weights,
        calls=_call_count(record, records, naming.twins),
        flops=_agreed_flops(record, records, naming.twins),
        container=node.container,
        inputs=inputs,
        activation_bytes=activation_bytes,
    )


def _join_row(
    join: Join,
    path: str,
    passes: Sequence[ForwardPass],
    naming: DimensionNaming,
    names: Mapping[Source, str],
    saved: Activations | None,
) -> Layer:
    records = [forward_pass.trace.joins.get(join.key) for forward_pass in passes]
    outputs, inputs = naming.row(records)
    return Layer(
        path=path,
        type=join.kind,
        outputs=outputs,
        connected_to=_connected_to(join, names),
        calls=_call_count(join, records, naming.twins),
        flops=_agreed_flops(join, records, naming.twins),
        inputs=inputs,
        activation_bytes=None if saved is None else 0,
    )


def _call_count(
    first: ModuleRecord | Join, records: Sequence[ModuleRecord | Join | None], twins: Sequence[int]
) -> int | None:
    """How often it was called, None when that depends on values."""
    if not twins:
        return len(first.calls)
    counts = [len(record.calls) if (record := records[position]) is not None else 0 for position in twins]
    return len(first.calls) if all(times == len(first.calls) for times in counts) else None


def _agreed_flops(
    first: ModuleRecord | Join, records: Sequence[ModuleRecord | Join | None], twins: Sequence[int]
) -> int | None:
    """Its FLOPs, None when another pass at the same sizes counted differently."""
    if not twins:
        return first.flops
    others = [records[position] for position in twins]
    return first.flops if all(other is not None and other.flops == first.flops for other in others) else None


def _connected_to(record: ModuleRecord | Join, names: Mapping[Source, str]) -> tuple[tuple[str, ...], ...]:
    if not record.fed_by:
        return ()
    calls = [tuple([names[source] for source in call if source in names]) for call in record.fed_by]
    return distinct(calls)
