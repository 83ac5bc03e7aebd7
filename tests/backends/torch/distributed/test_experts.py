"""Expert parallelism: a rank's experts, and rows on their way to them and back, against hand sums and real ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_modelbudget.backends.torch.distributed.rank import ShardedStep
from pytest_modelbudget.errors import ModelBudgetError
from tests.backends.torch import real_experts
from tests.backends.torch.rank_steps import BATCH, FLOAT, lasting, mlp, on_real_ranks, sharded
from tests.backends.torch.real_experts import CHOSEN, EXPERTS, INNER, TOKENS, Experts, Mixture, experts_over
from tests.backends.torch.real_ranks import VOCABULARY, WIDTH
from tests.versions import since

IDS = f"int64[{BATCH}, {TOKENS}]"
LAYERS = 2
TABLES, BLOCKS = 2 * VOCABULARY * WIDTH, LAYERS * (2 * WIDTH + WIDTH * EXPERTS)
GROUPED = LAYERS * EXPERTS * 2 * WIDTH * INNER
WHOLE = TABLES + BLOCKS + GROUPED
ROWS = BATCH * TOKENS * CHOSEN


def mixture() -> nn.Module:
    """A model of two layers of experts."""
    return Mixture(layers=LAYERS)


def experts(sharding: Any, build: Callable[[], nn.Module] = mixture, **recipe: Any) -> ShardedStep:
    """A step of one of the ranks of a model of experts."""
    return sharded(build, IDS, sharding, foreach=True, **recipe)


@pytest.mark.parametrize(
    ("sharding", "ranks", "gathered"),
    [
        pytest.param({"fsdp": 4, "ep": 4}, 4, 0, id="each rank has experts of its own"),
        pytest.param({"ddp": 2, "fsdp": 4, "ep": 2}, 8, GROUPED // 2, id="pairs of ranks share them, with replicas"),
    ],
)
def test_a_rank_with_some_of_the_experts(sharding: dict[str, int], ranks: int, gathered: int) -> None:
    """All parameters are dealt out over the ranks of FSDP; a rank gathers those of the experts that it computes, alone.

    Rows go out and come back in both passes, all but the share of the rank itself. Values decide how many; said is that
    the plan does not know.
    """
    step = experts(sharding)
    part, share = FLOAT * WHOLE // 4, sharding["ep"]
    held = lasting(step.memory_trace)
    assert step.ranks == ranks
    assert (held["param"], held["gradient"], held["optimizer"]) == (part, part, 2 * part)
    others = FLOAT * LAYERS * (4 * ROWS * WIDTH + EXPERTS) * (share - 1) // share
    assert step.communication["all_to_all"] == others
    assert step.communication["all_gather"] == FLOAT * (2 * BLOCKS + TABLES) * 3 // 4 + FLOAT * 2 * gathered // 2
    assert any(
        "each of 8 experts is assumed to get as many of the 256 rows" in note for note in step.memory_trace.notes
    )


def test_all_tokens_on_one_rank() -> None:
    """The most there can be: the rank receives the rows of all, and sends them back; its states are the same."""
    even, most = experts({"fsdp": 4, "ep": 4}), experts({"fsdp": 4, "ep": 4, "routing": "one-rank"})
    assert most.communication["all_to_all"] == FLOAT * LAYERS * (2 * 3 * ROWS * WIDTH + EXPERTS * 3 // 4)
    assert lasting(most.memory_trace)["optimizer"] == lasting(even.memory_trace)["optimizer"]
    kept = FLOAT * LAYERS * ROWS * (WIDTH + 2 * INNER)  # of a row: itself, before and behind the activation
    assert most.memory_trace.peak() >= even.memory_trace.peak() + 3 * kept
    [note] = [note for note in most.memory_trace.notes if "routing" in note]
    assert note == "routing: one-rank: all 1,024 rows of a layer come to this rank, which is the most"


def test_own_function_sends_rows_as_values_say() -> None:
    """A user's own exchange, which reads how many rows go to whom, is answered evenly, and takes what the key plans."""

    def own(model: nn.Module, make_mesh: Callable[..., Any]) -> None:
        experts_over(model, 4, 2, make_mesh)

    step, planned = experts(own), experts({"fsdp": 4, "ep": 2})
    assert step.communication == planned.communication
    assert step.memory_trace.peak() == pytest.approx(planned.memory_trace.peak(), rel=0.001)
    assert any("each of 8 experts is assumed" in note for note in step.memory_trace.notes)


class Grouped(Experts):
    """One product for all experts, as on a GPU, which reads where each expert's rows end."""

    def forward(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        w1, w2 = (getattr(weight, "to_local", lambda weight=weight: weight)() for weight in (self.w1, self.w2))
        ends = counts.cumsum(0, dtype=torch.int32)
        inner = functional.silu(torch._grouped_mm(rows, w1.transpose(1, 2), offs=ends))
        return torch._grouped_mm(inner, w2.transpose(1, 2), offs=ends)


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="torch has no such product yet")
def test_grouped_products() -> None:
    """One in each pass for each weight and its operand; states are those of the rank's part."""

    def build() -> nn.Module:
        model = mixture()
        for layer in model.layers:
            layer.routed.experts = Grouped()
        return model

    step = experts({"fsdp": 2, "ep": 2}, build, precision="bf16").memory_trace
    assert lasting(step)["optimizer"] == 2 * (2 * WHOLE // 2)
    assert sum(event.op == "aten._grouped_mm" for event in step.events) == 2 * LAYERS * (2 + 4)  # in two steps
    assert not experts({"fsdp": 2}, build, precision="bf16").memory_trace.notes  # where rows end changes no size


def test_models_whose_experts_cannot_be_dealt_out() -> None:
    """Without grouped weights, and where these do not divide."""
    with pytest.raises(ModelBudgetError, match=r"no module has weights \[experts"):
        sharded(mlp, "float32[2, 8]", {"fsdp": 2, "ep": 2})
    with pytest.raises(ModelBudgetError, match="ep: 3 does not divide the 8 experts of a layer"):
        experts({"fsdp": 3, "ep": 3})


@since("torch", "2.14", "earlier releases were not looked at")
def test_selective_checkpointing_of_experts() -> None:
    """torch fails in a real step as well: FSDP's hooks of the experts are other operators where a block runs again."""
    with pytest.raises(ModelBudgetError, match="write checkpointing: blocks, or leave ep out"):
        experts({"fsdp": 2, "ep": 2}, checkpointing={"save": ["matmul"]})
    assert experts({"fsdp": 2, "ep": 2}, checkpointing="blocks").ranks == 2


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_against_real_ranks() -> None:
    """Rows that four real ranks exchange by their values, which are even: the plan is right to a few numbers."""
    measured = on_real_ranks(real_experts, 4, list(real_experts.CASES))
    for share in (2, 4):
        memory_trace = experts({"fsdp": 4, "ep": share}, Mixture, kernels="cpu").memory_trace
        assert list(memory_trace.alive())[-1] == measured[f"ep {share}"]["after"]
        assert memory_trace.peak() == pytest.approx(measured[f"ep {share}"]["peak"], abs=64)
