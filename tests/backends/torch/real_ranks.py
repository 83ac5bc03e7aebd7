"""Real training on several processes of this machine, with every storage of rank 0 followed: run as a module.

`python -m tests.backends.torch.real_ranks RANKS CASE...` prints, as JSON by case, the highest number of bytes alive in a step after the
first one and those alive after it. It knows nothing of the package under test.

Threads of gloo may hold what was sent for a moment longer than the program does. So what waits for them gives them time
to let go; and since it only adds, the lowest of several steps counts, for the peak and for what is alive after it.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    fully_shard,
    fully_sharded_data_parallel,
)
from torch.distributed.fsdp._common_utils import _FSDPDeviceHandle
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

WIDTH, VOCABULARY, TOKENS, LAYERS, STEPS = 64, 96, 24, 3, 6
BREATH = 0.002  # seconds after each exchange
QUIET = 10  # hundredths of a second without a change


class Attention(nn.Module):
    """Causal attention that finds the number of heads from the width it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, 16)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj))
        scores = (q @ k.transpose(-1, -2)).softmax(-1, dtype=torch.float32)  # as autocast has it on GPUs alone
        return self.o_proj((scores.to(v.dtype) @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.up_proj, self.down_proj = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down_proj(nn.functional.gelu(self.up_proj(self.norm2(x))))


class Transformer(nn.Module):
    """A small language model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


class Uneven(nn.Module):
    """Layers with biases and of sizes that do not divide by the ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(63, 129), nn.Linear(129, 63)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.gelu(self.up(x)))


def wide() -> nn.Module:
    """Three of them."""
    return nn.Sequential(*[Uneven() for _ in range(3)])


def _mesh(**dims: int) -> DeviceMesh:
    return init_device_mesh("cpu", tuple(dims.values()), mesh_dim_names=tuple(dims))


def _shard_blocks(model: nn.Module, mesh: DeviceMesh, **options: Any) -> None:
    for block in getattr(model, "layers", model):
        fully_shard(block, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)


def fsdp(model: nn.Module, ranks: int) -> nn.Module:
    _shard_blocks(model, _mesh(fsdp=ranks))
    return model


def fsdp_mixed(model: nn.Module, ranks: int) -> nn.Module:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    _shard_blocks(model, _mesh(fsdp=ranks), mp_policy=policy)
    return model


def fsdp_recomputed(model: nn.Module, ranks: int) -> nn.Module:
    for block in model.layers:
        block.forward = recomputed(block.forward)
    return fsdp(model, ranks)


def recomputed(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: checkpoint(original, x, use_reentrant=False)


def hsdp(model: nn.Module, ranks: int) -> nn.Module:
    _shard_blocks(model, _mesh(ddp=2, fsdp=ranks // 2))
    return model


TENSOR_PARALLEL: dict[str, Any] = {
    "embed_tokens": RowwiseParallel(input_layouts=Replicate()),
    "lm_head": ColwiseParallel(output_layouts=Replicate()),
}
TENSOR_PARALLEL_BLOCK: dict[str, Any] = {
    **{name: ColwiseParallel() for name in ("attention.q_proj", "attention.k_proj", "attention.v_proj", "up_proj")},
    **{name: RowwiseParallel() for name in ("attention.o_proj", "down_proj")},
}


def _cut(model: nn.Module, mesh: DeviceMesh) -> None:
    plan = dict(TENSOR_PARALLEL)
    for index in range(LAYERS):
        plan |= {f"layers.{index}.{name}": style for name, style in TENSOR_PARALLEL_BLOCK.items()}
    parallelize_module(model, mesh, plan)


def tensor_parallel(model: nn.Module, ranks: int) -> nn.Module:
    _cut(model, _mesh(tp=ranks)["tp"])
    return model


def fsdp_and_tensor_parallel(model: nn.Module, ranks: int) -> nn.Module:
    mesh = _mesh(fsdp=ranks // 2, tp=2)
    _cut(model, mesh["tp"])
    _shard_blocks(model, mesh["fsdp"])
    return model


def ddp(model: nn.Module, ranks: int) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def zero2(model: nn.Module, ranks: int) -> nn.Module:
    _shard_blocks(model, _mesh(fsdp=ranks), reshard_after_forward=False)
    return model


def fsdp1(model: nn.Module, ranks: int, **options: Any) -> nn.Module:
    def on_cpu(state: Any, *_: Any) -> Any:  # it would look for an accelerator
        state._device_handle = _FSDPDeviceHandle(torch.device("cpu"), torch.cpu)
        return state

    fully_sharded_data_parallel._init_device_handle = on_cpu
    blocks = set(getattr(model, "layers", model))
    policy = partial(lambda_auto_wrap_policy, lambda_fn=lambda module: module in blocks)
    return FullyShardedDataParallel(model, auto_wrap_policy=policy, use_orig_params=True, **options)


def fsdp1_mixed(model: nn.Module, ranks: int) -> nn.Module:
    half = torch.bfloat16
    return fsdp1(model, ranks, mixed_precision=MixedPrecision(half, half, half))


def _adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, foreach=True)


def _states_of_one_rank(params: Any) -> torch.optim.Optimizer:
    return ZeroRedundancyOptimizer(params, optimizer_class=torch.optim.AdamW, foreach=True)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {"zero1": _states_of_one_rank}
"""What updates the parameters where that is another than AdamW alone, by case."""

PASSES: dict[str, int] = {"ddp, accumulated": 2, "fsdp, accumulated": 2, "fsdp, every pass": 2}
"""Forward and backward passes before the optimizer's step, where they are more than one."""

INPUTS: dict[str, Callable[[], torch.Tensor]] = {}
"""What a model is called with where that is another than ids or features, by case."""


def _exchange(model: nn.Module, exchanged: bool) -> Any:
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return nullcontext() if exchanged else model.no_sync()
    model.set_requires_gradient_sync(exchanged)
    return nullcontext()


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, int], nn.Module]]] = {
    "fsdp": (Transformer, fsdp),
    "fsdp, uneven": (wide, fsdp),
    "fsdp, mixed precision": (Transformer, fsdp_mixed),
    "fsdp, recomputed": (Transformer, fsdp_recomputed),
    "hsdp": (Transformer, hsdp),
    "tp": (Transformer, tensor_parallel),
    "fsdp and tp": (Transformer, fsdp_and_tensor_parallel),
    "ddp": (Transformer, ddp),
    "ddp, accumulated": (Transformer, ddp),
    "fsdp, accumulated": (Transformer, fsdp),
    "fsdp, every pass": (Transformer, fsdp),
    "zero1": (Transformer, ddp),
    "zero2": (Transformer, zero2),
    "fsdp1": (Transformer, fsdp1),
    "fsdp1, mixed precision": (Transformer, fsdp1_mixed),
    "fsdp1, all in blocks": (wide, fsdp1),
    "ddp, uneven": (wide, ddp),
}


