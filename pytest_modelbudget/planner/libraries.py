"""What libraries take of torch's allocator beside tensors: workspaces of matrix products and of convolutions.

They count as allocated and are reserved, but no operator returns them: a memory trace lacks them; `with_blas` and
`with_convolutions` add them.
Sizes by version are in `devices.yaml`, with their sources.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from pytest_modelbudget.planner.allocator import next_storage_number
from pytest_modelbudget.planner.devices import Device, device_data, version_tuple
from pytest_modelbudget.planner.memory_trace import MemoryEvent, MemoryTrace

_MATRIX_PRODUCTS = frozenset(
    {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "vdot", "addbmm", "linear", "matmul"}
)
_FUSED_PRODUCTS = frozenset({"addmm", "linear"})


@dataclass(frozen=True, slots=True)
class BlasWorkspaces:
    """Workspaces of matrix products, in bytes.

    `workspace` is for each thread that multiplies (`kept`) or for each call; `fused` is what a product with a fused
    bias takes apart from it (cuBLASLt, hipBLASLt), for each thread (`fused_kept`) or for each call.
    """

    workspace: int
    kept: bool
    fused: int
    fused_kept: bool
    source: str


def blas_workspaces(torch: str, on: Device) -> BlasWorkspaces:
    """The workspaces of BLAS with the version `torch` (`2.6.0`) on a device, with default settings."""
    rows = [row for row in device_data()["blas"] if row["platform"] == on.platform]
    fitting = [row for row in rows if version_tuple(row["since_torch"]) <= version_tuple(torch)] or rows[:1]
    row = max(fitting, key=lambda row: version_tuple(row["since_torch"]))
    kind = {"9": "hopper", "10": "blackwell", "12": "blackwell"}.get(on.capability.split(".")[0], "")
    kind = "gfx94" if on.capability.startswith(("gfx94", "gfx95")) else kind
    return BlasWorkspaces(row.get(kind, row["bytes"]), row["kept"], row["lt"], row["lt_kept"], row["source"])


@cache
def _plain_name(operator: str) -> str:
    return operator.rpartition(".")[2].rstrip("_")


def with_blas(trace: MemoryTrace, sizes: BlasWorkspaces) -> MemoryTrace:
    """`trace` with the workspaces of its matrix products: kept ones as storages of the role `workspace`, others while
    an operator runs.

    A kept one is made by the first product of its thread and stays to the end. The backward pass runs in a thread of
    autograd's, with a handle and a workspace of its own (`getCurrentCUDABlasHandle` keeps them by thread).
    """
    number = next_storage_number(trace)
    events, roles = [], dict(trace.roles)
    threads_served: set[tuple[str, bool]] = set()
    for event in trace.events:
        name = _plain_name(event.op)
        if name not in _MATRIX_PRODUCTS:
            events.append(event)
            continue
        kept_workspaces: list[tuple[int, int]] = []
        call_workspace = 0
        for needs, size, kept, fused in (
            (True, sizes.workspace, sizes.kept, False),
            (name in _FUSED_PRODUCTS, sizes.fused, sizes.fused_kept, True),
        ):
            thread = ("autograd" if event.phase == "backward" else "main", fused)
            if not needs or not size or (kept and thread in threads_served):
                continue
            if kept:
                threads_served.add(thread)
                kept_workspaces.append((number, size))
                roles[number] = "workspace"
                number += 1
            else:
                call_workspace = max(call_workspace, size)
        events.append(
            _with_workspace(event, tuple(kept_workspaces), call_workspace)
            if kept_workspaces or call_workspace
            else event
        )
    return replace(trace, events=tuple(events), roles=roles)


def conv_bounds(platform: str = "cuda") -> tuple[float, float] | None:
    """Bounds of a convolution's workspace, as multiples of what the operator makes; None where nothing is known."""
    rows = [row for row in device_data()["convolution"] if row["platform"] == platform]
    return (rows[0]["low"], rows[0]["high"]) if rows else None


def with_convolutions(trace: MemoryTrace, multiple: float) -> MemoryTrace:
    """`trace` with a workspace for each convolution while it runs: `multiple` of the bytes that it makes.

    Which algorithm runs, and so how much it takes, is not known beforehand: replay the memory trace at both ends of
    `conv_bounds` for a range. What a run needs does not contain it: where a workspace finds no room torch takes the
    next algorithm, and fails only when none is left (`try_plans` in `aten/src/ATen/native/cudnn/Conv_v8.cpp`).
    """
    events = (
        _with_workspace(event, (), int(multiple * sum(size for _, size in event.made)))
        if _is_convolution(event)
        else event
        for event in trace.events
    )
    return replace(trace, events=tuple(events))


def _is_convolution(event: MemoryEvent) -> bool:
    return event.runs_without_workspace and bool(event.made)


def _with_workspace(event: MemoryEvent, allocated: tuple[tuple[int, int], ...], workspace: int) -> MemoryEvent:
    return replace(event, made=event.made + allocated, workspace=max(event.workspace, workspace))
