"""Training on many ranks: timelines and bytes worked out by hand, and what is left behind; no processes, no GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import nn

from pytest_modelbudget.backends.torch.distributed.fake_world import fake_world
from pytest_modelbudget.backends.torch.distributed.rank import ShardedStep, record_sharded
from pytest_modelbudget.backends.torch.meta.collectives import sent_bytes
from pytest_modelbudget.backends.torch.model.build import abstract
from pytest_modelbudget.backends.torch.planning import make_plans
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import MemoryTrace, Training
from tests.backends.torch.real_ranks import LAYERS, TOKENS, VOCABULARY, WIDTH, Transformer
from tests.versions import since

FLOAT = 4
BATCH = 2
TABLE = VOCABULARY * WIDTH
BLOCK = 4 * WIDTH * WIDTH + 8 * WIDTH * WIDTH + 4 * WIDTH
"""Parameters of a block: four projections, two layers of four times the width, two norms."""
WHOLE = 2 * TABLE + LAYERS * BLOCK + 2 * WIDTH
IDS = f"int64[{BATCH}, {TOKENS}]"


def mlp() -> nn.Module:
    """Two layers, 8 to 16 to 4 features: 192 parameters."""
    return nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False))


def sharded(build: Callable[[], nn.Module], inputs: Any, sharding: Any, **recipe: Any) -> ShardedStep:
    """A step of training of a model on meta."""
    with abstract():
        model = build()
    recipe = {"loss": "none", **recipe}
    return record_sharded(RunnableModel("model", model, parse(inputs)), {}, Training(sharding=sharding, **recipe))


def lasting(memory_trace: MemoryTrace) -> dict[str, int]:
    """Bytes by role at the end of the last step, of what has a role."""
    roles = {item.storage: item.role for item in memory_trace.held} | dict(memory_trace.roles)
    sizes = {item.storage: item.bytes for item in memory_trace.held}
    for event in memory_trace.events:
        for number in event.freed:
            sizes.pop(number, None)
        sizes.update(event.made)
    sums: dict[str, int] = {}
    for number, size in sizes.items():
        if number in roles:
            sums[roles[number]] = sums.get(roles[number], 0) + size
    return sums


def test_two_layers_over_two_ranks_event_by_event() -> None:
    """Gathered, used, let go of; gradients packed, reduced and kept as a half: every byte of the step, by hand."""
    found = sharded(mlp, "float32[2, 8]", {"fsdp": 2})
    whole, first, second = 768, 512, 256
    lasting_bytes = whole // 2 + 64 + 2 * whole // 2  # half the parameters, the input, half of two states
    hidden, result = 2 * 16 * FLOAT, 2 * 4 * FLOAT
    begin = lasting_bytes + result  # of the step before
    forward = begin + 2 * whole  # gathered into one buffer, and copied out of it, parameter by parameter
    backward = begin + whole + result  # the buffer is gone, and the old result; there is a gradient of the new one
    packed = begin + whole + result  # parameters are gone, too, and as many bytes of gradients are packed

    def by_hand(late: int) -> list[tuple[str, int]]:
        return [
            ("fsdp.all_gather_copy_in", begin + whole),
            ("c10d._allgather_base_", begin + whole),
            ("storage.resize_", begin + whole + first),
            ("storage.resize_", forward),
            ("fsdp.split_with_sizes_copy", forward),
            ("aten.mm", forward + hidden),
            ("aten.relu", forward + 2 * hidden),
            ("aten.mm", forward + hidden + result),  # the gradient of ReLU needs its result alone
            ("aten.empty_like", backward + hidden),
            ("aten.mm", backward + hidden + second),
            ("aten.mm", backward + 2 * hidden + second),
            ("aten.threshold_backward", backward + 3 * hidden + second),
            ("aten.mm", backward + hidden + second + first),
            ("aten.empty", packed + whole),
            ("fsdp.chunk_cat", packed + whole),
            ("aten.empty", packed + whole // 2 + late),
            ("c10d._reduce_scatter_base_", packed + whole // 2 + late),
            ("aten._foreach_add_", begin + whole // 2),
            *[(f"aten._foreach_{name}_", begin + whole // 2) for name in ("mul", "lerp", "mul", "addcmul")],
            ("aten._foreach_sqrt", begin + whole),
            *[(f"aten._foreach_{name}_", begin + whole) for name in ("div", "add", "addcdiv")],
        ]

    # torch 2.6 and 2.13 hold the gradient that is packed last until it has been reduced; up to 2.8 the buffer is made inside
    first_op, *rest = step(found.memory_trace)
    events = rest if first_op == ("aten.empty", begin + whole) else [first_op, *rest]
    assert events in (by_hand(0), by_hand(second))
    assert found.memory_trace.peak() == forward + 2 * hidden == 3040
    assert found.communication == {"all_gather": whole // 2, "reduce_scatter": whole // 2}
    assert found.ranks == 2


def step(memory_trace: MemoryTrace) -> list[tuple[str, int]]:
    """The measured step: operators with the bytes alive, in the words of all versions of torch.

    Without those that only read a number or mark a stream.
    """
    found = list(zip(memory_trace.events, memory_trace.alive(), strict=True))[memory_trace.measured :]
    names = [(event.op.removesuffix("_mixed_dtype").replace("new_empty", "empty"), alive) for event, alive in found]
    return [(name, alive) for name, alive in names if name and "_local_scalar" not in name and "_stream" not in name]


@pytest.mark.parametrize(
    ("sharding", "shards"),
    [
        pytest.param({"fsdp": 2}, 2, id="FSDP2 over 2"),
        pytest.param({"fsdp": 8}, 8, id="FSDP2 over 8"),
        pytest.param({"ddp": 4, "fsdp": 2}, 2, id="4 replicas of 2 shards"),
        pytest.param({"zero2": 2}, 2, id="shards that stay gathered for a step"),
        pytest.param({"ddp": 4}, 1, id="replicas hold everything"),
    ],
)
@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("bf16", 2)])
def test_a_rank_holds_its_part(sharding: dict[str, int], shards: int, precision: str, size: int) -> None:
    """Parameters, gradients and two states of Adam: four times the bytes of the parameters, divided by the shards."""
    part = size * WHOLE // shards
    held = lasting(sharded(Transformer, IDS, sharding, precision=precision).memory_trace)
    expected = {"param": part, "gradient": part, "optimizer": 2 * part}
    assert {role: held[role] for role in expected} == expected


def test_tensor_parallelism_keeps_the_gradient_of_the_table_whole() -> None:
    """Layers are cut, norms are not; torch gives the gradient of a table of tokens to every rank (real ranks agree)."""
    norms = (4 * LAYERS + 2) * WIDTH
    part = FLOAT * ((WHOLE - norms) // 2 + norms)
    held = lasting(sharded(Transformer, IDS, {"tp": 2}).memory_trace)
    assert held["param"] == part
    assert held["optimizer"] == 2 * part
    assert held["gradient"] == part + FLOAT * TABLE // 2


def test_fsdp_over_tensor_parallelism_divides_by_both() -> None:
    """Of what is cut a rank holds a quarter, of the norms a half; gradients alike."""
    norms = (4 * LAYERS + 2) * WIDTH
    part = FLOAT * ((WHOLE - norms) // 4 + norms // 2)
    held = lasting(sharded(Transformer, IDS, {"fsdp": 2, "tp": 2}).memory_trace)
    assert (held["param"], held["gradient"], held["optimizer"]) == (part, part, 2 * part)


BLOCKS, ROOT = LAYERS * BLOCK, 2 * TABLE + 2 * WIDTH
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
            {"gradient_accumulation": 2},
            {"all_gather": FLOAT * (4 * BLOCKS + 2 * ROOT) * 3 // 4, "reduce_scatter": 2 * FLOAT * WHOLE * 3 // 4},
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
            {"gradient_accumulation": 3, "no_sync": True},
            {"all_reduce": 2 * FLOAT * WHOLE * 3 // 4},
            id="the last pass of an accumulation communicates",
        ),
        pytest.param(
            {"zero2": 4},
            {"gradient_accumulation": 2, "no_sync": True},
            {"all_gather": FLOAT * 2 * (BLOCKS + ROOT) * 3 // 4, "reduce_scatter": FLOAT * WHOLE * 3 // 4},
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
    found = dict(sharded(Transformer, IDS, sharding, **recipe).communication)
    found.pop("broadcast", None)  # of replicas' notes on their buckets
    assert found == expected


def test_sharding_keeps_autocast() -> None:
    """What is kept for the backward pass is to the byte what one rank alone keeps; FSDP2's policy casts more of it."""
    inputs, recipe = f"int64[64, {TOKENS}]", {"precision": "bf16-mixed", "loss": "cross_entropy"}
    shardings: list[Any] = [None, {"fsdp": 4}, {"fsdp": 4, "casts": "policy"}]
    whole, cut, policy = (activations(inputs, sharding, **recipe) for sharding in shardings)
    assert cut == whole > policy


