"""What one of many ranks has in memory: timelines and bytes worked out by hand; no processes, no GPU."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from pytest_modelbudget.backends.torch.model.build import abstract
from pytest_modelbudget.backends.torch.planning import make_plans
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import MemoryTrace, Training
from tests.backends.torch.rank_steps import FLOAT, IDS, TABLE, WHOLE, lasting, mlp, sharded
from tests.backends.torch.real_ranks import LAYERS, TOKENS, WIDTH, Transformer
from tests.versions import since


def test_two_layers_over_two_ranks_event_by_event() -> None:
    """Gathered, used, let go of; gradients packed, reduced and kept as a half: every byte of the step, by hand."""
    sharded_step = sharded(mlp, "float32[2, 8]", {"fsdp": 2})
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
    first_op, *rest = step(sharded_step.memory_trace)
    events = rest if first_op == ("aten.empty", begin + whole) else [first_op, *rest]
    assert events in (by_hand(0), by_hand(second))
    assert sharded_step.memory_trace.peak() == forward + 2 * hidden == 3040
    assert sharded_step.communication == {"all_gather": whole // 2, "reduce_scatter": whole // 2}
    assert sharded_step.ranks == 2


def step(memory_trace: MemoryTrace) -> list[tuple[str, int]]:
    """The measured step: operators with the bytes alive, in the words of all versions of torch.

    Without those that only read a number or mark a stream.
    """
    pairs = list(zip(memory_trace.events, memory_trace.alive(), strict=True))[memory_trace.measured :]
    names = [(event.op.removesuffix("_mixed_dtype").replace("new_empty", "empty"), alive) for event, alive in pairs]
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


@pytest.mark.parametrize("passes", [2, 5])
def test_replicas_make_their_buckets_anew_once(passes: int) -> None:
    """In the second pass of all, which is none of the step that is repeated: what it reserves has one set of them."""
    with abstract():
        model = nn.Sequential(*(nn.Linear(2_000, 2_000, bias=False) for _ in range(4)))
    recipes = [
        Training(batch=1, loss="none", zero_grad="after", gradient_accumulation=passes, sharding=sharding)
        for sharding in ({"ddp": 2}, None)
    ]
    replicas, alone = make_plans(
        model, name="model", inputs=parse("float32[B, 2000]"), sizes={"B": 1}, recipes=recipes, built_here=True
    )
    assert replicas.reserved_bytes is not None
    assert alone.reserved_bytes is not None
    buckets = FLOAT * 4 * 2_000**2
    assert buckets <= replicas.reserved_bytes - alone.reserved_bytes < 1.1 * buckets


def test_recomputed_blocks_lower_the_peak() -> None:
    """Checkpointing runs inside of FSDP2's hooks: nothing is gathered for it."""
    wide = f"int64[64, {TOKENS}]"
    kept, again = (sharded(Transformer, wide, {"fsdp": 2}, checkpointing=how) for how in ("none", "blocks"))
    assert again.memory_trace.peak() < kept.memory_trace.peak()
    assert again.communication == kept.communication


@since("torch", "2.8", "before, FSDP2 takes weights of one dtype alone, and says so")
def test_adapters_of_another_dtype() -> None:
    """LoRA's float32 pairs among weights in bfloat16 are gathered with them, as bytes."""
    recipe = {"precision": "bf16", "lora": {"rank": 4, "targets": ["q_proj"]}}
    sharded_step = sharded(Transformer, IDS, {"fsdp": 2}, **recipe)
    pairs = LAYERS * 2 * 4 * WIDTH * FLOAT
    assert lasting(sharded_step.memory_trace)["param"] == (2 * WHOLE + pairs) // 2
    assert lasting(sharded_step.memory_trace)["gradient"] == pairs // 2


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


def test_states_are_dealt_out_whole() -> None:
    """ZeRO-1: parameters and gradients are whole, and of the states a rank has those of its parameters, largest first."""
    held = lasting(sharded(mlp, "float32[2, 8]", {"zero1": 2}).memory_trace)
    sizes = sorted((parameter.numel() for parameter in mlp().parameters()), reverse=True)
    shares = [0, 0]
    for size in sizes:
        shares[shares.index(min(shares))] += size
    assert (held["param"], held["optimizer"]) == (FLOAT * sum(sizes), 2 * FLOAT * max(shares))


def test_a_share_of_paged_states_is_said_to_be_in_unified_memory() -> None:
    """Of two states of 8 bits of four matrices, a rank has those of two, and tells it as one rank alone does."""

    def build() -> nn.Module:
        return nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(4)))

    [note] = sharded(build, "float32[1, 512]", {"zero1": 2}, optimizer="paged-adamw-8bit").memory_trace.notes
    assert note.startswith("1.000 MiB of paged optimizer states are in unified memory")
