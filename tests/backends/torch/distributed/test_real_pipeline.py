"""Steps of all ranks of a pipeline against real ones: processes of gloo on this machine, cut by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_modelbudget.backends.torch.distributed.pipeline import record_ranks
from pytest_modelbudget.backends.torch.model.build import abstract
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import Training
from tests.backends.torch import real_pipeline, real_ranks
from tests.backends.torch.rank_steps import on_real_ranks
from tests.versions import since

pytestmark = [
    since("torch", "2.14", "stages of earlier releases were not looked at"),
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo"),
]

SHARED = [name for name, case in real_pipeline.CASES.items() if case.ranks_of_a_stage == 2]
WORLDS: dict[int, list[str]] = {
    2: [name for name in real_pipeline.CASES if name not in SHARED],
    3: ["gpipe", "1f1b, outputs dropped", "skip connection", "read by all blocks"],
    4: SHARED,
}
"""The cases by how many ranks they run on."""


class Whole(real_ranks.Transformer):
    """The same model, not cut."""

    def __init__(self, case: real_pipeline.Case) -> None:
        super().__init__()
        self.extra = case.extra
        self.layers = nn.ModuleList(real_pipeline.block_of(case)() for _ in range(real_pipeline.LAYERS))
        if case.tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = embedded = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, memory=embedded) if self.extra == "read by blocks" else layer(x)
        return self.lm_head(self.norm(x + embedded if self.extra == "skipped" else x))


def planned(name: str, ranks: int) -> list[int]:
    """The peaks of all ranks; those that share a stage have the same."""
    case = real_pipeline.CASES[name]
    with abstract():
        model = Whole(case)
    dims = {dim: size for dim, size in (("fsdp", case.fsdp), ("tp", case.tp)) if size > 1}
    training = Training(
        pipeline={
            "ranks": ranks // case.ranks_of_a_stage,
            "schedule": case.schedule,
            "microbatches": case.microbatches,
        },
        sharding={
            **dims,
            **({"casts": "policy"} if case.fsdp > 1 else {}),
            **({"ep": case.ep} if case.ep > 1 else {}),
        }
        if dims
        else None,
        gradient_accumulation=case.passes,
        checkpointing="blocks" if case.recomputed else "none",
        precision="bf16-mixed" if case.half else "fp32",
        outputs="kept" if case.returned else "dropped",
        kernels="cpu",
        foreach=True,
        loss="chunked" if case.chunked else "cross_entropy",
    )
    inputs = parse(f"int64[{real_pipeline.BATCH}, {real_ranks.TOKENS}]")
    steps = record_ranks(RunnableModel(name, model, inputs), {}, training)
    return [step.memory_trace.peak() for step in steps for _ in range(case.ranks_of_a_stage)]


@pytest.fixture(scope="module")
def real() -> dict[str, dict[str, list[int]]]:
    """The peaks of all ranks by their number and case, measured by one process that forks."""
    first, *rest = WORLDS
    words = [word for ranks in rest for word in ("--", str(ranks), *WORLDS[ranks])]
    peaks: dict[str, dict[str, list[int]]] = on_real_ranks(real_pipeline, first, [*WORLDS[first], *words])
    return peaks


@pytest.mark.parametrize(
    ("ranks", "case"), [(ranks, case) for ranks, cases in WORLDS.items() for case in cases], ids=str
)
def test_against_real_ranks(ranks: int, case: str, real: dict[str, dict[str, list[int]]]) -> None:
    """The highest number of bytes alive in a step, on each rank."""
    assert planned(case, ranks) == pytest.approx(real[str(ranks)][case], rel=0.001)
