"""A step of training on one of many ranks, recorded: FSDP2, HSDP, DistributedDataParallel, tensor parallelism.

torch's own code shards a copy of the model (on meta, in a world of many ranks) and runs its hooks in the step, so all
that it allocates is on the trace of rank 0: gathered parameters, what is packed to be sent and what arrives, buckets.

Not on the trace: what NCCL allocates itself (its buffers are not of torch's allocator), and that memory of a second
stream can be reused late. A collective whose result is waited for later lets go of its input at once; NCCL holds it
until it is waited for. Gradients that are reduced in another dtype are cast while they are packed, as on a GPU. Every
pass of `gradient_accumulation` communicates, with `no_sync` the last one alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.costs.rules import Cost
from pytest_modelbudget.backends.torch.distributed.collective_recorder import CollectiveRecorder, fsdp_recorded
from pytest_modelbudget.backends.torch.distributed.context_parallel import ContextParallelStep, is_context_parallel
from pytest_modelbudget.backends.torch.distributed.experts import BalancedStep
from pytest_modelbudget.backends.torch.distributed.fake_world import FakeWorld, fake_world
from pytest_modelbudget.backends.torch.distributed.host_shards import on_host, shards_copied_to_device
from pytest_modelbudget.backends.torch.distributed.optimizer import optimizer_on_shards
from pytest_modelbudget.backends.torch.distributed.sharding import copy_with_own_parameters, is_zero1, sharding_of
from pytest_modelbudget.backends.torch.distributed.zero import StatesOfOneRank
from pytest_modelbudget.backends.torch.memory.recorder import Recorder
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.backends.torch.training.step import record_step
from pytest_modelbudget.backends.torch.training.weights import MIXED
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import MemoryTrace, Recipe, Training
from pytest_modelbudget.planner.loops import resolved
from pytest_modelbudget.planner.recipe import FULLY_SHARDED

_NOT_RECORDED = "encountered during backward but not found in storage"
"""What selective checkpointing says of an operator that was not in the forward pass: FSDP's hooks run others then."""

CASTS_NOTE = (
    "under autocast as without sharding; torchtitan and accelerate have FSDP's policy in its place: "
    "sharding: {fsdp: ..., casts: policy}"
)
"""What is said of a mixed precision where FSDP shards and the recipe does not say what casts."""


def casts_unsaid(recipe: Recipe) -> bool:
    """Whether FSDP shards in a mixed precision, and the recipe leaves open what casts."""
    sharding = resolved(recipe).sharding if isinstance(recipe, Training) and recipe.precision in MIXED else None
    return isinstance(sharding, Mapping) and "casts" not in sharding and not FULLY_SHARDED.isdisjoint(sharding)


@dataclass(frozen=True, slots=True)
class ShardedStep:
    """The step of one rank of `ranks`; `communication` are the bytes it sends in the measured step, by collective.

    `collectives` says what is counted: see there.
    """

    memory_trace: MemoryTrace
    communication: Mapping[str, int]
    ranks: int


