"""Devices by name, by size, and with a context that was measured."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner.devices import (
    calibrated,
    context,
    device_by_name,
    device_data,
    device_names,
    need_note,
)

MIB, GIB = 2**20, 2**30


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("RTX 4060 8GB", "RTX 4060 8GB"),
        ("rtx4060", "RTX 4060 8GB"),
        ("NVIDIA GeForce RTX 4060", "RTX 4060 8GB"),
        ("Tesla T4", "T4 16GB"),
        ("a100-80gb", "A100 80GB"),
        ("NVIDIA H100 80GB", "H100 80GB"),
        ("AMD Instinct MI300X", "MI300X 192GB"),
    ],
)
def test_names(written: str, name: str) -> None:
    """Capitals, spaces and the maker's name do not matter."""
    assert device_by_name(written).name == name


@pytest.mark.parametrize(
    ("written", "capacity"),
    [("24 GB", 24 * 10**9), ("24GiB", 24 * GIB), ("0.5 GiB", GIB // 2), ("80_000 MiB", 80_000 * MIB)],
)
def test_a_size_is_a_device(written: str, capacity: int) -> None:
    """A size means what it says, with the context of a current CUDA."""
    found = device_by_name(written)
    assert (found.name, found.capacity, found.context) == (written, capacity, context("cuda"))


@pytest.mark.parametrize(
    ("written", "said"),
    [
        pytest.param("A100", "did you mean 'A100 40GB' or 'A100 80GB'?", id="two of that name"),
        pytest.param("RTX 4061", "'RTX 4060 8GB'", id="a slip of the finger"),
        pytest.param("abacus", "known are RTX 3060 12GB, ", id="nothing near"),
        pytest.param("A100 48GB", "'A100 40GB'", id="no such size"),
    ],
)
def test_an_unknown_name_says_what_is_near(written: str, said: str) -> None:
    """The error names the devices that may be meant."""
    with pytest.raises(ModelBudgetError) as caught:
        device_by_name(written)
    assert repr(written) in str(caught.value)
    assert said in str(caught.value)


def test_every_device_says_where_its_numbers_are_from() -> None:
    """Each entry has a source and a capacity below the size in its name, yet near it."""
    for name in device_names():
        found = device_by_name(name)
        size = int(name.split()[-1].removesuffix("GB")) * GIB
        assert found.source
        assert 0.88 * size < found.capacity <= size + GIB, name
    assert all(row["source"] for kind in ("context", "blas") for row in device_data()[kind])


def test_capacities_that_others_measured() -> None:
    """xMem's records give total_memory of three devices in bytes: ours are those, or just below."""
    table = Path(__file__).parents[1] / "data" / "memory" / "xmem_measured_peaks.csv"
    rows = csv.DictReader(line for line in table.read_text().splitlines() if not line.startswith("#"))
    totals = {row["gpu"]: int(row["gpu_total_bytes"]) for row in rows}
    assert len(totals) == 3
    for gpu, total in totals.items():
        ours = device_by_name("A100 40GB" if "A100" in gpu else gpu).capacity
        assert 0.99 * total < ours <= total


def test_the_context_depends_on_the_version_of_cuda() -> None:
    """Kernels that are loaded at once took more; ROCm's context is not known."""
    now, before = context("cuda", "12.4"), context("cuda", "11.3")
    assert now is not None
    assert before is not None
    assert now[1] < before[0]
    assert context("rocm") is None
    assert "not the context of the device (not known)" in need_note(device_by_name("MI300X"))
    assert "context of the device (up to 500.0 MiB)" in need_note(device_by_name("T4"))


def test_a_capacity_that_is_shown_is_less_for_torch() -> None:
    """Of 24,564 MiB that nvidia-smi shows of an RTX 4090, torch sees 23.52 GiB: the driver keeps the rest."""
    shown, named = device_by_name("24564 MiB shown"), device_by_name("RTX 4090")
    assert named.context is not None
    assert shown.capacity == 24564 * MIB
    assert shown.free <= named.capacity - named.context[1] < shown.free + 64 * MIB


def test_a_measurement_narrows_the_context() -> None:
    """6.5 GiB shown while torch had reserved 5.1: 1.4 GiB are the context, give or take what runs differ by."""
    found = device_by_name(calibrated("rtx 4090", int(5.1 * GIB), int(6.5 * GIB)))
    assert found.context is not None
    assert (found.name, found.capacity) == ("rtx 4090 (context 1.400 GiB)", device_by_name("RTX 4090").capacity)
    assert found.context == pytest.approx((1.4 * GIB - 19 * MIB, 1.4 * GIB + 19 * MIB), abs=MIB)
    with pytest.raises(ModelBudgetError, match="that torch reserved: both have to be of one run"):
        calibrated("RTX 4090", int(5.1 * GIB), 5 * GIB)
