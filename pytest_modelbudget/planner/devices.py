"""Devices by name: how much memory they have, and what their software takes of it; whether a run fits.

The numbers are in `devices.yaml`, each with its source. What is not known is None, never 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from pytest_modelbudget import units
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner.allocator import replay
from pytest_modelbudget.planner.memory_trace import MemoryTrace
from pytest_modelbudget.planner.segments import DEFAULT, Settings
from pytest_modelbudget.summary.plan import Fit

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Device:
    """A device; `capacity` are the bytes that a process can allocate, as torch tells them (`total_memory`).

    `context` bounds what the driver and the loaded kernels take (low, high), None where it is not known.
    `capability` is CUDA's (`8.6`) or the architecture of ROCm (`gfx942`), empty for a size without a name.
    """

    name: str
    capacity: int
    platform: str = "cuda"
    capability: str = ""
    context: tuple[int, int] | None = None
    source: str = ""

    @property
    def free(self) -> int:
        """What is left for torch's allocator when the context takes its most."""
        return self.capacity - (self.context[1] if self.context else 0)


def device_by_name(name: str) -> Device:
    """The device of a name (`A100 80GB`, `RTX 4090`, capitals and spaces do not matter) or of a size (`24 GB`).

    A size is taken as the bytes that it says (GB: 10^9, GiB: 2^30), on CUDA 11.7 or later.

    Raises:
        ModelBudgetError: neither a known name nor a size, or a name that several devices share.
    """
    if re.fullmatch(r"\s*[0-9._]+\s*[kKMGTP]?i?B\s*", name):
        return Device(name.strip(), int(units.parse(name, "bytes")), context=context("cuda"), source="as written")
    devices = _devices_by_name()
    if (exact := devices.get(_plain_name(name))) is not None:
        return exact
    similar = sorted({item.name for plain, item in devices.items() if plain.startswith(_plain_name(name))})
    if not similar:
        plain_near = get_close_matches(_plain_name(name), devices, n=3, cutoff=0.5)
        similar = list(dict.fromkeys(devices[plain].name for plain in plain_near))
    hint = (
        f"did you mean {' or '.join(repr(item) for item in similar)}?"
        if similar
        else f"known are {', '.join(device_names())}"
    )
    raise ModelBudgetError(f"no device named {name!r}: {hint} A size does as well: '24 GiB'")


def device_names() -> list[str]:
    """The names of all known devices."""
    return [item["name"] for item in device_data()["devices"]]


def context(platform: str, cuda: str = "12.0") -> tuple[int, int] | None:
    """Bytes that a process takes of a device before its first tensor, (low, high), by the version of CUDA."""
    rows = [
        row for row in device_data()["context"] if row["platform"] == platform and _is_since(row["since_cuda"], cuda)
    ]
    if not rows:
        return None
    row = max(rows, key=lambda row: version_tuple(row["since_cuda"]))
    return row["low"] * _MIB, row["high"] * _MIB


def fit_trace(trace: MemoryTrace, on: Device, settings: Settings = DEFAULT, *, repeats: int = 0) -> Fit:
    """Whether the run on `trace` fits a device, with the reserve of the caching allocator and the highest context.

    A reserve that is too large may still fit: a full device makes the allocator give back what it only keeps, so the
    run is then replayed with the device's limit. `need_text` says what is not part of the need.
    """
    context_size = on.capacity - on.free
    reserve = replay(trace, settings, repeats=repeats)
    if reserve.peak_reserved > on.free:
        limited = replay(trace, settings, capacity=on.free, repeats=repeats)
        reserve = limited if limited.failed_at is None else reserve
    return Fit(on.name, on.capacity, reserve.peak_reserved + context_size)


def fit_bytes(reserved: int | None, on: Device) -> Fit:
    """Whether a reserve of so many bytes fits a device beside its highest context; None where it is not known."""
    return Fit(on.name, on.capacity, None if reserved is None else reserved + on.capacity - on.free)


def need_text(on: Device) -> str:
    """What a need on this device contains and what it does not, as a sentence."""
    inside = f"the context of the device (up to {units.size(on.context[1])})" if on.context else ""
    outside = "" if on.context else "the context of the device (not known), "
    return (
        f"contains the caching allocator's reserve{' and ' + inside if inside else ''}; "
        f"not {outside}workspaces of convolutions, buffers of communication, and other processes"
    )


def version_tuple(text: str) -> tuple[int, ...]:
    """`2.6.0+cu124` as (2, 6, 0), to be compared."""
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3])


@cache
def device_data() -> dict[str, Any]:
    """What `devices.yaml` says."""
    text = (files(__package__) / "devices.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def _is_since(since: str, current: str) -> bool:
    return version_tuple(since) <= version_tuple(current)


@cache
def _devices_by_name() -> dict[str, Device]:
    devices: dict[str, Device] = {}
    for row in device_data()["devices"]:
        platform = row.get("platform", "cuda")
        item = Device(row["name"], _capacity_of(row), platform, row["capability"], context(platform), row["source"])
        for name in (row["name"], *row["names"]):
            devices[_plain_name(name)] = item
    return devices


def _capacity_of(row: dict[str, Any]) -> int:
    if "exact" in row:
        return int(row["exact"])
    # Printed numbers are rounded; the lower end of what they may stand for is the safe one.
    number, unit = str(row["total"]).split()
    return int(float(number) * _MIB) if unit == "MiB" else int((float(number) - 0.005) * 2**30)


def _plain_name(name: str) -> str:
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return re.sub(r"^(nvidia|amd)?(geforce|tesla|instinct)?", "", plain)
