"""One abstract pass of a model: its jaxpr, and what it tells of each module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax

from pytest_modelbudget.backends.calls import ShapeDtype
from pytest_modelbudget.backends.costs import FlopsCount, Operator, total
from pytest_modelbudget.backends.costs.jaxpr import operators
from pytest_modelbudget.backends.jax.abstract_model import ROOT, UNKNOWN_TYPE, AbstractModel, Part, with_containers
from pytest_modelbudget.backends.jax.arguments import CallArguments
from pytest_modelbudget.backends.jax.flow import Flow, Join, Source, flow_of
from pytest_modelbudget.backends.jax.private import fresh_traces, plain_tracebacks
from pytest_modelbudget.backends.jax.recorder import CallRecorder, ModuleCall, innermost_call, shape_dtype


@dataclass(slots=True)
class PartRecord:
    """What the calls of one part got and gave in a pass, as `dimensions.Called` has it, and how often they ran."""

    calls: list[tuple[ShapeDtype, ...]] = field(default_factory=list)
    inputs: list[tuple[ShapeDtype, ...]] = field(default_factory=list)
    fed_by: list[tuple[Source, ...]] = field(default_factory=list)
    times: int | None = 0


@dataclass(frozen=True)
class AbstractPass:
    """A finished trace of a model's call: its modules, their calls in it, and the tensors that it gave."""

    parts: Sequence[Part]
    jaxpr: Any
    recorded: Mapping[int, ModuleCall]
    flow: Flow
    outputs: tuple[ShapeDtype, ...]

    @cached_property
    def records(self) -> dict[str, PartRecord]:
        """The modules that ran, by path, in the order of their first calls.

        A call that left nothing in the jaxpr was traced in vain, as the first look of a loop at its body is.
        """
        records: dict[str, PartRecord] = {}
        for serial, call in self.recorded.items():
            if (call.inputs or call.outputs) and serial not in self.flow.times:
                continue
            record = records.setdefault(call.path, PartRecord())
            times = self.flow.times.get(serial, 1)
            record.times = None if record.times is None or times is None else record.times + times
            record.inputs.append(call.inputs)
            record.calls.append(call.outputs)
            fed_by = self.flow.fed_by.get(serial, {})
            record.fed_by.append(
                tuple(dict.fromkeys(source for _, source in sorted(fed_by.items()) if source is not None))
            )
        return records

    @property
    def joins(self) -> Mapping[Any, Join]:
        """The joins, by what they are in every pass of the model."""
        return self.flow.joins

    @cached_property
    def operators(self) -> list[Operator]:
        """All that runs."""
        return list(operators(self.jaxpr))

    def flops(self) -> tuple[FlopsCount, dict[str, int | None]]:
        """The FLOPs of the model, and of each part by path: those of a join are taken from the module it stands in."""
        by_path: Counter[str] = Counter()
        unknown: set[str] = set()
        for operator in self.operators:
            path = path_of(operator.scope, self.recorded)
            by_path[path] += (operator.flops or 0) * operator.times
            if operator.flops is None:
                unknown.add(path)
        for join in self.flow.joins.values():
            by_path[join.path] -= join.flops or 0
        return total(self.operators), {
            path: count if count or path not in unknown else None for path, count in by_path.items()
        }


def path_of(scope: str, recorded: Mapping[int, ModuleCall]) -> str:
    """The path of the innermost module whose call this scope is in."""
    serial = innermost_call(scope)
    call = None if serial is None else recorded.get(serial)
    return ROOT if call is None else call.path


def run(model: AbstractModel, arguments: CallArguments) -> AbstractPass:
    """Trace the call of `model` for inference; nothing is allocated, and no device is asked for."""
    recorder = CallRecorder()
    count = len(model.values)

    def call(*tensors: Any) -> Any:
        args, kwargs = arguments.filled(tensors[count:])
        return model.call(tensors[:count], args, kwargs, training=False)

    specs = [*(value.spec for value in model.values), *arguments.specs.values()]
    with model.watched(recorder), fresh_traces(), plain_tracebacks():
        closed, outputs = jax.make_jaxpr(call, return_shape=True)(*specs)
    parts = _called_parts(model.parts, recorder.calls)
    containers = frozenset({ROOT, *(part.path for part in parts if part.container)})
    flow = flow_of(closed, [*[None] * count, *arguments.names], recorder.calls, containers)
    return AbstractPass(parts, closed, recorder.calls, flow, tuple(map(shape_dtype, jax.tree.leaves(outputs))))


def _called_parts(parts: Sequence[Part], calls: Mapping[int, ModuleCall]) -> tuple[Part, ...]:
    """The parts of a model, those too that only a call shows, with what it shows of their classes."""
    types = {call.path: call.type for call in calls.values()}
    by_path = {
        part.path: part if part.type else replace(part, type=types.get(part.path, UNKNOWN_TYPE)) for part in parts
    }
    by_path |= {path: Part(path, kind, container=False) for path, kind in types.items() if path not in by_path}
    return with_containers(by_path.values())
