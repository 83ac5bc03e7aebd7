"""Whether planned runs fit devices, for plans whose framework does not tell it itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pytest_modelbudget.planner.devices import device, fit_bytes
from pytest_modelbudget.summary import Fit, Plan


def capacity(name: str) -> int:
    """Bytes of a device that is written as a name or as a quantity.

    Raises:
        ModelBudgetError: neither; with what is known.
    """
    return device(name).capacity


def fitted(plan: Plan, devices: Iterable[str]) -> Plan:
    """`plan` with an answer for each of `devices`; those that it has already stay."""
    known = {fit.device for fit in plan.fits}
    more = tuple(_fit(plan, name) for name in dict.fromkeys(devices) if name not in known)
    return replace(plan, fits=(*plan.fits, *more)) if more else plan


def _fit(plan: Plan, name: str) -> Fit:
    needs = plan.peak_bytes if plan.reserved_bytes is None else plan.reserved_bytes
    return replace(fit_bytes(needs, device(name)), device=name)
