"""What one of many ranks sends in a step, worked out by hand for ring algorithms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_modelbudget.backends.torch.distributed.fake_world import fake_world
from pytest_modelbudget.backends.torch.meta.collectives import sent_bytes
from pytest_modelbudget.backends.torch.model.build import abstract
from pytest_modelbudget.backends.torch.planning import make_plans
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import Training
from tests.backends.torch.rank_steps import BATCH, BLOCKS, FLOAT, IDS, ROOT, WHOLE, sharded
from tests.backends.torch.real_ranks import LAYERS, TOKENS, VOCABULARY, WIDTH, Transformer

ROWS = FLOAT * BATCH * TOKENS * WIDTH
LOGITS = FLOAT * BATCH * TOKENS * VOCABULARY


@pytest.mark.parametrize(
    ("sharding", "recipe", "expected"),
    [
        pytest.param(
            {"fsdp": 4},
            {},
            {"all_gather": FLOAT * (2 * BLOCKS + ROOT) * 3 // 4, "reduce_scatter": FLOAT * WHOLE * 3 // 4},
            id="FSDP2 gathers blocks twice and the root once",
        ),
        pytest.param(
            {"fsdp": 4, "casts": "policy"},
            {"precision": "bf16-mixed"},
            {"reduce_scatter": FLOAT * WHOLE * 3 // 4, "all_gather": 2 * (2 * BLOCKS + ROOT) * 3 // 4},
            id="FSDP2's policy gathers halves and reduces in full",
        ),
        pytest.param(
            {"fsdp": 4},
            {"precision": "bf16-mixed"},
            {"all_gather": FLOAT * (2 * BLOCKS + ROOT) * 3 // 4, "reduce_scatter": FLOAT * WHOLE * 3 // 4},
            id="autocast alone gathers in full",
        ),
        pytest.param(
            {"fsdp": 4},
            {"gradient_accumulation": 5},
            {"all_gather": FLOAT * 5 * (2 * BLOCKS + ROOT) * 3 // 4, "reduce_scatter": 5 * FLOAT * WHOLE * 3 // 4},
            id="each pass of an accumulation communicates",
        ),
        pytest.param(
            {"ddp": 2, "fsdp": 2},
            {},
            {
                "all_gather": FLOAT * (2 * BLOCKS + ROOT) // 2,
                "reduce_scatter": FLOAT * WHOLE // 2,
                "all_reduce": FLOAT * WHOLE // 2,
            },
            id="HSDP reduces the shards over replicas",
        ),
        pytest.param({"ddp": 4}, {}, {"all_reduce": 2 * FLOAT * WHOLE * 3 // 4}, id="replicas reduce everything"),
        pytest.param(
            {"ddp": 4},
            {"gradient_accumulation": 5, "no_sync": True},
            {"all_reduce": 2 * FLOAT * WHOLE * 3 // 4},
            id="the last pass of an accumulation communicates",
        ),
        pytest.param(
            {"zero2": 4},
            {"gradient_accumulation": 5, "no_sync": True},
            {"all_gather": FLOAT * 5 * (BLOCKS + ROOT) * 3 // 4, "reduce_scatter": FLOAT * WHOLE * 3 // 4},
            id="what stays gathered is gathered once a pass",
        ),
        pytest.param(
            {"fsdp1": 4},
            {},
            {"all_gather": FLOAT * (2 * BLOCKS + ROOT) * 3 // 4, "reduce_scatter": FLOAT * WHOLE * 3 // 4},
            id="FSDP1 sends what FSDP2 does",
        ),
        pytest.param(
            {"tp": 4},
            {},
            # forward: the table, and two layers by rows in each block; backward: q, k, v and up, and the head
            {"all_reduce": (1 + 2 * LAYERS + 4 * LAYERS + 1) * 2 * ROWS * 3 // 4, "all_gather": LOGITS * 3 // 4},
            id="tensor parallelism sends activations",
        ),
    ],
)
def test_bytes_sent(sharding: dict[str, int], recipe: dict[str, Any], expected: dict[str, int]) -> None:
    """What a rank sends in a step, counted by hand for ring algorithms."""
    sent = dict(sharded(Transformer, IDS, sharding, **recipe).communication)
    sent.pop("broadcast", None)  # of replicas' notes on their buckets
    assert sent == expected


def by_hand(model: nn.Module, make_mesh: Callable[..., Any]) -> None:
    """What a user's own code does."""
    from torch.distributed.fsdp import fully_shard

    mesh = make_mesh(dp=4)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def for_cuda(model: nn.Module, make_mesh: Callable[..., Any]) -> nn.Module:
    """Code that asks for its own mesh, of devices that are not there."""
    from torch.distributed.device_mesh import init_device_mesh

    make_mesh(dp=4)
    by_hand(model, lambda dp: init_device_mesh("cuda", (dp,)))
    return model


