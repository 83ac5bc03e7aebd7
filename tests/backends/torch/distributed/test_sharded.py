"""Models sharded by `fully_shard` and by tensor parallelism, as one of eight ranks that talk to nobody sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Flops, Summary

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this build of torch has no torch.distributed")
Count = Callable[..., Summary]

RANKS = 8
PARAMS = (30 * 50 + 50) + (50 * 10 + 10)  # 50 and 10 rows do not divide by the ranks


def mlp(device: str) -> nn.Sequential:
    with torch.device(device):
        return nn.Sequential(nn.Linear(30, 50), nn.ReLU(), nn.Linear(50, 10))


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    """Eight ranks without processes: collectives do nothing."""
    fake_pg = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    dist.init_process_group("fake", store=fake_pg.FakeStore(), rank=0, world_size=RANKS)
    yield dist.device_mesh.init_device_mesh("cpu", (RANKS,))
    dist.destroy_process_group()


def fsdp(mesh: Any, device: str) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    model = mlp(device)
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    return model


def tensor_parallel(mesh: Any, device: str) -> nn.Module:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    return parallelize_module(mlp(device), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


@pytest.mark.parametrize("built", [False, True], ids=["live", "built"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("shard", [fsdp, tensor_parallel])
def test_a_sharded_model_is_counted_whole(
    shard: Callable[[Any, str], nn.Module], device: str, built: bool, mesh: Any, count: Count, count_live: Count
) -> None:
    """Lightning#20151: an FSDP or DTensor model showed 0 params; here all elements, bytes and FLOPs, and a note."""
    if built:
        summary = count(lambda: shard(mesh, device), "float32[B, 30]", B=4)
    else:
        summary = count_live(shard(mesh, device), "float32[B, 30]", B=4)
    assert (summary.params, summary.weight_bytes) == (PARAMS, 4 * PARAMS)
    assert summary.flops == Flops(2 * 4 * (30 * 50 + 50 * 10))
    assert [(row.path, row.type, row.output_text) for row in summary.leaves] == [
        ("0", "Linear", "[B, 50]"),
        ("1", "ReLU", "[B, 50]"),
        ("2", "Linear", "[B, 10]"),
    ]
    assert any(f"sharded over {RANKS} ranks" in note for note in summary.notes)


@pytest.mark.parametrize("shard", [fsdp, tensor_parallel])
def test_the_users_sharded_model_is_left_as_it_is(
    shard: Callable[[Any, str], nn.Module], mesh: Any, count_live: Count
) -> None:
    """Classes, hooks, placements and the local parts are those of before."""
    model = shard(mesh, "cpu")
    before = _state(model)
    count_live(model, "float32[B, 30]", B=4)
    assert _state(model) == before


def _state(model: nn.Module) -> list[object]:
    modules = [(type(one), dict(one._forward_pre_hooks), dict(one._forward_hooks)) for one in model.modules()]
    shards = [
        (
            type(one),
            id(one),
            one.placements,
            one.device_mesh.size(),
            one.to_local().data_ptr(),
            one.to_local().sum().item(),
        )
        for one in model.parameters()
    ]
    return [modules, shards]


def test_flat_parameters_are_an_error(count_live: Count) -> None:
    """The first FSDP keeps this rank's part in one flat tensor: no number is better than a part of it."""
    parallel = pytest.importorskip("torch.distributed.fsdp").FullyShardedDataParallel
    wrapped = parallel.__new__(parallel)
    nn.Module.__init__(wrapped)  # its own constructor refuses to run without a GPU
    wrapped._modules["_fsdp_wrapped_module"] = mlp("cpu")
    with pytest.raises(ModelBudgetError, match=r"before it is wrapped, or shard it with fully_shard"):
        count_live(wrapped, "float32[B, 30]", B=4)