def activations(inputs: str, sharding: Any, **recipe: Any) -> int:
    """Bytes of activations at the peak of a planned step."""
    with abstract():
        model = Transformer()
    [plan] = make_plans(
        model, name="model", inputs=parse(inputs), sizes={}, recipes=[Training(sharding=sharding, **recipe)],
        built_here=True,
    )  # fmt: skip
    return plan.by_role()["activation"]


def test_replicas_hold_buckets() -> None:
    """DistributedDataParallel keeps a second set of gradients, in buckets, for as long as it lives."""
    assert lasting(sharded(Transformer, IDS, {"ddp": 2}).memory_trace)["gathered"] == FLOAT * WHOLE


def test_recomputed_blocks_lower_the_peak() -> None:
    """Checkpointing runs inside of FSDP2's hooks: nothing is gathered for it."""
    wide = f"int64[64, {TOKENS}]"
    kept, again = (sharded(Transformer, wide, {"fsdp": 2}, checkpointing=how) for how in ("none", "blocks"))
    assert again.memory_trace.peak() < kept.memory_trace.peak()
    assert again.communication == kept.communication


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


@since("torch", "2.8", "before, FSDP2 takes weights of one dtype alone, and says so")
def test_adapters_of_another_dtype() -> None:
    """LoRA's float32 pairs among weights in bfloat16 are gathered with them, as bytes."""
    recipe = {"precision": "bf16", "lora": {"rank": 4, "targets": ["q_proj"]}}
    found = sharded(Transformer, IDS, {"fsdp": 2}, **recipe)
    pairs = LAYERS * 2 * 4 * WIDTH * FLOAT
    assert lasting(found.memory_trace)["param"] == (2 * WHOLE + pairs) // 2
    assert lasting(found.memory_trace)["gradient"] == pairs // 2