@pytest.mark.parametrize("function", [by_hand, for_cuda])
def test_own_function(function: Any) -> None:
    """A callable that shards as the plan does gives the same memory trace; it may change the model or return it."""
    planned = sharded(Transformer, IDS, {"fsdp": 4})
    own = sharded(Transformer, IDS, function)
    assert (own.memory_trace.peak(), own.communication, own.ranks) == (
        planned.memory_trace.peak(),
        planned.communication,
        4,
    )


def test_one_more_block_is_gathered_at_a_time_when_none_is_let_go_of() -> None:
    """`reshard_after_forward=False` keeps every block gathered until its backward pass, and gathers it once."""

    def kept(model: nn.Module, make_mesh: Callable[..., Any]) -> None:
        from torch.distributed.fsdp import fully_shard

        mesh = make_mesh(dp=4)
        for layer in model.layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=False)
        fully_shard(model, mesh=mesh)

    own = sharded(Transformer, IDS, kept)
    assert own.communication["all_gather"] == FLOAT * WHOLE * 3 // 4


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        pytest.param("all_reduce", 2 * 400 * 3 // 4, id="an all-reduce is a reduce-scatter and an all-gather"),
        pytest.param("reduce_scatter_tensor", 400 * 3 // 4, id="reduce-scatter: all but its own part"),
        pytest.param("all_to_all_single", 400 * 3 // 4, id="all-to-all: all but its own part"),
        pytest.param("broadcast", 400 * 3 // 4, id="broadcast, around the ring"),
        pytest.param("wait_tensor", None, id="to wait sends nothing"),
    ],
)
def test_bytes_of_a_collective(op: str, expected: int | None) -> None:
    """400 bytes over four ranks."""
    with fake_world() as world:
        group = world.mesh(x=4).get_group().group_name
        tensor = torch.empty(100, device="meta")
        sent = sent_bytes(f"_c10d_functional.{op}", (tensor, group), tensor)
    assert (sent.bytes if sent else None) == expected


def test_a_plan_is_of_one_rank() -> None:
    """The plan of a sharded recipe has its ranks, and the bytes that one of them sends."""
    with abstract():
        model = Transformer()
    recipes = [Training(sharding={"fsdp": 4}, loss="none"), Training(loss="none")]
    over, alone = make_plans(model, name="m", inputs=parse(IDS), sizes={}, recipes=recipes, built_here=True)
    assert (over.ranks, alone.ranks, alone.communication_bytes) == (4, 1, None)
    assert over.communication_bytes == FLOAT * (2 * BLOCKS + ROOT + WHOLE) * 3 // 4
    assert over.peak_bytes is not None
    assert alone.peak_bytes is not None
    assert over.peak_bytes < alone.peak_bytes
    with pytest.raises(ModelBudgetError, match="one rank alone"):
        make_plans(
            model, name="m", inputs=parse(IDS), sizes={}, recipes=[Training(sharding={"fsdp": 1})], built_here=True
        )
