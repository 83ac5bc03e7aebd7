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

CASES = list(real_pipeline.CASES)


class Whole(real_ranks.Transformer):
    """The same model, not cut."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(real_ranks.Block() for _ in range(real_pipeline.LAYERS))


def planned(case: str, ranks: int) -> list[int]:
    """The peaks of all ranks."""
    schedule, microbatches, returned = real_pipeline.CASES[case]
    with abstract():
        model = Whole()
    training = Training(
        pipeline={"ranks": ranks, "schedule": schedule, "microbatches": microbatches},
        outputs="kept" if returned else "dropped",
        kernels="cpu",
        foreach=True,
        loss="cross_entropy",
    )
    inputs = parse(f"int64[{real_pipeline.BATCH}, {real_ranks.TOKENS}]")
    return [step.memory_trace.peak() for step in record_ranks(RunnableModel(case, model, inputs), {}, training)]


@pytest.mark.parametrize(
    ("ranks", "cases"),
    [
        pytest.param(2, CASES, id="two ranks"),
        pytest.param(3, ["gpipe", "1f1b, outputs dropped"], id="three ranks"),
    ],
)
def test_against_real_ranks(ranks: int, cases: list[str]) -> None:
    """The highest number of bytes alive in a step, on each rank."""
    real: dict[str, list[int]] = on_real_ranks(real_pipeline, ranks, cases)
    for case in cases:
        assert planned(case, ranks) == pytest.approx(real[case], rel=0.001), case
