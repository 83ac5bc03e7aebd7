"""Devices by name: how much memory they have, and what their software takes of it.

The numbers are in `devices.yaml`, each with its source. What is not known is None, never 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from pytest_modelbudget import units
from pytest_modelbudget.errors import ModelBudgetError

_MIB = 2**20

CONTEXT_CHANGES = 19 * _MIB
"""How far the context of one card differs between runs, each way: 15 measured runs of one card were within it."""

DRIVER_SHARE = 0.02
"""The most that the driver keeps of the memory that `nvidia-smi` shows: 24,564 MiB are shown of an RTX 4090, of which
torch sees 23.52 GiB; of an A100, 81,920 MiB and 79.25 GiB."""


_MEASURED = r"\s*(.+?)\s*\(context ([^()]+)\)\s*"
"""A device whose context was measured, as `calibrated` writes it."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device; `capacity` are the bytes that a process can allocate, as torch tells them (`total_memory`).

    `context` bounds what the driver and the loaded kernels take (low, high), None where it is not known; `kept` is the
    most that the driver keeps of a capacity that `nvidia-smi` shows.
    `capability` is CUDA's (`8.6`) or the architecture of ROCm (`gfx942`), empty for a size without a name.
    """

    name: str
    capacity: int
    platform: str = "cuda"
    capability: str = ""
    context: tuple[int, int] | None = None
    source: str = ""
    kept: int = 0

    @property
    def free(self) -> int:
        """What is left for torch's allocator when the context takes its most, and the driver, too."""
        return self.capacity - self.kept - (self.context[1] if self.context else 0)


def card_of(name: str) -> str:
    """The name of a device without what was measured of its context.

    Raises:
        ModelBudgetError: no such device.
    """
    measured = re.fullmatch(_MEASURED, name)
    return device_by_name(measured[1] if measured else name).name


def has_bfloat16(name: str) -> bool:
    """Whether a device multiplies in bfloat16: NVIDIA's since compute capability 8.0; others only emulate it.

    A size without a name is taken to have it.

    Raises:
        ModelBudgetError: no such device.
    """
    capability = device_by_name(name).capability
    return not capability[:1].isdigit() or version_tuple(capability) >= (8,)


def device_by_name(name: str) -> Device:
    """The device of a name (`A100 80GB`, `RTX 4090`, capitals and spaces do not matter) or of a size (`24 GB`).

    A size is taken as the bytes that it says (GB: 10^9, GiB: 2^30), on CUDA 11.7 or later; `24564 MiB shown` is one as
    `nvidia-smi` shows it, of which the driver keeps a part. `RTX 4090 (context 1.4 GiB)` is a device whose context was
    measured, as `calibrated` writes it.

    Raises:
        ModelBudgetError: neither a known name nor a size, or a name that several devices share.
    """
    if measured := re.fullmatch(_MEASURED, name):
        size = units.parse_reading(measured[2])
        bounds = max(0, size - CONTEXT_CHANGES), size + CONTEXT_CHANGES
        return replace(device_by_name(measured[1]), name=name.strip(), context=bounds)
    if written := re.fullmatch(r"\s*([0-9._]+\s*[kKMGTP]?i?B)(\s+shown)?\s*", name):
        if not (capacity := int(units.parse(written[1], "bytes"))):
            raise ModelBudgetError(f"{name!r} is a device without memory: write e.g. '24 GiB'")
        kept = int(capacity * DRIVER_SHARE) if written[2] else 0
        return Device(name.strip(), capacity, context=context("cuda"), source="as written", kept=kept)
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


def calibrated(name: str, reserved: int, shown: int) -> str:
    """The name of a device with its context measured: what `nvidia-smi` showed, less what torch had reserved.

    Raises:
        ModelBudgetError: less is shown than is reserved, or the device is not known.
    """
    if shown < reserved:
        raise ModelBudgetError(
            f"{name}: nvidia-smi shows {units.size(shown)}, less than the {units.size(reserved)} that torch reserved: "
            "both have to be of one run, with no other process on the device"
        )
    if shown > (capacity := device_by_name(name).capacity / (1 - DRIVER_SHARE)):
        raise ModelBudgetError(
            f"{name}: nvidia-smi shows {units.size(shown)} in use, more than the device has "
            f"({units.size(int(capacity))}): both have to be of this device, with no other process on it"
        )
    return f"{name} (context {units.size(shown - reserved)})"


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


def need_note(on: Device) -> str:
    """What a need on this device contains and what it does not, as a sentence."""
    inside = f", the context of the device (up to {units.size(on.context[1])})" if on.context else ""
    outside = "" if on.context else "the context of the device (not known), "
    return (
        f"contains the caching allocator's reserve{inside} and, at the most, workspaces of convolutions that break it "
        f"up, and what the plan may be off; not {outside}buffers of communication, and other processes"
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