def test_batch_norm_counts_on_the_host() -> None:
    """Integers in buffers keep their values; FSDP2 and replicas run with them."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 4))

    for sharding in ({"fsdp": 2}, {"ddp": 2}):
        assert sharded(build, "float32[2, 3, 8, 8]", sharding).memory_trace.peak() > 0


def test_tied_weights_stay_tied() -> None:
    """A head that is the table counts once under every sharding."""

    def build() -> nn.Module:
        model = Transformer()
        model.lm_head.weight = model.embed_tokens.weight
        return model

    for sharding, ranks in (({"fsdp": 2}, 2), ({"tp": 2}, 2)):
        norms = (4 * LAYERS + 2) * WIDTH if "tp" in sharding else 0
        expected = FLOAT * ((WHOLE - TABLE - norms) // ranks + norms)
        assert lasting(sharded(build, IDS, sharding).memory_trace)["param"] == expected


def test_the_models_own_plan_comes_first() -> None:
    """A Hugging Face model says which layers are cut; what it leaves out stays whole."""

    def build() -> nn.Module:
        model = Transformer()
        model.tp_plan = {"layers.*.up_proj": "colwise", "layers.*.down_proj": "rowwise"}
        return model

    cut = LAYERS * 8 * WIDTH * WIDTH
    assert lasting(sharded(build, IDS, {"tp": 2}).memory_trace)["param"] == FLOAT * (WHOLE - cut // 2)


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
    with fake_world() as found:
        group = found.mesh(x=4).get_group().group_name
        given = torch.empty(100, device="meta")
        one = sent_bytes(f"_c10d_functional.{op}", (given, group), given)
    assert (one.bytes if one else None) == expected


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


def test_heads_that_do_not_divide() -> None:
    """The four heads of attention cannot be cut for eight ranks: the error says what is asked of the model."""
    with pytest.raises(ModelBudgetError, match="it must divide them") as caught:
        sharded(Transformer, IDS, {"tp": 8})
    assert "unflatten" in str(caught.value)


def test_states_are_dealt_out_whole() -> None:
    """ZeRO-1: parameters and gradients are whole, and of the states a rank has those of its parameters, largest first."""
    held = lasting(sharded(mlp, "float32[2, 8]", {"zero1": 2}).memory_trace)
    sizes = sorted((parameter.numel() for parameter in mlp().parameters()), reverse=True)
    shares = [0, 0]
    for size in sizes:
        shares[shares.index(min(shares))] += size
    assert (held["param"], held["optimizer"]) == (FLOAT * sum(sizes), 2 * FLOAT * max(shares))


def test_optimizers_of_whole_matrices_are_not_dealt_out() -> None:
    """What a rank's share of them would raise or take is not that of all."""
    with pytest.raises(ModelBudgetError, match="adam-mini with sharding: zero1 is not planned"):
        sharded(mlp, "float32[2, 8]", {"zero1": 2}, optimizer="adam-mini")


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
