"""What the operators of a planned run have to do: bytes, FLOPs for each byte, and the least time on a device."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Protocol

from pytest_modelbudget.summary.numbers import Number
from pytest_modelbudget.summary.plan import Kind, Plan


class _Planned(Protocol):
    def plan(self, kind: Kind) -> Plan | None:
        """The plan of a training or an inference."""


def run_of(planned: _Planned) -> Plan | None:
    """The run whose work the metrics are of: the training that is planned, where there is none the inference."""
    return planned.plan("training") or planned.plan("inference")


def work_number(metric: str, plan: Plan | None) -> Number | None:
    """A number of the work of a run; None where it is not known, or there is no such run."""
    return None if plan is None else _NUMBERS[metric](plan)


def _intensity(plan: Plan) -> Fraction | None:
    if plan.flops is None or plan.flops_at_least or not plan.bytes_moved:
        return None
    return Fraction(plan.flops, plan.bytes_moved)


def _least_seconds(plan: Plan) -> Fraction | None:
    bound = next(iter(plan.time_bounds), None)
    return None if bound is None else bound.seconds


_NUMBERS: dict[str, Callable[[Plan], Number | None]] = {
    "bytes_moved": lambda plan: plan.bytes_moved,
    "arithmetic_intensity": _intensity,
    "min_step_seconds": _least_seconds,
}

WORK_METRICS = tuple(_NUMBERS)
"""Metrics of the work of a planned run."""


def why_no_work(metric: str, run: Plan | None, framework: str) -> str:
    """Why a number of the work of a run is not known; empty when nothing says so."""
    if run is None:
        return "unknown: no run is planned: write training: {batch: 32} or inference: {batch: 32} for this model"
    if run.bytes_moved is None:
        return f"unknown: what the operators of this run of a {framework} model move is not recorded"
    if metric == "arithmetic_intensity":
        return "unknown: the run has operators without a FLOP rule, or moves nothing"
    bound = next(iter(run.time_bounds), None)
    if metric == "min_step_seconds" and bound is None:
        return 'unknown: it is of a device: name one, as in fits: "A100 80GB", for a run with the kernels of a GPU'
    return f"unknown ({bound.reason})" if bound is not None and bound.reason else ""
