"""What a finished jaxpr tells of the marks in it: how often modules ran, where their inputs come from, and joins.

A join is an equation in the code of a module that holds others, which reads numbers of at least two sources (modules,
inputs, earlier joins), as the sum of a residual block does. Weights and constants are no sources, nor are ids and masks
beside numbers. What any other equation makes of several sources goes on under the first of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_modelbudget.backends.calls import ShapeDtype
from pytest_modelbudget.backends.costs.jaxpr import equation_flops, inner_jaxprs, needed_equations
from pytest_modelbudget.backends.jax.abstract_model import ROOT
from pytest_modelbudget.backends.jax.recorder import ModuleCall, innermost_call, shape_dtype, tensor_mark

_JOINS = {
    "add": "add",
    "add_any": "add",
    "sub": "sub",
    "mul": "mul",
    "div": "div",
    "max": "maximum",
    "min": "minimum",
    "concatenate": "concatenate",
    "select_n": "where",
    "dot_general": "dot",
    "ragged_dot": "dot",
    "conv_general_dilated": "conv",
}
"""The primitives that join, and what their rows are called."""

JoinKey = tuple[str, str, int]
"""The path of the module whose code it is, its kind, and its number among those of that kind in one call."""

Source = int | str | JoinKey
"""What made a tensor: the serial of a call, the name of an input, or a join."""


@dataclass(slots=True)
class Join:
    """A join: what each run got, gave, and came from; how often it ran, and its FLOPs, None for a number not known."""

    path: str
    kind: str
    after: int | None = None
    inputs: list[tuple[ShapeDtype, ...]] = field(default_factory=list)
    calls: list[tuple[ShapeDtype, ...]] = field(default_factory=list)
    fed_by: list[tuple[Source, ...]] = field(default_factory=list)
    times: int | None = 0
    flops: int | None = 0


@dataclass(slots=True)
class Flow:
    """What was found: for each call of a module, by its serial, how often it ran and what fed each of its tensors."""

    times: dict[int, int | None] = field(default_factory=dict)
    fed_by: dict[int, dict[int, Source | None]] = field(default_factory=dict)
    joins: dict[JoinKey, Join] = field(default_factory=dict)


_Sources = dict[Any, Source | None]


def flow_of(
    closed: Any, sources: Sequence[Source | None], calls: Mapping[int, ModuleCall], containers: frozenset[str]
) -> Flow:
    """Follow a jaxpr whose inputs have these `sources`; `containers` are the paths of the modules that hold others."""
    walk = _Walk(calls, containers)
    walk.follow(closed.jaxpr, list(sources), "", 1)
    return walk.flow


class _Walk:
    def __init__(self, calls: Mapping[int, ModuleCall], containers: frozenset[str]) -> None:
        self.calls = calls
        self.containers = containers
        self.flow = Flow()
        self._marked_by: dict[int, tuple[str, int]] = {}
        self._joins_of_call: Counter[tuple[int, str]] = Counter()
        self._latest: int | None = None

    def follow(self, jaxpr: Any, sources: list[Source | None], scope: str, times: int | None) -> list[Source | None]:
        """The sources of the outputs of a jaxpr that runs `times` times, None for a number that is not known."""
        known: _Sources = dict(zip(jaxpr.invars, sources, strict=True))
        needed = set(map(id, needed_equations(jaxpr)))
        for eqn in jaxpr.eqns:
            inner_scope = f"{scope}{eqn.source_info.name_stack}/"
            operands = [None if hasattr(variable, "val") else known.get(variable) for variable in eqn.invars]
            name = str(eqn.primitive.name)
            if name == "name" and (mark := tensor_mark(eqn.params["name"])) is not None:
                results = [self._pass_mark(mark.serial, mark.side, mark.index, operands[0], times)]
            elif inner := inner_jaxprs(eqn):
                results = self._follow_inner(eqn, inner, operands, inner_scope, times)
            else:
                source = self._join(eqn, operands, inner_scope, times, id(eqn) in needed) or _first(operands)
                results = [source] * len(eqn.outvars)
            known.update(zip(eqn.outvars, results, strict=True))
        return [None if hasattr(variable, "val") else known.get(variable) for variable in jaxpr.outvars]

    def _follow_inner(
        self, eqn: Any, inner: Sequence[Any], operands: list[Source | None], scope: str, times: int | None
    ) -> list[Source | None]:
        """The sources of what an equation gives that holds jaxprs."""
        results: list[Source | None] = [None] * len(eqn.outvars)
        for part in inner:
            repeated = None if part.times is None or times is None else times * part.times
            sources = [None if at is None else operands[at] for at in part.operands]
            found = self.follow(part.jaxpr, sources, scope, repeated)
            if part.gives_results:
                results = [earlier or source for earlier, source in zip(results, found, strict=True)]
        return results

    def _pass_mark(self, serial: int, side: str, index: int, source: Source | None, times: int | None) -> Source | None:
        """Note a marked tensor, and say what its source is from here on."""
        counted_at = self._marked_by.setdefault(serial, (side, index))
        if counted_at == (side, index):
            earlier = self.flow.times.get(serial, 0)
            self.flow.times[serial] = None if earlier is None or times is None else earlier + times
        if side == "out":
            return serial
        self.flow.fed_by.setdefault(serial, {}).setdefault(index, source)
        self._latest = serial
        return source

    def _join(
        self, eqn: Any, operands: list[Source | None], scope: str, times: int | None, needed: bool
    ) -> JoinKey | None:
        """The join that an equation is, noted; None for any other equation."""
        kind = _JOINS.get(str(eqn.primitive.name))
        if kind is None or len({source for source in operands if source is not None}) < 2:
            return None
        call = self.calls.get(innermost_call(scope) or -1) if innermost_call(scope) is not None else None
        path = ROOT if call is None else call.path
        if path not in self.containers:
            return None
        joined = _numbers_first(eqn, operands)
        if len({source for _, source in joined}) < 2:
            return None
        serial = -1 if call is None else call.serial
        key = path, kind, self._joins_of_call[serial, kind]
        self._joins_of_call[serial, kind] += 1
        join = self.flow.joins.setdefault(key, Join(path, kind, self._latest))
        join.inputs.append(tuple(shape_dtype(variable.aval) for variable, _ in joined))
        join.calls.append(tuple(shape_dtype(variable.aval) for variable in eqn.outvars))
        join.fed_by.append(tuple(dict.fromkeys(source for _, source in joined)))
        join.times = None if join.times is None or times is None else join.times + times
        flops = equation_flops(eqn) if needed else 0
        join.flops = None if join.flops is None or flops is None or times is None else join.flops + flops * times
        return key


def _numbers_first(eqn: Any, operands: Sequence[Source | None]) -> list[tuple[Any, Source]]:
    """The operands that have a source, without ids and masks where there are numbers too."""
    sourced = [(variable, source) for variable, source in zip(eqn.invars, operands, strict=True) if source is not None]
    numbers = [(variable, source) for variable, source in sourced if variable.aval.dtype.kind not in "biu"]
    return numbers or sourced


def _first(operands: Sequence[Source | None]) -> Source | None:
    return next((source for source in operands if source is not None), None)
