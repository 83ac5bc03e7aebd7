"""What libraries take of torch's allocator beside tensors: workspaces of matrix products and of convolutions.

They count as allocated and are reserved, but no operator returns them: a tape lacks them; `with_blas` and
`with_convolutions` add them.
Sizes by version are in `devices.yaml`, with their sources.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pytest_modelbudget.planner.allocator import unused
from pytest_modelbudget.planner.devices import Device, data, version
from pytest_modelbudget.planner.tape import Event, Tape

_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "vdot", "addbmm", "linear", "matmul"})
_FUSED = frozenset({"addmm", "linear"})


@dataclass(frozen=True, slots=True)
class Blas:
    """Workspaces of matrix products, in bytes.

    `workspace` is for each thread that multiplies (`kept`) or for each call; `fused` is what a product with a fused
    bias takes apart from it (cuBLASLt, hipBLASLt), for each thread (`fused_kept`) or for each call.
    """

    workspace: int
    kept: bool
    fused: int
    fused_kept: bool
    source: str


def blas(torch: str, on: Device) -> Blas:
    """The workspaces of BLAS with the version `torch` (`2.6.0`) on a device, with default settings."""
    rows = [row for row in data()["blas"] if row["platform"] == on.platform]
    fitting = [row for row in rows if version(row["since_torch"]) <= version(torch)] or rows[:1]
    row = max(fitting, key=lambda row: version(row["since_torch"]))
    kind = {"9": "hopper", "10": "blackwell", "12": "blackwell"}.get(on.capability.split(".")[0], "")
    kind = "gfx94" if on.capability.startswith(("gfx94", "gfx95")) else kind
    return Blas(row.get(kind, row["bytes"]), row["kept"], row["lt"], row["lt_kept"], row["source"])


def with_blas(tape: Tape, sizes: Blas) -> Tape:
    """`tape` with the workspaces of its matrix products: kept ones as storages of the role `workspace`, others while
    an operator runs.

    A kept one is made by the first product of its thread and stays to the end. The backward pass runs in a thread of
    autograd's, with a handle and a workspace of its own (`getCurrentCUDABlasHandle` keeps them by thread).
    """
    number = unused(tape)
    events, roles = [], dict(tape.roles)
    have: set[tuple[str, bool]] = set()
    for event in tape.events:
        name = event.op.rpartition(".")[2].rstrip("_")
        made: list[tuple[int, int]] = []
        call = 0
        for needs, size, kept, fused in (
            (name in _PRODUCTS, sizes.workspace, sizes.kept, False),
            (name in _FUSED, sizes.fused, sizes.fused_kept, True),
        ):
            thread = ("autograd" if event.phase == "backward" else "main", fused)
            if not needs or not size or (kept and thread in have):
                continue
            if kept:
                have.add(thread)
                made.append((number, size))
                roles[number] = "workspace"
                number += 1
            else:
                call = max(call, size)
        events.append(_taking(event, tuple(made), call) if made or call else event)
    return replace(tape, events=tuple(events), roles=roles)


def convolution(platform: str = "cuda") -> tuple[float, float] | None:
    """Bounds of a convolution's workspace, as multiples of what the operator makes; None where nothing is known."""
    rows = [row for row in data()["convolution"] if row["platform"] == platform]
    return (rows[0]["low"], rows[0]["high"]) if rows else None


def with_convolutions(tape: Tape, multiple: float) -> Tape:
    """`tape` with a workspace for each convolution while it runs: `multiple` of the bytes that it makes.

    Which algorithm runs, and so how much it takes, is not known beforehand: replay the tape at both ends of
    `convolution` for a range. What a run needs does not contain it: where a workspace finds no room torch takes the
    next algorithm, and fails only when none is left (`try_plans` in `aten/src/ATen/native/cudnn/Conv_v8.cpp`).
    """
    events = (
        _taking(event, (), int(multiple * sum(size for _, size in event.made))) if _convolves(event) else event
        for event in tape.events
    )
    return replace(tape, events=tuple(events))


def _convolves(event: Event) -> bool:
    return "convolution" in event.op and bool(event.made)


def _taking(event: Event, made: tuple[tuple[int, int], ...], call: int) -> Event:
    return replace(event, made=event.made + made, workspace=max(event.workspace, call))
