"""Context parallelism: a rank's part of every sequence, and attention as torch's own ring, against hand sums and real ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_modelbudget.backends.torch.distributed.rank import ShardedStep
from pytest_modelbudget.backends.torch.memory.repeating import RepeatingRecorder
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import MemoryTrace
from tests.backends.torch import real_ranks, real_ring
from tests.backends.torch.rank_steps import BATCH, BLOCK, FLOAT, TABLE, WIDTH, lasting, on_real_ranks, sharded
from tests.versions import since

pytestmark = since("torch", "2.14", "ring attention with this release's options")

TOKENS = 512
IDS = f"int64[{BATCH}, {TOKENS}]"


class Attention(real_ranks.Attention):
    """Attention in one function, with what is given to it."""

    options: ClassVar[dict[str, Any]] = {"is_causal": True}
    function: ClassVar[Any] = staticmethod(functional.scaled_dot_product_attention)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, 16)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(self.attend(q, k, v).transpose(1, 2).flatten(2))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(q, k, v, **self.options)


class NotCausal(Attention):
    options: ClassVar[dict[str, Any]] = {}


class Masked(Attention):
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
        return functional.scaled_dot_product_attention(q, k, v, mask)


class Imported(Attention):
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.function(q, k, v, is_causal=True)


class Grouped(Attention):
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(q, k[:, ::2], v[:, ::2], is_causal=True, enable_gqa=True)


def transformer(attention: Callable[[], nn.Module] = Attention, layers: int = 1) -> nn.Module:
    """The small language model with another attention, and fewer layers."""
    model = real_ranks.Transformer()
    del model.layers[layers:]
    for layer in model.layers:
        layer.attention = attention()
    return model


def ring(sharding: dict[str, Any], build: Callable[[], nn.Module] = transformer, **recipe: Any) -> ShardedStep:
    """A step of one of the ranks that share sequences."""
    return sharded(build, IDS, sharding, **recipe)


KEYS_AND_VALUES = 2 * FLOAT * BATCH * TOKENS // 4 * WIDTH
"""Bytes of those of one of four ranks."""


@pytest.mark.parametrize(
    ("sharding", "ranks", "shards", "sent"),
    [
        pytest.param({"cp": 4}, 4, 1, {"all_gather": (3 + 3) * KEYS_AND_VALUES, "all_to_all": 4 * KEYS_AND_VALUES}, id="replicas of the parameters"),
        pytest.param(
            {"cp": 4, "fsdp": 1, "rotate": "alltoall"}, 4, 4, {"all_to_all": (3 + 3 + 4) * KEYS_AND_VALUES},
            id="shards over the ranks of a sequence",
        ),
        pytest.param({"ddp": 2, "fsdp": 2, "cp": 2}, 8, 4, {"all_to_all": 2 * 2 * KEYS_AND_VALUES}, id="shards over both, and replicas of them"),
    ],
)  # fmt: skip
def test_a_rank_that_shares_sequences(sharding: dict[str, Any], ranks: int, shards: int, sent: dict[str, int]) -> None:
    """It has its part of the parameters among all ranks; inputs keep the memory of the whole.

    Keys and values go to the other ranks in each pass, their gradients go around the whole ring.
    """
    step = ring(sharding)
    part = FLOAT * (2 * TABLE + BLOCK + 2 * WIDTH) // shards
    held = lasting(step.memory_trace)
    assert (held["param"], held["gradient"], held["optimizer"]) == (part, part, 2 * part)
    assert held["input"] == 8 * BATCH * TOKENS
    assert step.ranks == ranks
    assert {kind: step.communication[kind] for kind in sent} == sent


def test_a_ring_keeps_what_attention_of_its_tokens_keeps() -> None:
    """Of the other ranks nothing is kept; the merged result is laid out by heads, so that the next layer has a copy."""
    alone = sharded(transformer, f"int64[{BATCH}, {TOKENS // 2}]", {"ddp": 2}).memory_trace
    copy = FLOAT * BATCH * TOKENS // 2 * WIDTH
    assert kept(ring({"cp": 2}).memory_trace) == kept(alone) + copy


def test_rings_of_later_layers_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """With other storages they are what they would have been: events, roles, work and what is sent; and most are."""
    ran: list[str] = []
    monkeypatch.setattr(RepeatingRecorder, "_relative", noting(ran, RepeatingRecorder._relative))
    sharding = {"cp": 2, "fsdp": 1, "rotate": "alltoall"}
    repeated = ring(sharding, partial(transformer, layers=4))
    monkeypatch.setattr(RepeatingRecorder, "repeating", lambda self, function, args, kwargs: function(*args, **kwargs))
    each_run = ring(sharding, partial(transformer, layers=4))
    assert repeated == each_run
    assert len(ran) == 8  # of 16: two of each pass, in a step whose work is noted and one whose work is not


def noting(calls: list[str], original: Callable[..., Any]) -> Callable[..., Any]:
    """`original`, whose calls are counted."""

    def noted(*args: Any) -> Any:
        calls.append(original.__name__)
        return original(*args)

    return noted


def kept(memory_trace: MemoryTrace) -> int:
    """Bytes that the forward pass leaves to the backward pass."""
    events, alive = memory_trace.events, list(memory_trace.alive())
    first = memory_trace.measured
    backward = next(index for index in range(first, len(events)) if events[index].phase == "backward")
    return alive[backward] - alive[first]


@pytest.mark.parametrize(
    ("attention", "recipe", "says"),
    [
        pytest.param(real_ranks.Attention, {}, "a softmax of 256 x 256 scores is attention among the tokens", id="own"),
        pytest.param(NotCausal, {}, "it is not causal", id="of all with all"),
        pytest.param(Masked, {}, "it has a mask: pass is_causal=True", id="with a mask"),
        pytest.param(Imported, {}, "it was imported by its name", id="by another name"),
        pytest.param(Grouped, {}, "no fused kernel takes its operands", id="grouped heads in float32"),
        pytest.param(lambda: nn.Linear(WIDTH, WIDTH), {}, "calls no scaled_dot_product_attention", id="none"),
        pytest.param(Attention, {"kernels": "cpu"}, "ring attention has no kernel for the CPU", id="on a CPU"),
    ],
)
def test_attention_that_is_no_ring(attention: Any, recipe: dict[str, Any], says: str) -> None:
    """What each rank would do with its own tokens alone is refused, with the reason."""
    with pytest.raises(ModelBudgetError, match=r"training\.sharding: cp") as caught:
        sharded(lambda: transformer(attention), IDS, {"cp": 2}, **recipe)
    assert says in str(caught.value)


def test_sequences_that_do_not_divide() -> None:
    """Each rank gets two pieces; torch's function is its own again, and so is how it rotates."""
    from torch.distributed.tensor.experimental._attention import _cp_options

    before = functional.scaled_dot_product_attention, repr(_cp_options)
    with pytest.raises(ModelBudgetError, match="in 6 pieces, two for each rank, and 512 does not divide"):
        ring({"cp": 3, "rotate": "alltoall"})
    assert (functional.scaled_dot_product_attention, repr(_cp_options)) == before


