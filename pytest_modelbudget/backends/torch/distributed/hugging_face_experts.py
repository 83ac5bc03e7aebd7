"""Expert parallelism of Hugging Face's mixtures, by transformers' own plans and hooks.

A model that knows an `ep_plan` is shared out as `from_pretrained(distributed_config=DistributedConfig(fsdp_size=8,
ep_size=4))` has it do: whole experts for each rank, whose tokens go out and come back by two all-to-alls
(`AllToAllEP`), FSDP2 over the ranks that have the same experts, and over all ranks by the model's `fsdp_plan`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.distributed.fake_world import FakeWorld
from pytest_modelbudget.errors import ModelBudgetError


def shares_experts(model: nn.Module) -> bool:
    """Whether it knows how its experts are dealt out."""
    return bool(getattr(model, "ep_plan", None)) and hasattr(model, "_resolve_parallel_plans")


def share_out(
    model: nn.Module, name: str, sharding: Mapping[str, Any], fake: FakeWorld, half: torch.dtype | None
) -> nn.Module:
    """Deal the experts of `model` out over the ranks of `ep`, and all of it over those of `fsdp`, with `ddp` replicas.

    Raises:
        ModelBudgetError: transformers cannot share it out so, or is of a release that was not looked at.
    """
    try:
        from transformers.distributed.configuration_utils import DistributedConfig
        from transformers.distributed.expert_parallel import apply_expert_parallelism
        from transformers.distributed.fsdp import apply_fully_sharded_data_parallelism
        from transformers.distributed.utils import TransformersDeviceMesh
    except ImportError as error:
        raise ModelBudgetError(
            f"{name}: training.sharding: ep: this release of transformers has no DistributedConfig(ep_size=...): "
            "update it, or shard the model yourself with sharding: module:callable"
        ) from error
    if half is torch.float16:
        raise ModelBudgetError(
            f"{name}: training.sharding: ep: transformers' own policy casts to bfloat16 alone: write precision: "
            "bf16-mixed, or casts: autocast"
        )
    ranks, fsdp, replicas = sharding["ep"], sharding["fsdp"], sharding.get("ddp", 1)
    dense = fake.mesh(pp=1, dp_replicate=replicas, fsdp=fsdp, tp=1)
    experts = fake.mesh(pp=1, dp_replicate=replicas, efsdp=fsdp // ranks, ep=ranks)
    meshes = TransformersDeviceMesh(dense, experts)
    model.config = copy.copy(model.config)  # the user's own keeps its settings
    try:
        config = DistributedConfig(
            fsdp_size=fsdp, ep_size=ranks, dp_replicate_size=replicas, fsdp_mixed_precision=half is not None
        )
        model.config.distributed_config = config
        _, expert_plan, full_plan = model._resolve_parallel_plans(config)
        apply_expert_parallelism(model, meshes.get_mesh("ep"), meshes.get_mesh("tp"), expert_plan)
        sharded: nn.Module = apply_fully_sharded_data_parallelism(model, meshes, full_plan, expert_plan)
    except (ValueError, OSError) as error:
        raise ModelBudgetError(f"{name}: training.sharding: ep: transformers: {error}") from error
    return sharded
