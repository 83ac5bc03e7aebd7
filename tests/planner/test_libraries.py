"""Workspaces of matrix products on a memory trace."""

from __future__ import annotations

import pytest

from pytest_modelbudget.planner import InitialStorage, MemoryEvent, MemoryTrace
from pytest_modelbudget.planner.allocator import replay
from pytest_modelbudget.planner.devices import device_by_name
from pytest_modelbudget.planner.libraries import blas_workspaces, conv_bounds, with_blas, with_convolutions

MIB = 2**20


@pytest.mark.parametrize(
    ("torch", "on", "workspace", "kept", "fused"),
    [
        # pytorch/pytorch#95668: 8,519,680 bytes stay allocated after one product on an A10G.
        pytest.param("2.0.0", "A10G", 8_519_680, True, MIB, id="before Hopper: 4 MiB twice and 16 KiB eight times"),
        pytest.param("2.6.0+cu124", "H100", 32 * MIB, True, MIB, id="Hopper"),
        pytest.param("2.6.0", "B200", 8_519_680, True, MIB, id="Blackwell, at first"),
        pytest.param("2.11.0", "B200", 32 * MIB, True, 0, id="Blackwell; one workspace for both libraries"),
        pytest.param("2.15.0", "H100", 32 * MIB, False, MIB, id="for the time of a call"),
        pytest.param("2.5.1", "MI300X", 0, True, 0, id="rocBLAS outside of the allocator"),
        pytest.param("2.6.0", "MI300X", 128 * MIB, True, 76 * MIB, id="rocBLAS in the allocator"),
        pytest.param("2.6.0", "MI250X", 32 * MIB, True, 76 * MIB, id="rocBLAS, an earlier architecture"),
        pytest.param("2.6.0", "24 GiB", 8_519_680, True, MIB, id="a size without a name"),
    ],
)
def test_workspaces_by_version_and_device(torch: str, on: str, workspace: int, kept: bool, fused: int) -> None:
    """Sizes are those of torch's defaults."""
    found = blas_workspaces(torch, device_by_name(on))
    assert (found.workspace, found.kept, found.fused) == (workspace, kept, fused)
    assert found.source


MEMORY_TRACE = MemoryTrace(
    (InitialStorage(7, 100, "param"),),
    (
        MemoryEvent("aten.relu", "", made=((8, 512),)),
        MemoryEvent("aten.addmm", "", made=((9, 512),)),
        MemoryEvent("aten.mm", "", made=((10, 512),)),
        MemoryEvent("aten.mm", "", "backward", made=((11, 512),)),
        MemoryEvent("aten.mm", "", "backward", made=((12, 512),), freed=(11,)),
    ),
    {8: "cast"},
)


def test_a_kept_workspace_is_made_once_by_each_thread() -> None:
    """The first product of the forward and of the backward pass make one each, which stay."""
    found = with_blas(MEMORY_TRACE, blas_workspaces("2.6.0", device_by_name("T4")))
    assert [event.made for event in found.events] == [
        ((8, 512),),
        ((9, 512), (13, 8_519_680)),
        ((10, 512),),
        ((11, 512), (14, 8_519_680)),
        ((12, 512),),
    ]
    assert found.roles == {8: "cast", 13: "workspace", 14: "workspace"}
    assert [event.workspace for event in found.events] == [0, MIB, 0, 0, 0]
    # Blocks of 512 bytes: one of the parameter, four of results that are alive at the end.
    assert replay(found).peak_allocated == 2 * 8_519_680 + 512 * 5


def test_a_workspace_for_a_call_lives_as_long() -> None:
    """Since 2.15 each product takes it from the allocator and gives it back."""
    found = with_blas(MEMORY_TRACE, blas_workspaces("2.15.0", device_by_name("T4")))
    assert [event.workspace for event in found.events] == [0, *[8_519_680] * 4]
    assert found.roles == MEMORY_TRACE.roles
    assert replay(found).peak_allocated == 8_519_680 + 512 * 5


def test_a_run_without_products_takes_none() -> None:
    """Nothing is added to a memory trace that does not multiply matrices."""
    memory_trace = MemoryTrace((), MEMORY_TRACE.events[:1])
    assert with_blas(memory_trace, blas_workspaces("2.6.0", device_by_name("T4"))) == memory_trace


def test_convolutions_take_a_multiple_of_what_they_make() -> None:
    """Forward and backward, while they run; other operators take nothing."""
    events = (
        MemoryEvent("aten.convolution", "", made=((0, 1000),)),
        MemoryEvent("aten.relu", "", made=((1, 1000),)),
        MemoryEvent("aten.convolution_backward", "", "backward", made=((2, 1000), (3, 200)), workspace=5),
        MemoryEvent("aten.convolution_backward", "", "backward"),
    )
    found = with_convolutions(MemoryTrace((), events), 2.0)
    assert [event.workspace for event in found.events] == [2000, 0, 2400, 0]
    assert with_convolutions(MemoryTrace((), events), 0.0) == MemoryTrace((), events)


def test_bounds_of_convolutions() -> None:
    """On CUDA a range, on ROCm nothing is known."""
    bounds = conv_bounds("cuda")
    assert bounds is not None
    assert bounds[0] < bounds[1]
    assert conv_bounds("rocm") is None
