"""Whether planned runs fit devices, for plans whose framework does not tell it itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pytest_modelbudget import units
from pytest_modelbudget.planner.devices import calibrated, device_by_name
from pytest_modelbudget.planner.margins import fit_bytes
from pytest_modelbudget.summary import Fit, Plan


def device_capacity(name: str) -> int:
    """Bytes of a device that is written as a name or as a quantity.

    Raises:
        ModelBudgetError: neither; with what is known.
    """
    return device_by_name(name).capacity


def calibrated_device(name: str, reserved: object, shown: object) -> str:
    """The name of a device whose context was measured: `nvidia-smi` showed `shown` while torch had `reserved`.

    Raises:
        ModelBudgetError: no quantities of bytes, or ones that cannot be of one run.
    """
    return calibrated(name, units.parse_reading(reserved), units.parse_reading(shown))


def with_fits(plan: Plan, devices: Iterable[str]) -> Plan:
    """`plan` with an answer for each of `devices`; those that it has already stay."""
    answered = {fit.device for fit in plan.fits}
    new_fits = tuple(_fit_of(plan, name) for name in dict.fromkeys(devices) if name not in answered)
    return replace(plan, fits=(*plan.fits, *new_fits)) if new_fits else plan


def _fit_of(plan: Plan, name: str) -> Fit:
    needs = plan.peak_bytes if plan.reserved_bytes is None else plan.reserved_bytes
    return replace(fit_bytes(needs, device_by_name(name)), device=name)


def fits_of_bound(low_bytes: int, devices: Iterable[str]) -> tuple[Fit, ...]:
    """What is known of `devices` of a run that takes at least `low_bytes`: that it does not fit; else nothing.

    The context of a device is not added: how large it is at least, depends on the framework.
    """
    capacities = {name: device_capacity(name) for name in dict.fromkeys(devices)}
    return tuple(
        Fit(name, capacity, low_bytes if low_bytes > capacity else None) for name, capacity in capacities.items()
    )
