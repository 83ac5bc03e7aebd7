"""Whether planned runs fit devices, for plans whose framework does not tell it itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pytest_modelbudget.planner.devices import device_by_name, fit_bytes
from pytest_modelbudget.summary import Fit, Plan


def device_capacity(name: str) -> int:
    """Bytes of a device that is written as a name or as a quantity.

    Raises:
        ModelBudgetError: neither; with what is known.
    """
    return device_by_name(name).capacity


def with_fits(plan: Plan, devices: Iterable[str]) -> Plan:
    """`plan` with an answer for each of `devices`; those that it has already stay."""
    answered = {fit.device for fit in plan.fits}
    new_fits = tuple(_fit_of(plan, name) for name in dict.fromkeys(devices) if name not in answered)
    return replace(plan, fits=(*plan.fits, *new_fits)) if new_fits else plan


def _fit_of(plan: Plan, name: str) -> Fit:
    needs = plan.peak_bytes if plan.reserved_bytes is None else plan.reserved_bytes
    return replace(fit_bytes(needs, device_by_name(name)), device=name)


def fits_of_bound(low_bytes: int, devices: Iterable[str]) -> tuple[Fit, ...]:
    """What is known of `devices` when only the least need is: that a run does not fit; else nothing."""
    fits = [replace(fit_bytes(low_bytes, device_by_name(name)), device=name) for name in dict.fromkeys(devices)]
    return tuple(fit if fit.fits is False else replace(fit, needs=None) for fit in fits)