def record_sharded(runnable: RunnableModel, sizes: Mapping[str, int], recipe: Training) -> ShardedStep:
    """Run a copy of `runnable`, a model on meta, by `recipe` as rank 0 of its `sharding`; batch and dims are a rank's.

    `{fsdp, tp, ddp}`: layers are cut over `tp` ranks by `tensor_parallel`; `fully_shard` is called for each repeated
    block and for the whole over `fsdp` ranks, with `ddp` replicas of them (HSDP); `zero2` is the same with parameters
    that stay gathered from the forward to the backward pass; `fsdp1` is FullyShardedDataParallel. `ddp` alone is
    DistributedDataParallel with its defaults (buckets of 25 MiB), with `tp` torch's `replicate`, and `zero1` is the
    former with a ZeroRedundancyOptimizer.

    A mixed precision is autocast as without sharding, and FSDP casts nothing: so it is in Lightning's
    ModelParallelStrategy and in a loop that calls `fully_shard`. With `casts: policy` it is FSDP's policy in place of
    autocast (parameters gathered and inputs of blocks cast in it, gradients reduced in float32, by FSDP1 in it too):
    torchtitan (`maybe_enable_amp`), and accelerate with FSDP2 (`_prepare_fsdp2`), so transformers' Trainer. `both` are
    Lightning's FSDPStrategy and accelerate with FSDP1.

    `module:callable` is called with the model and a function that makes the mesh: `mesh = make_mesh(dp=8, tp=2)` is a
    `DeviceMesh` over 16 ranks. It returns the sharded model, or None when it changed the one it got. Its precision is
    its own affair: a mixed one in the recipe is autocast.

    Raises:
        ModelBudgetError: no plan fits the model, the callable fails, this process is in a process group of its own, or
            the step does not run.
    """
    recipe = resolved(recipe)
    assert recipe.sharding is not None
    if recipe.lora.get("base"):
        raise ModelBudgetError("training.lora: base is not planned with sharding: leave one of the two out")
    with fake_world() as fake:
        shard, remaining = sharding_of(runnable.name, recipe, fake)
        copy = RunnableModel(runnable.name, copy_with_own_parameters(runnable.model), runnable.inputs)
        recorders: list[_RankRecorder] = []

        def recorder(model: nn.Module) -> Recorder:
            recorders.append(_RankRecorder(model))
            return recorders[-1]

        offloads = "params" in recipe.offload
        with (
            fsdp_recorded(recorders),
            _explained(runnable.name, recipe.sharding),
            shards_copied_to_device() if offloads else nullcontext(),
        ):
            optimizer = StatesOfOneRank if is_zero1(recipe.sharding) else optimizer_on_shards
            memory_trace = record_step(
                copy, sizes, remaining, shard=shard, recorder=recorder, optimizer=optimizer,
                recording=_recording(recipe.sharding, fake),
            )  # fmt: skip
        if offloads:
            memory_trace = on_host(memory_trace)
        return ShardedStep(memory_trace, recorders[-1].communication(memory_trace.measured), fake.size)


def _recording(sharding: Any, fake: FakeWorld) -> Any:
    """What runs the loop."""
    if is_context_parallel(sharding):
        return partial(ContextParallelStep, world=fake, sharding=sharding)
    return partial(BalancedStep, sharding=sharding)


@contextmanager
def _explained(name: str, sharding: Any) -> Iterator[None]:
    """Inside, a step that does not run is explained where its sharding is known to be the reason."""
    try:
        yield
    except ModelBudgetError as error:
        if _NOT_RECORDED in str(error.__cause__):
            raise ModelBudgetError(
                f"{name}: training.checkpointing: torch {torch.__version__} does not recompute a block by save where "
                "FSDP shards a part of it on its own, as it does experts with ep: write checkpointing: blocks, or "
                "leave ep out"
            ) from error
        if error.__cause__ is None or not isinstance(sharding, Mapping) or sharding.get("tp", 1) < 2:
            raise
        raise ModelBudgetError(
            f"{error}\n  with tp: {sharding['tp']} each rank has a part of the heads: it must divide them (those of "
            "keys, too), and the model must find\n  their number from the width it gets; else cut it yourself with "
            "sharding: module:callable"
        ) from error


class _RankRecorder(CollectiveRecorder):
    """Knows the buckets of replicas, which are reduced in place."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._buckets = isinstance(model, nn.parallel.DistributedDataParallel)

    def operator(self, cost: Cost, view: bool, operands: list[torch.Tensor], args: Any, kwargs: Any, out: Any) -> None:
        """Note one operator, and what it sends."""
        super().operator(cost, view, operands, args, kwargs, out)
        if cost.name == "c10d.allreduce_" and self._buckets:
            for bucket in args[0]:
                self.set_role(bucket, "gathered")