def test_pieces_that_the_kernel_for_float32_rounds_up() -> None:
    """16 tokens have 32 statistics, which torch's ring does not cut; flash attention keeps one for each."""
    step = partial(sharded, lambda: transformer(Attention), f"int64[{BATCH}, 64]", {"cp": 2})
    with pytest.raises(ModelBudgetError, match="a piece has 16: give a multiple of 128 tokens"):
        step()
    assert step(precision="bf16").memory_trace.peak()


RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "efficient": ({}, {}),
    "efficient, alltoall": ({"rotate": "alltoall"}, {}),
    "efficient, recomputed": ({}, {"checkpointing": "blocks"}),
    "efficient, fsdp": ({"fsdp": 1}, {}),
    "flash": ({"fsdp": 1}, {"precision": "bf16"}),
}
BY_TWO = (*RECIPES, "sequence parallel")


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.parametrize(
    ("ranks", "cases"), [(2, BY_TWO), (4, ("efficient, alltoall", "efficient, fsdp"))], ids=["two", "four"]
)
def test_against_real_ranks(ranks: int, cases: tuple[str, ...]) -> None:
    """The peak of a step and what is alive after it, on real ranks whose kernel of attention alone stands for a GPU's.

    What that kernel takes for itself is left out; layer norm keeps its statistics in half precision on the CPU. The
    rank that is planned is one that needs most.
    """
    measured, whole = measured_on(ranks, cases), partial(transformer, layers=real_ranks.LAYERS)
    for case in RECIPES.keys() & cases:
        sharding, recipe = RECIPES[case]
        step = ring({"cp": ranks, **sharding}, whole, foreach=True, **recipe)
        trace = replace(step.memory_trace, events=tuple(replace(e, workspace=0) for e in step.memory_trace.events))
        counters = FLOAT * len(list(whole().parameters()))  # of steps, which are on the CPU
        first, *others = measured[case]
        assert list(trace.alive())[-1] + counters == first["after"], case
        assert trace.peak() + counters == pytest.approx(first["peak"], rel=0.002), case
        assert all(rank["peak"] <= first["peak"] for rank in others), case


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_norms_by_sequence_against_real_ranks() -> None:
    """A function of the user's own may have norms work on parts of sequences, with tensor parallelism in between."""
    [first, _] = measured_on(2, BY_TWO)["sequence parallel"]
    step = sharded(
        real_ranks.Transformer, f"int64[{BATCH}, {real_ranks.TOKENS}]", real_ring.norms_by_sequence, kernels="cpu",
        foreach=True,
    )  # fmt: skip
    assert list(step.memory_trace.alive())[-1] == first["after"]
    assert step.memory_trace.peak() == pytest.approx(first["peak"], rel=0.001)


@cache
def measured_on(ranks: int, cases: tuple[str, ...]) -> dict[str, list[dict[str, int]]]:
    """What each of real ranks measures of each case."""
    measured: dict[str, list[dict[str, int]]] = on_real_ranks(real_ring, ranks, cases)
    return measured
