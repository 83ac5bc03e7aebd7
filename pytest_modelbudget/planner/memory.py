"""From a tape to a whole plan: with the workspaces of libraries, what the allocator reserves, and what fits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pytest_modelbudget.planner.allocator import replay
from pytest_modelbudget.planner.devices import Device, contains, device, fit
from pytest_modelbudget.planner.libraries import blas, convolution, with_blas, with_convolutions
from pytest_modelbudget.planner.segments import DEFAULT
from pytest_modelbudget.planner.tape import Tape
from pytest_modelbudget.planner.timeline import plan_of
from pytest_modelbudget.summary import Kind, Plan

ANY = Device("any", 0, source="an NVIDIA card before Hopper, when no device is named")
"""Whose workspaces count when no device is named."""

_ROOMY = Device("any, with the largest workspaces", 0, capability="9.0")

REPEATS = 1
"""Further steps of a training for which the reserve is replayed: fragmentation takes a few steps to settle."""


def memory_plan(tape: Tape, kind: Kind, recipe: str, *, torch: str, devices: Iterable[str] = ()) -> Plan:
    """The plan of a run on a GPU, with the version `torch` (`2.6.0`), and whether it fits each of `devices`.

    The workspaces of BLAS are those of the first device (without any: of an NVIDIA card before Hopper). `low_bytes` is
    the peak without them, `high_bytes` with the largest known ones, those of Hopper, and with workspaces of
    convolutions at their upper bound, which a run takes where there is room.

    Raises:
        ModelBudgetError: a device that is not known.
    """
    known = {name: device(name) for name in devices}
    on = next(iter(known.values()), ANY)
    whole = with_blas(tape, blas(torch, on))
    plan = plan_of(whole, kind, recipe)
    repeats = REPEATS if len(tape.steps) > 1 else 0
    reserve = replay(whole, DEFAULT, repeats=repeats)
    return replace(
        plan,
        reserved_bytes=reserve.peak_reserved,
        low_bytes=min(tape.peak(), plan.peak_bytes or 0),
        high_bytes=max(_most(tape, torch).peak(), plan.peak_bytes or 0),
        notes=(*plan.notes, *dict.fromkeys(f"what fits: a need {contains(one)}" for one in known.values())),
        fits=tuple(
            replace(fit(with_blas(tape, blas(torch, one)), one, repeats=repeats), device=name)
            for name, one in known.items()
        ),
    )


def _most(tape: Tape, torch: str) -> Tape:
    bounds = convolution(ANY.platform)
    return with_blas(tape if bounds is None else with_convolutions(tape, bounds[1]), blas(torch, _ROOMY))
