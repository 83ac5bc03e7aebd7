"""Whether planned runs fit devices: a device is one that is known by its name, or a capacity (`24 GB`)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from pytest_modelbudget import units
from pytest_modelbudget.summary import Fit, Plan

_QUANTITY = re.compile(r"\s*[0-9.][0-9_.]*\s*[kKMGTP]?i?B\s*")


def capacity(device: str) -> int:
    """Bytes of a device that is written as a name or as a quantity.

    Raises:
        ModelBudgetError: neither; with what is known.
    """
    value = units.parse(device, "bytes")
    assert isinstance(value, int)
    return value


def fitted(plan: Plan, devices: Iterable[str]) -> Plan:
    """`plan` with an answer for each of `devices`; those that it has already stay."""
    known = {fit.device for fit in plan.fits}
    more = tuple(_fit(plan, device) for device in dict.fromkeys(devices) if device not in known)
    return replace(plan, fits=(*plan.fits, *more)) if more else plan


def _fit(plan: Plan, device: str) -> Fit:
    needs = plan.peak_bytes if plan.reserved_bytes is None else plan.reserved_bytes
    return Fit(device, capacity(device), needs)
