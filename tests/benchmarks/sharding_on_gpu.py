"""One rank of many on one real GPU, against its plan: `python tests/benchmarks/sharding_on_gpu.py [CASE...]`.

torch's fake process group sends nothing, so a single GPU runs rank 0 of a world of any size: all that FSDP2, replicas and
tensor parallelism allocate is real, with the streams that they use; only NCCL's own buffers are missing. Printed are the
plan's peak and reserve beside `max_memory_allocated` and `max_memory_reserved` of the second step. Needs a GPU; without
one it prints the plans alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import prod
from typing import Any

import sharding_speed
import torch
from torch import nn

from pytest_modelbudget.backends.torch.model.build import abstract
from pytest_modelbudget.backends.torch.planning import make_plans
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import Training

TOKENS, MIB = 2048, 2**20
sharding_speed.SHAPES["small"] = (2048, 16, 8, 5632, 12)
CASES: dict[str, tuple[dict[str, int], str]] = {
    "fsdp 8": ({"fsdp": 8}, "none"),
    "fsdp 8, blocks recomputed": ({"fsdp": 8}, "blocks"),
    "ddp 4 x fsdp 2": ({"ddp": 4, "fsdp": 2}, "none"),
    "ddp 8": ({"ddp": 8}, "none"),
    "tp 8": ({"tp": 8}, "none"),
    "fsdp 4 x tp 2, blocks recomputed": ({"fsdp": 4, "tp": 2}, "blocks"),
}


def planned(sharding: dict[str, int], checkpointing: str) -> Any:
    """The plan of a case."""
    with abstract():
        model = sharding_speed.llama("small")
    recipe = Training(precision="bf16", loss="cross_entropy", sharding=sharding, checkpointing=checkpointing)
    inputs = parse(f"int64[1, {TOKENS}]")
    return make_plans(model, name="small", inputs=inputs, sizes={}, recipes=[recipe], built_here=True)[0]


def real(sharding: dict[str, int], checkpointing: str) -> tuple[int, int]:
    """`max_memory_allocated` and `max_memory_reserved` of the second step of rank 0."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from torch.utils.checkpoint import checkpoint

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=prod(sharding.values()))
    try:
        with torch.device("cuda"):
            model: nn.Module = sharding_speed.llama("small").to(torch.bfloat16)
        if checkpointing == "blocks":
            for block in model.layers:
                block.forward = _again(checkpoint, block.forward)
        mesh = init_device_mesh("cuda", tuple(sharding.values()), mesh_dim_names=tuple(sharding))
        model = _sharded(model, mesh, sharding)
        optimizer = torch.optim.AdamW(_groups(model))
        ids, targets = (torch.zeros(shape, dtype=torch.int64, device="cuda") for shape in ((1, TOKENS), (TOKENS,)))
        for _ in range(2):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            optimizer.zero_grad()
            out = model(ids)
            loss = nn.functional.cross_entropy(out.reshape(-1, out.shape[-1]), targets)
            loss.backward()
            optimizer.step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    finally:
        torch.distributed.destroy_process_group()


def _sharded(model: nn.Module, mesh: Any, sharding: dict[str, int]) -> nn.Module:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    if "tp" in sharding:
        plan: dict[str, Any] = {"embed_tokens": RowwiseParallel(input_layouts=Replicate())}
        plan["lm_head"] = ColwiseParallel(output_layouts=Replicate())
        for part, names in (("attention", ("q_proj", "k_proj", "v_proj")), ("mlp", ("gate_proj", "up_proj"))):
            plan.update({f"layers.*.{part}.{name}": ColwiseParallel() for name in names})
        plan.update({f"layers.*.{name}": RowwiseParallel() for name in ("attention.o_proj", "mlp.down_proj")})
        parallelize_module(model, mesh["tp"], plan)
    if "fsdp" in sharding:
        over = mesh["ddp", "fsdp"] if "ddp" in sharding else mesh["fsdp"]
        for block in model.layers:
            fully_shard(block, mesh=over)
        fully_shard(model, mesh=over)
    elif "ddp" in sharding:
        model = nn.parallel.DistributedDataParallel(model, process_group=mesh.get_group(), init_sync=False)
        model.register_comm_hook(mesh.get_group(), _reduce)  # the fake group's own result is none
    return model


def _reduce(group, bucket):  # type: ignore[no-untyped-def]  # torch reads annotations, and takes none for words
    torch.distributed.all_reduce(bucket.buffer(), group=group)
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    found: dict[Any, list[Any]] = {}
    for parameter in model.parameters():
        found.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    return [{"params": group} for group in found.values()]


def _again(checkpoint: Callable[..., Any], forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: checkpoint(forward, *args, use_reentrant=False)


def main() -> None:
    """Each case, one after the other."""
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'}")
    for case in sys.argv[1:] or CASES:
        plan = planned(*CASES[case])
        line = f"{case}: planned {plan.peak_bytes / MIB:,.1f} MiB, reserve {plan.reserved_bytes / MIB:,.0f} MiB"
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            allocated, reserved = real(*CASES[case])
            line += (
                f"; measured {allocated / MIB:,.1f} MiB ({plan.peak_bytes / allocated - 1:+.2%}), {reserved / MIB:,.0f}"
            )
        print(line, flush=True)


if __name__ == "__main__":
    main()
