"""How a recipe's `sharding` is done to a model, by torch's own APIs: its dimensions, or a callable of the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.distributed.context_parallel import parameter_dims
from pytest_modelbudget.backends.torch.distributed.experts import ExpertPlacement, expert_dims, expert_parallel
from pytest_modelbudget.backends.torch.distributed.fake_world import FakeWorld
from pytest_modelbudget.backends.torch.distributed.flat_parameters import shard_flat
from pytest_modelbudget.backends.torch.distributed.hugging_face_experts import share_out, shares_experts
from pytest_modelbudget.backends.torch.distributed.tensor_parallel import parallelize
from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy
from pytest_modelbudget.backends.torch.model.meta_tensors import META
from pytest_modelbudget.backends.torch.model.modules import all_modules
from pytest_modelbudget.backends.torch.training.checkpointing import repeated_blocks
from pytest_modelbudget.backends.torch.training.weights import MIXED
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Training
from pytest_modelbudget.planner.recipe import FULLY_SHARDED
from pytest_modelbudget.planner.references import imported


def copy_with_own_parameters(model: nn.Module) -> nn.Module:
    """A copy with parameters of its own, tied as they were: sharding changes the ones it is given."""
    copy, parameters = meta_copy(model), dict[int, nn.Parameter]()
    for module in all_modules(copy):
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in parameters:
                data = torch.empty_strided(parameter.shape, parameter.stride(), dtype=parameter.dtype, device=META)
                parameters[id(parameter)] = nn.Parameter(data, parameter.requires_grad)
            module._parameters[name] = parameters[id(parameter)]
    return copy


def sharding_of(name: str, recipe: Training, fake: FakeWorld) -> tuple[Callable[[nn.Module], nn.Module], Training]:
    """What shards the model `name` over the ranks of `fake`, and the recipe without what that takes care of.

    Raises:
        ModelBudgetError: one rank alone, or an `offload` that is not planned with sharding. Calling what is given back
            raises it when no plan fits the model, or the callable fails.
    """
    if recipe.offload and not (recipe.offload == ("params",) and _is_fsdp(recipe.sharding)):
        raise ModelBudgetError(
            "training.offload: with sharding, `params` of {fsdp: ...} go to the host, and the optimizer with them: "
            "nothing else is planned"
        )
    remaining = replace(recipe, sharding=None, offload=())
    if not isinstance(recipe.sharding, Mapping):
        function = recipe.sharding
        assert function is not None
        return lambda model: _shard_by_callable(name, function, model, fake), remaining
    ranks = {dim: size for dim, size in recipe.sharding.items() if isinstance(size, int)}
    dims = parameter_dims(ranks)
    if not dims:
        raise ModelBudgetError("training.sharding: one rank alone shards nothing: give a number above 1, or none")
    half, casts = MIXED.get(recipe.precision), recipe.sharding.get("casts", "autocast")
    if (len(dims) > 1 or not FULLY_SHARDED.isdisjoint(dims)) and half is not None and casts == "policy":
        remaining = replace(remaining, precision="fp32")
    gathered = None if casts == "autocast" else half
    experts = recipe.sharding if "ep" in recipe.sharding else {}
    return lambda model: _shard_by_plan(name, model, dims, fake, gathered, experts), remaining


def is_zero1(sharding: Any) -> bool:
    """Whether the states of the optimizer are dealt out to several ranks."""
    return isinstance(sharding, Mapping) and sharding.get("zero1", 1) > 1


def _is_fsdp(sharding: Any) -> bool:
    return isinstance(sharding, Mapping) and sharding.get("fsdp", 1) > 1


def _shard_by_callable(name: str, function: Any, model: nn.Module, fake: FakeWorld) -> nn.Module:
    try:
        sharded = imported(function, "sharding")(model, fake.mesh)
    except ModelBudgetError:
        raise
    except Exception as error:
        raise ModelBudgetError(
            f"{name}: training.sharding: {function} failed: {type(error).__name__}: {error}\n"
            "  it is called with the model and a function that makes the mesh, as make_mesh(dp=8, tp=2)"
        ) from error
    if not fake.size:
        raise ModelBudgetError(f"{name}: training.sharding: {function} made no mesh: call make_mesh(dp=8, tp=2) in it")
    return _with_comm_hooks(model if sharded is None else sharded)


def _shard_by_plan(
    name: str,
    model: nn.Module,
    dims: Mapping[str, int],
    fake: FakeWorld,
    half: torch.dtype | None,
    experts: Mapping[str, Any],
) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    if experts and shares_experts(model):
        return share_out(model, name, experts, fake, half)
    mesh = fake.mesh(**dims)
    if "tp" in dims:
        parallelize(model, mesh["tp"], name)
    if not {"fsdp", "zero2"}.isdisjoint(dims):
        options = full_sharding(mesh, dims, half)
        if "zero2" in dims:
            options["reshard_after_forward"] = False
        for module, placement in (_experts_dealt_out(model, name, experts, fake) if experts else {}).items():
            fully_shard(module, **{**options, "mesh": placement.rest})
        for block in repeated_blocks(model):
            fully_shard(block, **options)
        fully_shard(model, **options)
    elif "fsdp1" in dims:
        return shard_flat(model, repeated_blocks(model), mesh.get_group(), half)
    elif "tp" in dims and "ddp" in dims:
        _replicate(model, mesh["ddp"], _policy(half))
    elif "tp" not in dims:
        return _with_comm_hooks(nn.parallel.DistributedDataParallel(model, process_group=mesh.get_group()))
    return model


def _experts_dealt_out(
    model: nn.Module, name: str, experts: Mapping[str, Any], fake: FakeWorld
) -> dict[nn.Module, ExpertPlacement]:
    return expert_parallel(model, name, experts, fake.mesh(**expert_dims(experts)))


def full_sharding(mesh: Any, dims: Mapping[str, int], half: torch.dtype | None) -> dict[str, Any]:
    """What `fully_shard` is called with, to shard over `mesh` of these `dims`; `half` is what its policy casts to."""
    fully = "zero2" if "zero2" in dims else "fsdp"
    return {"mesh": mesh["ddp", fully] if "ddp" in dims else mesh[fully], "mp_policy": _policy(half)}


def _policy(half: torch.dtype | None) -> Any:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32 if half else None)


def _replicate(model: nn.Module, mesh: Any, policy: Any) -> None:
    try:
        from torch.distributed._composable.replicate_with_fsdp import replicate
    except ImportError as error:
        raise ModelBudgetError(
            f"training.sharding: torch {torch.__version__} cannot replicate what is cut by tensor parallelism: "
            "use fsdp and tp, or a later version"
        ) from error
    for block in repeated_blocks(model):
        replicate(block, mesh=mesh, mp_policy=policy)
    replicate(model, mesh=mesh, mp_policy=policy)


def _with_comm_hooks(model: nn.Module) -> nn.Module:
    """Replicas reduce their buckets by a hook that does what they do without one, and gives back what they expect."""

    def reduce(state: Any, bucket: Any) -> Any:
        torch.distributed.all_reduce(bucket.buffer(), group=state)
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    reduce.__annotations__.clear()  # torch reads them, and takes none for words
    for module in all_modules(model):
        if isinstance(module, nn.parallel.DistributedDataParallel):
            if not module._comm_hooks:
                module.register_comm_hook(module.process_group, reduce)
            module.logger = _Untimed(module.logger)
    return model


class _Untimed:
    """The logger of replicas without the times of their steps, which it warns that it cannot take."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)

    def set_runtime_stats_and_log(self) -> None:
        """There is no time to note."""
