"""What the ranks that share a stage of a pipeline do: FSDP2 and tensor parallelism, as a recipe's `sharding` says.

FSDP2 shards each block of a stage, and then the rest of it. What was gathered stays so to the end of a step, as
torchtitan has it under a pipeline (distributed/fsdp.py, `get_fsdp_reshard_after_forward_policy`), and torch's stages
reduce gradients once, when the backward passes of all microbatches are over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.distributed.experts import ExpertPlacement
from pytest_modelbudget.backends.torch.distributed.sharding import full_sharding
from pytest_modelbudget.backends.torch.distributed.stage_cuts import MicrobatchCall
from pytest_modelbudget.backends.torch.distributed.stage_modules import StageModule
from pytest_modelbudget.backends.torch.distributed.stage_survey import Survey
from pytest_modelbudget.backends.torch.training.weights import MIXED
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Training
from pytest_modelbudget.planner.recipe import FULLY_SHARDED, SHARDING_DIMS

_PLANNED = frozenset({"ddp", "fsdp", "zero2", "tp", "ep"})


@dataclass(frozen=True, slots=True)
class StageSharding:
    """Ranks that share a stage, by dimension, outermost first; in `half` FSDP gathers parameters (None: as stored).

    `experts` is the recipe's `sharding` where that deals out experts.
    """

    dims: Mapping[str, int]
    half: torch.dtype | None = None
    experts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ranks(self) -> int:
        """How many share a stage."""
        return prod(self.dims.values())

    @property
    def is_full(self) -> bool:
        """Whether FSDP shards."""
        return not FULLY_SHARDED.isdisjoint(self.dims)


def stage_sharding_of(recipe: Training) -> tuple[StageSharding, Training]:
    """How a recipe's `sharding` shares stages, and the recipe without what that takes care of.

    Raises:
        ModelBudgetError: it is done in a way that is not planned with a pipeline.
    """
    sharding, rest = recipe.sharding, replace(recipe, sharding=None)
    if sharding is None:
        return StageSharding({}), rest
    if not isinstance(sharding, Mapping):
        raise ModelBudgetError(
            "training.sharding: module:callable with pipeline is not planned, since it gets a whole model: write "
            "{fsdp: 8}, {fsdp: 8, tp: 2} or {tp: 2}"
        )
    dims = {dim: size for dim in SHARDING_DIMS if isinstance(size := sharding.get(dim), int) and size > 1}
    alone = "ddp" in dims and FULLY_SHARDED.isdisjoint(dims)
    if wrong := next((key for key in (*dims, *sharding) if key in (*SHARDING_DIMS, "ep") and key not in _PLANNED), ""):
        raise ModelBudgetError(
            f"training.sharding: {wrong} with pipeline is not planned: write fsdp, with ddp, tp or ep"
        )
    if alone:
        raise ModelBudgetError(
            "training.sharding: ddp with pipeline is planned beside fsdp alone, {fsdp: 8, ddp: 2}: write fsdp"
        )
    half, casts = MIXED.get(recipe.precision), sharding.get("casts", "autocast")
    by_policy = half if casts != "autocast" and not FULLY_SHARDED.isdisjoint(dims) else None
    by_policy_alone = by_policy is not None and casts == "policy"
    experts = sharding if "ep" in sharding else {}
    return StageSharding(dims, by_policy, experts), replace(rest, precision="fp32") if by_policy_alone else rest


class ShardedStageModule(StageModule):
    """A stage whose parameters FSDP2 shards, which asks for modules: its blocks, and the places of what else it needs.

    A place shares its parameters with the module of the model that it is of, and has none of the modules in that.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[int],
        survey: Survey,
        calls: Sequence[MicrobatchCall],
        own: Sequence[nn.Parameter],
    ) -> None:
        super().__init__(model, blocks, survey, calls, own)
        modules = [model.get_submodule(name) for name in survey.blocks[self.first : self.last]]
        in_blocks = {id(part) for block in modules for part in block.modules()}
        needed = set(map(id, own))
        self.places = nn.ModuleList(
            _Place(module)
            for module in model.modules()
            if id(module) not in in_blocks and not needed.isdisjoint(map(id, module._parameters.values()))
        )
        self.blocks = nn.ModuleList(_Block(block) for block in modules)
        self._block_calls = dict(enumerate(self.blocks, self.first))
        self._others = {name for name, parameter in self.named_parameters() if id(parameter) not in needed}

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Those of the stage, which are others while they are gathered."""
        return (parameter for name, parameter in self.named_parameters() if name not in self._others)

    def shard(self, mesh: Any, sharding: StageSharding, experts: Mapping[nn.Module, ExpertPlacement]) -> None:
        """Have FSDP2 shard it over the ranks of `mesh` that share it, and `experts` in it over the meshes they have."""
        from torch.distributed.fsdp import fully_shard

        others = {parameter for name, parameter in self.named_parameters() if name in self._others}
        options = {**full_sharding(mesh, sharding.dims, sharding.half), "reshard_after_forward": False}
        own_experts = {module: experts[module] for module in self.modules() if module in experts}
        for module, placement in own_experts.items():
            fully_shard(module, **{**options, "mesh": placement.rest}, ignored_params=others)
        self.carried_tensors = tuple(placement.order for placement in own_experts.values())
        for module in (*self.blocks, self):
            fully_shard(module, **options, ignored_params=others)


class _Place(nn.Module):  # type: ignore[misc]
    """Where a module of the model has its parameters: what is put here in their place is put there."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._parameters = module._parameters


class _Block(nn.Module):  # type: ignore[misc]
    """A block as it runs where the stage runs it; the model's own module may be called to be left out."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self._run = block.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block."""
        return self._run(*args, **kwargs)
