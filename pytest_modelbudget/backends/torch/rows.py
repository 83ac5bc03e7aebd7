"""From traces to rows: paths, inputs and outputs with symbolic dimensions, edges, weights, and rows for joins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from pytest_modelbudget.backends.assemble import PartCalls, layer_of
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
    joins = _joins_by_position(nodes, passes[0].trace)
    paths = _join_paths(nodes, joins)
    names = _source_names(nodes, paths, passes[0])
    layers = []
    for position, (node, own_weights) in enumerate(zip(nodes, weights, strict=True)):
        records = [forward_pass.trace.record_of(node.module) for forward_pass in passes]
        if has_row(node, own_weights, called=records[0] is not None):
            calls = _calls_of_module(node.module, records, naming)
            held = None if saved is None else saved.by_module.get(id(node.module), 0)
            layers.append(
                layer_of(
                    node.path, node.type, calls, names, own_weights, container=node.container, activation_bytes=held
                )
            )
        for join in joins.get(position, ()):
            calls = _part_calls(join, [forward_pass.trace.joins.get(join.key) for forward_pass in passes], naming)
            held = None if saved is None else 0
            layers.append(layer_of(paths[join.key], join.kind, calls, names, activation_bytes=held))
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


def has_row(node: Node, own_weights: tuple[Weight, ...], *, called: bool) -> bool:
    """Whether a module has a row; the root and lists or dicts that nothing calls have one for own weights alone."""
    if own_weights:
        return True
    if node.path == ROOT:
        return not node.container
    return called or not isinstance(node.module, (nn.ModuleList, nn.ModuleDict))


def _calls_of_module(module: nn.Module, records: Sequence[ModuleRecord | None], naming: DimensionNaming) -> PartCalls:
    if (first := records[0]) is not None:
        return _part_calls(first, records, naming)
    # Whether there was a call, and what it cost, is not known inside scripted code or where other values make one.
    called_in_variant = any(records[position] is not None for position in naming.twins)
    no_calls = None if called_in_variant or isinstance(module, torch.jit.ScriptModule) else 0
    return PartCalls(calls=no_calls, flops=no_calls)


def _part_calls(
    first: ModuleRecord | Join, records: Sequence[ModuleRecord | Join | None], naming: DimensionNaming
) -> PartCalls:
    """What a module or join got and gave; calls and FLOPs are not known where a pass at the same sizes differs."""
    outputs, inputs = naming.row(records)
    twins = [records[position] for position in naming.twins]
    calls, flops = len(first.calls), first.flops
    same_calls = all((0 if twin is None else len(twin.calls)) == calls for twin in twins)
    same_flops = all(twin is not None and twin.flops == flops for twin in twins)
    return PartCalls(inputs, outputs, first.fed_by, calls if same_calls else None, flops if same_flops else None)
