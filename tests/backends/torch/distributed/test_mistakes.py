"""Mistakes in how a model is sharded are told with their cure, and a plan leaves nothing behind."""

from __future__ import annotations

import sys
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import nn

from pytest_modelbudget.backends.torch.distributed.rank import record_sharded
from pytest_modelbudget.backends.torch.model.build import abstract
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import Training
from tests.backends.torch.rank_steps import IDS, mlp, sharded
from tests.backends.torch.real_ranks import Transformer
from tests.versions import since


def test_nothing_is_left_behind() -> None:
    """No process group, no patch, no hook; the model is as it was."""
    from torch.distributed import device_mesh
    from torch.distributed.fsdp._fully_shard import _fsdp_init
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
    from torch.distributed.tensor._sharding_prop import ShardingPropagator
    from torch.nn.parallel import distributed

    def state() -> list[Any]:
        places = (vars(place) for place in (device_mesh, _fsdp_init, FSDPParamGroup, ShardingPropagator, distributed))
        return [sys.excepthook, torch.UntypedStorage.resize_, *[dict(place) for place in places]]

    with abstract():
        model = Transformer()
    before, parameters = state(), dict(model.named_parameters())
    for sharding in ({"fsdp": 4}, {"fsdp": 2, "tp": 2}, {"ddp": 2}):
        record_sharded(RunnableModel("model", model, parse(IDS)), {}, Training(sharding=sharding, loss="none"))
        with pytest.raises(ModelBudgetError):
            sharded(mlp, "float32[2, 7]", sharding)
    assert state() == before
    assert not torch.distributed.is_initialized()
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert not any(parameter.grad is not None for parameter in model.parameters())
    ours = [
        name
        for name, module in list(sys.modules.items())
        if name.startswith("torch.distributed")
        for value in list(vars(module).values())
        if type(value) is FunctionType and value.__module__.startswith("pytest_modelbudget")
    ]
    assert ours == []


def nothing(model: nn.Module, make_mesh: Any) -> None:
    """A function that does not shard."""


def broken(model: nn.Module, make_mesh: Any) -> None:
    """A function with a mistake in it."""
    raise KeyError("layers")


def two_meshes(model: nn.Module, make_mesh: Any) -> None:
    """Meshes of two sizes."""
    make_mesh(dp=2)
    make_mesh(dp=4)


@pytest.mark.parametrize(
    ("sharding", "says"),
    [
        pytest.param({"tp": 2}, "no layer has a rule for tensor parallelism", id="no plan fits"),
        pytest.param({"fsdp": 1}, "one rank alone", id="one rank"),
        pytest.param(nothing, "made no mesh: call make_mesh", id="a function that does nothing"),
        pytest.param(broken, "failed: KeyError: 'layers'", id="a function that fails"),
        pytest.param(two_meshes, "a mesh of 4 ranks in a world of 2", id="two worlds"),
        pytest.param("no.such.module:shard", "No module named", id="a function that is not there"),
    ],
)
def test_mistakes(sharding: Any, says: str) -> None:
    """Each is told with the model, or the place, and the cure."""
    with pytest.raises(ModelBudgetError, match="sharding") as caught:
        sharded(mlp, "float32[2, 8]", sharding)
    assert says in str(caught.value)


def test_heads_that_do_not_divide() -> None:
    """The four heads of attention cannot be cut for eight ranks: the error says what is asked of the model."""
    with pytest.raises(ModelBudgetError, match="it must divide them") as caught:
        sharded(Transformer, IDS, {"tp": 8})
    assert "unflatten" in str(caught.value)


def test_optimizers_of_whole_matrices_are_not_dealt_out() -> None:
    """What a rank's share of them would raise or take is not that of all."""
    with pytest.raises(ModelBudgetError, match="adam-mini with sharding: zero1 is not planned"):
        sharded(mlp, "float32[2, 8]", {"zero1": 2}, optimizer="adam-mini")


@since("torch", "2.14", "earlier releases were not looked at")
def test_optimizers_that_torch_does_not_run_on_sharded_parameters() -> None:
    """torch's Adafactor fails on them in a real step as well; on whole ones it runs."""
    with pytest.raises(ModelBudgetError, match="adafactor does not run on sharded parameters") as caught:
        sharded(mlp, "float32[2, 8]", {"fsdp": 2}, optimizer="adafactor")
    assert "write another, as adamw, or shard by zero1 or fsdp1" in str(caught.value)
    assert sharded(mlp, "float32[2, 8]", {"zero1": 2}, optimizer="adafactor").ranks == 2


def test_a_group_of_the_users_own_is_left_alone() -> None:
    """A process that is in a process group is told to plan elsewhere, and stays in it."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        with pytest.raises(ModelBudgetError, match="has a process group already"):
            sharded(mlp, "float32[2, 8]", {"fsdp": 2})
        assert torch.distributed.get_world_size() == 2
    finally:
        torch.distributed.destroy_process_group()
        sys.excepthook = sys.__excepthook__