class Follow(TorchDispatchMode):
    """The bytes of all storages that operators touch, for as long as each lives."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.alive = self.peak = 0
        self._watched: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind.__module__.startswith("torch.distributed") for kind in types):
            return NotImplemented
        if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
            return func(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        self.see((args, kwargs, out))
        return out

    def see(self, values: Any) -> None:
        for leaf in tree_leaves(values):
            while isinstance(leaf, torch.Tensor) and type(leaf) not in (torch.Tensor, nn.Parameter):
                leaf = leaf._local_tensor if isinstance(leaf, DTensor) else leaf.elem
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu":
                self.resized(leaf.untyped_storage())

    def resized(self, storage: torch.UntypedStorage, size: int | None = None) -> None:
        key = storage._cdata
        if key not in self.sizes:
            self._watched[key] = weakref.ref(storage, lambda _: self._gone(key))
        now = storage.nbytes() if size is None else size
        self.alive += now - self.sizes.get(key, 0)
        self.sizes[key] = now
        self.peak = max(self.peak, self.alive)

    def _gone(self, key: int) -> None:
        self.alive -= self.sizes.pop(key)
        del self._watched[key]


@contextmanager
def resizes_followed(follow: Follow) -> Iterator[None]:
    """Inside, storages that FSDP2 shrinks to nothing and grows again count with the size that they have."""
    original = torch.UntypedStorage.resize_

    def resize(storage: torch.UntypedStorage, size: int) -> Any:
        out = original(storage, size)
        follow.resized(storage, size)
        return out

    torch.UntypedStorage.resize_ = resize
    yield
    del torch.UntypedStorage.resize_


@contextmanager
def unhurried() -> Iterator[None]:
    """Inside, what waits for an exchange gives gloo time to let go of it, and nothing is collected in between."""
    wait = torch.distributed.Work.wait

    def waited(work: Any, *args: Any) -> Any:
        with _disable_current_modes():  # what gloo makes for itself is not the program's
            out = wait(work, *args)
        time.sleep(BREATH)
        return out

    torch.distributed.Work.wait = waited
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    torch.distributed.Work.wait = wait


def measure(case: str, ranks: int) -> dict[str, int]:
    """Steps of AdamW on this rank; the first one, which makes its states, does not count."""
    build, shard = CASES[case]
    torch.manual_seed(0)
    model = shard(build(), ranks)
    text = build is Transformer
    batch = torch.zeros(2, TOKENS, dtype=torch.int64) if text else torch.zeros(2, 63)
    batch = INPUTS.get(case, lambda: batch)()
    follow = Follow()
    follow.see((list(model.parameters()), list(model.buffers()), batch))
    params = groups(list(model.parameters()))
    optimizer = OPTIMIZERS.get(case, _adamw)(params if len(params) > 1 else params[0]["params"])
    peaks, after = [], []
    with unhurried(), resizes_followed(follow), follow:
        for _ in range(STEPS):
            follow.peak = follow.alive
            optimizer.zero_grad()
            for passes_left in reversed(range(PASSES.get(case, 1))):
                with _exchange(model, not passes_left) if "accumulated" in case else nullcontext():
                    out = model(batch)
                    torch.autograd.backward([out], [torch.empty_like(out)])
            optimizer.step()
            peaks.append(follow.peak)
            after.append(_at_rest(follow))
    return {"peak": min(peaks[1:]), "after": min(after[1:])}


def _at_rest(follow: Follow) -> int:
    """What is alive when all ranks are here and nothing has been let go for a while."""
    torch.distributed.barrier()
    alive, quiet = follow.alive, 0
    while quiet < QUIET:
        time.sleep(0.01)
        quiet = quiet + 1 if follow.alive == alive else 0
        alive = follow.alive
    return alive


def groups(params: list[Any]) -> list[dict[str, Any]]:
    """Parameters by the ranks that they are sharded over: an optimizer updates those of one group together."""
    by_mesh: dict[Any, list[Any]] = {}
    for parameter in params:
        by_mesh.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    return [{"params": group} for group in by_mesh.values()]


def on_ranks(measure_cases: Callable[[int, int, list[str]], Any], ranks: int, cases: list[str]) -> list[Any]:
    """What `measure_cases` gives on each rank of so many processes, as JSON keeps it."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = measure_cases, ranks, _free_port(), cases, folder
        gc.collect()
        gc.freeze()  # what ranks collect is their own, not what was imported
        torch.multiprocessing.start_processes(_on_rank, arguments, nprocs=ranks, start_method="fork")
        return [json.loads(Path(folder, str(rank)).read_text()) for rank in range(ranks)]


def _on_rank(rank: int, measure_cases: Any, ranks: int, port: int, cases: list[str], folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(ranks))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)
    Path(folder, str(rank)).write_text(json.dumps(measure_cases(rank, ranks, cases)))
    torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _measured(rank: int, ranks: int, cases: list[str]) -> dict[str, dict[str, int]]:
    return {case: measure(case, ranks) for case in cases}


def main(measure_cases: Callable[[int, int, list[str]], Any] = _measured) -> None:
    """Print what the first of the ranks measured that are asked for on the command line."""
    first_rank, *_ = on_ranks(measure_cases, int(sys.argv[1]), sys.argv[2:])
    print(json.dumps(first_rank))


if __name__ == "__main__":
    main()
