"""Devices by name and size, and whether a run fits them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import InitialStorage, MemoryEvent, MemoryTrace
from pytest_modelbudget.planner.devices import (
    context,
    device_by_name,
    device_data,
    device_names,
    fit_bytes,
    fit_trace,
    need_text,
)
from pytest_modelbudget.planner.segments import Settings

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
    assert "not the context of the device (not known)" in need_text(device_by_name("MI300X"))
    assert "context of the device (up to 500.0 MiB)" in need_text(device_by_name("T4"))


def run(*sizes: int) -> MemoryTrace:
    """Each size is held in turn, one after another."""
    events = tuple(
        MemoryEvent("x", "", made=((n, size),), freed=(n - 1,) if n > 1 else ()) for n, size in enumerate(sizes, 1)
    )
    return MemoryTrace((InitialStorage(0, 0, "param"),), events)


def test_fit_adds_context_to_the_reserve() -> None:
    """The need is what the allocator reserves and the most that the context takes."""
    found = fit_trace(run(7 * GIB), device_by_name("RTX 4060"))
    assert (found.needs, found.fits) == (7 * GIB + 500 * MIB, True)
    assert fit_trace(run(int(7.5 * GIB)), device_by_name("RTX 4060")).fits is False


def test_a_reserve_that_can_be_given_back_fits() -> None:
    """4 and 5 GiB one after another reserve 9 GiB where there is room, and fit into 8 where there is not."""
    found = fit_trace(run(4 * GIB, 5 * GIB), device_by_name("8 GiB"))
    assert found.fits is True
    assert found.needs == 5 * GIB + 500 * MIB


def test_what_is_alive_at_once_does_not_fit() -> None:
    """Without anything to give back the need is the whole reserve."""
    memory_trace = MemoryTrace((InitialStorage(0, 4 * GIB, "param"), InitialStorage(1, 5 * GIB, "param")), ())
    assert fit_trace(memory_trace, device_by_name("8 GiB")).needs == 9 * GIB + 500 * MIB
    assert fit_trace(memory_trace, device_by_name("8 GiB"), Settings(expandable_segments=True)).fits is False


def test_an_unknown_reserve_stays_unknown() -> None:
    """Neither fits nor does not."""
    assert fit_bytes(None, device_by_name("T4")).fits is None
    assert fit_bytes(10 * GIB, device_by_name("T4")).fits is True
