"""Mixtures of Hugging Face's, which share out their experts themselves, against hand sums and real ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pytest_modelbudget.backends.torch.distributed.rank import ShardedStep
from pytest_modelbudget.errors import ModelBudgetError
from tests.backends.torch.rank_steps import BATCH, FLOAT, lasting, on_real_ranks, sharded
from tests.backends.torch.real_experts import CHOSEN, EXPERTS, INNER, TOKENS
from tests.backends.torch.real_ranks import VOCABULARY, WIDTH

LAYERS = 2
ROWS = BATCH * TOKENS * CHOSEN
GROUPED = LAYERS * EXPERTS * 3 * WIDTH * INNER
WHOLE = 2 * VOCABULARY * WIDTH + LAYERS * (4 * WIDTH * WIDTH + WIDTH * EXPERTS + 2 * WIDTH) + WIDTH + GROUPED


@pytest.fixture(autouse=True)
def _transformers() -> None:
    pytest.importorskip("transformers", minversion="5.24")


def step_of(sharding: Any, **recipe: Any) -> ShardedStep:
    """A step of one of the ranks of a small Mixtral."""
    from tests.backends.torch.real_hugging_face_experts import mixtral

    return sharded(mixtral, f"int64[{BATCH}, {TOKENS}]", sharding, foreach=True, **recipe)


def test_a_rank_with_some_of_the_experts() -> None:
    """All is dealt out over the ranks of FSDP; rows go out and come back in both passes, but for the rank's own."""
    even, most = step_of({"fsdp": 4, "ep": 4}), step_of({"fsdp": 4, "ep": 4, "routing": "one-rank"})
    held, part = lasting(even.memory_trace), FLOAT * WHOLE // 4
    assert (held["param"], held["gradient"], held["optimizer"]) == (part, part, 2 * part)
    counts = 2 * FLOAT * LAYERS * EXPERTS  # of 8 bytes
    assert even.communication["all_to_all"] == (FLOAT * LAYERS * 4 * ROWS * WIDTH + counts) * 3 // 4
    assert even.communication["all_gather"] == FLOAT * (2 * (WHOLE - GROUPED) - VOCABULARY * WIDTH - WIDTH) * 3 // 4
    assert most.communication["all_to_all"] == FLOAT * LAYERS * 2 * 3 * ROWS * WIDTH + counts * 3 // 4
    assert most.memory_trace.peak() >= even.memory_trace.peak() + 3 * FLOAT * LAYERS * ROWS * (WIDTH + 3 * INNER)
    assert any("each of 8 experts is assumed" in note for note in even.memory_trace.notes)
    [note] = [note for note in most.memory_trace.notes if "routing" in note]
    assert note == "routing: one-rank: all 1,024 rows of a layer come to this rank, which is the most"


def test_what_transformers_does_not_share_out() -> None:
    """Its own words, and a policy that it does not have."""
    with pytest.raises(ModelBudgetError, match="ep: transformers: Cannot evenly shard 8 experts across 3"):
        step_of({"fsdp": 3, "ep": 3})
    with pytest.raises(ModelBudgetError, match="ep: transformers' own policy casts to bfloat16 alone"):
        step_of({"fsdp": 2, "ep": 2, "casts": "policy"}, precision="fp16-mixed")


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_against_real_ranks() -> None:
    """Four real ranks, with experts over two of them and over all: what lasts is equal, but for a list of rows."""
    from tests.backends.torch import real_hugging_face_experts

    measured = on_real_ranks(real_hugging_face_experts, 4, list(real_hugging_face_experts.CASES))
    for share in (2, 4):
        memory_trace = step_of({"fsdp": 4, "ep": share}, kernels="cpu").memory_trace
        assert list(memory_trace.alive())[-1] == measured[f"ep {share}"]["after"]
        assert memory_trace.peak() == pytest.approx(measured[f"ep {share}"]["peak"], abs=8 * ROWS)
