"""From passes of a model to its rows: paths, shapes with symbolic dimensions, edges, weights, and rows for joins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pytest_modelbudget.backends.assemble import PartCalls, layer_of
from pytest_modelbudget.backends.dimensions import DimensionNaming
from pytest_modelbudget.backends.jax.abstract_model import ROOT, Part
from pytest_modelbudget.backends.jax.activations import JaxActivations
from pytest_modelbudget.backends.jax.flow import JoinKey, Source
from pytest_modelbudget.backends.jax.passes import AbstractPass
from pytest_modelbudget.summary import Layer


def rows(
    passes: Sequence[AbstractPass],
    naming: DimensionNaming,
    flops: Mapping[str, int | None] | None,
    saved: JaxActivations | None,
) -> tuple[Layer, ...]:
    """One row for each part, in the order of the first calls, and one for each join, below what was called last.

    A root without weights of its own has none. `flops` are those of each path, None where they are not known.
    """
    first = passes[0]
    parts = _in_call_order(first)
    joins = _joins_by_path(parts, first)
    paths = _join_paths(parts, joins)
    names: dict[Source, str] = {serial: call.path for serial, call in first.recorded.items()}
    names |= dict(paths.items())
    used = set(names.values())
    names |= {port: f"input {port}" if port in used else port for port in _ports(first)}
    layers: list[Layer] = []
    for part in parts:
        if part.path != ROOT or part.weights or not part.container:
            held = None if saved is None else saved.by_path.get(part.path, 0)
            calls = _part_calls(part.path, passes, naming, flops)
            layers.append(
                layer_of(
                    part.path, part.type, calls, names, part.weights, container=part.container, activation_bytes=held
                )
            )
        for key in joins.get(part.path, ()):
            join_calls = _join_calls(key, passes, naming, flops is not None)
            held = None if saved is None else 0
            layers.append(layer_of(paths[key], key[1], join_calls, names, activation_bytes=held))
    return tuple(layers)


def _in_call_order(first: AbstractPass) -> list[Part]:
    """The parts as they were first called, each after what holds it; those never called stay after the one before."""
    called = {path: index for index, path in enumerate(first.records)}
    order: dict[str, int] = {}
    latest = -1
    for part in first.parts:
        latest = order[part.path] = called.get(part.path, latest)

    def place(part: Part) -> tuple[tuple[int, str], ...]:
        keys = part.path.split(".") if part.path != ROOT else []
        holders = [".".join(keys[: end + 1]) for end in range(len(keys))]
        return tuple((order[holder], holder) for holder in holders if holder in order)

    return sorted(first.parts, key=place)


def _ports(first: AbstractPass) -> set[str]:
    fed = [source for record in first.records.values() for sources in record.fed_by for source in sources]
    joined = [source for join in first.joins.values() for sources in join.fed_by for source in sources]
    return {source for source in (*fed, *joined) if isinstance(source, str)}


def _part_calls(
    path: str, passes: Sequence[AbstractPass], naming: DimensionNaming, flops: Mapping[str, int | None] | None
) -> PartCalls:
    records = [trace.records.get(path) for trace in passes]
    if (first := records[0]) is None:
        return PartCalls(calls=0, flops=0 if flops is not None else None)
    outputs, inputs = naming.row(records)
    return PartCalls(inputs, outputs, first.fed_by, first.times, None if flops is None else flops.get(path, 0))


def _join_calls(key: JoinKey, passes: Sequence[AbstractPass], naming: DimensionNaming, counted: bool) -> PartCalls:
    first = passes[0].joins[key]
    outputs, inputs = naming.row([trace.joins.get(key) for trace in passes])
    return PartCalls(inputs, outputs, first.fed_by, first.times, first.flops if counted else None)


def _joins_by_path(parts: Sequence[Part], first: AbstractPass) -> dict[str, list[JoinKey]]:
    """The joins by the path of the row that they come after: the last one below what was called before them."""
    position_of = {part.path: position for position, part in enumerate(parts)}
    last = _last_positions(parts)
    placed: dict[str, list[JoinKey]] = {}
    reached: dict[str, int] = {}
    for key, join in first.joins.items():
        before = "" if join.after is None else first.recorded[join.after].path
        child = _child(join.path, before)
        position = max(position_of.get(join.path, 0), reached.get(join.path, 0), last.get(child, 0))
        reached[join.path] = position
        placed.setdefault(parts[position].path, []).append(key)
    return {path: sorted(keys, key=lambda key: -key[0].count(".") - (key[0] != ROOT)) for path, keys in placed.items()}


def _last_positions(parts: Sequence[Part]) -> dict[str, int]:
    """The position of the last part at or below each path."""
    last: dict[str, int] = {}
    for position, part in enumerate(parts):
        end = len(part.path)
        while end > 0:
            last[part.path[:end]] = position
            end = part.path.rfind(".", 0, end)
    return last


def _child(owner: str, path: str) -> str:
    """The child of `owner` that holds the module at `path`; empty when it is not below `owner`."""
    prefix = "" if owner == ROOT else f"{owner}."
    return f"{prefix}{path[len(prefix) :].partition('.')[0]}" if path.startswith(prefix) and path != ROOT else ""


def _join_paths(parts: Sequence[Part], joins: Mapping[str, Sequence[JoinKey]]) -> dict[JoinKey, str]:
    """`block.add`, `block.add_1`, ...: numbered in each module, past the names that modules have."""
    used = {part.path for part in parts}
    numbers: Counter[str] = Counter()
    paths: dict[JoinKey, str] = {}
    for keys in joins.values():
        for key in keys:
            base = key[1] if key[0] == ROOT else f"{key[0]}.{key[1]}"
            path = base
            while path in used:
                numbers[base] += 1
                path = f"{base}_{numbers[base]}"
            used.add(path)
            paths[key] = path
    return paths
