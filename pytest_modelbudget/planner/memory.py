"""From a memory trace to a whole plan: with the workspaces of libraries, what the allocator reserves, and what fits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache

from pytest_modelbudget.planner.allocator import Reserve, replay
from pytest_modelbudget.planner.devices import Device, device_by_name, need_note
from pytest_modelbudget.planner.libraries import (
    BlasWorkspaces,
    blas_workspaces,
    conv_bounds,
    with_blas,
    with_convolutions,
)
from pytest_modelbudget.planner.margins import fit_trace
from pytest_modelbudget.planner.memory_trace import PLAN_ERROR_PERCENT, MemoryTrace
from pytest_modelbudget.planner.segments import DEFAULT
from pytest_modelbudget.planner.time_bound import time_bounds
from pytest_modelbudget.planner.timeline import plan_of
from pytest_modelbudget.summary import Fit, Kind, Plan

DEFAULT_DEVICE = Device("any", 0, source="an NVIDIA card before Hopper, when no device is named")
"""Whose workspaces count when no device is named."""

_LARGEST_WORKSPACES = Device("any, with the largest workspaces", 0, capability="9.0")

REPEATS = 1
"""Further steps of a training for which the reserve is replayed: fragmentation takes a few steps to settle."""


def memory_plan(trace: MemoryTrace, kind: Kind, recipe: str, *, torch: str, devices: Iterable[str] = ()) -> Plan:
    """The plan of a run on a GPU, with the version `torch` (`2.6.0`), and whether it fits each of `devices`.

    The workspaces of BLAS are those of the first device (without any: of an NVIDIA card before Hopper). `low_bytes` is
    the peak without them, `high_bytes` with the largest known ones, those of Hopper, and with workspaces of
    convolutions at their upper bound, which a run takes where there is room; of an estimate both are as far off as it
    may be.

    Raises:
        ModelBudgetError: a device that is not known.
    """
    named_devices = {name: device_by_name(name) for name in devices}
    on = next(iter(named_devices.values()), DEFAULT_DEVICE)
    repeats = REPEATS if len(trace.steps) > 1 else 0

    @cache
    def replayed(workspaces: BlasWorkspaces) -> tuple[MemoryTrace, Reserve]:
        complete = with_blas(trace, workspaces)
        return complete, replay(complete, DEFAULT, repeats=repeats)

    def fit_on(device: Device) -> Fit:
        complete, reserve = replayed(blas_workspaces(torch, device))
        return fit_trace(complete, device, repeats=repeats, reserve=reserve)

    complete, reserve = replayed(blas_workspaces(torch, on))
    plan = plan_of(complete, kind, recipe)
    error = trace.error_percent if trace.error_percent > PLAN_ERROR_PERCENT else 0
    return replace(
        plan,
        reserved_bytes=reserve.peak_reserved,
        low_bytes=min(trace.peak(), plan.peak_bytes or 0) * (100 - error) // 100,
        high_bytes=max(_upper_bound(trace, torch).peak(), plan.peak_bytes or 0) * (100 + error) // 100,
        time_bounds=() if trace.work is None else tuple(time_bounds(trace.work, named_devices)),
        notes=(
            *plan.notes,
            *dict.fromkeys(f"what fits: a need {need_note(target)}" for target in named_devices.values()),
        ),
        fits=tuple(replace(fit_on(target), device=name) for name, target in named_devices.items()),
    )


def _upper_bound(trace: MemoryTrace, torch: str) -> MemoryTrace:
    bounds = conv_bounds(DEFAULT_DEVICE.platform)
    return with_blas(
        trace if bounds is None else with_convolutions(trace, bounds[1]), blas_workspaces(torch, _LARGEST_WORKSPACES)
    )
