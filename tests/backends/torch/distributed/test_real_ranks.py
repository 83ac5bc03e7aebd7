"""Sharded steps against real ones: processes of gloo on this machine, with the storages of rank 0 followed one by one."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_modelbudget.backends.torch.distributed.rank import record_sharded
from pytest_modelbudget.backends.torch.model.build import abstract
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import Training
from tests.backends.torch import real_ranks
from tests.backends.torch.rank_steps import on_real_ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo"),
]

RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fsdp": ({"fsdp": 0}, {}),
    "fsdp, uneven": ({"fsdp": 0}, {}),
    "fsdp, mixed precision": ({"fsdp": 0, "casts": "policy"}, {"precision": "bf16-mixed"}),
    "fsdp, recomputed": ({"fsdp": 0}, {"checkpointing": "blocks"}),
    "hsdp": ({"ddp": 2, "fsdp": 0}, {}),
    "tp": ({"tp": 0}, {}),
    "fsdp and tp": ({"fsdp": 0, "tp": 2}, {}),
    "ddp": ({"ddp": 0}, {}),
    "ddp, accumulated": ({"ddp": 0}, {"gradient_accumulation": 2, "no_sync": True}),
    "fsdp, accumulated": ({"fsdp": 0}, {"gradient_accumulation": 2, "no_sync": True}),
    "fsdp, every pass": ({"fsdp": 0}, {"gradient_accumulation": 2}),
    "zero1": ({"zero1": 0}, {}),
    "zero2": ({"zero2": 0}, {}),
    "fsdp1": ({"fsdp1": 0}, {}),
    "fsdp1, mixed precision": ({"fsdp1": 0, "casts": "policy"}, {"precision": "bf16-mixed"}),
    "fsdp1, all in blocks": ({"fsdp1": 0}, {}),
    "ddp, uneven": ({"ddp": 0}, {}),
}
"""The recipe of each case; 0 stands for the ranks that are left."""


@pytest.mark.parametrize(
    ("ranks", "cases"),
    [
        pytest.param(2, [case for case in RECIPES if case not in ("hsdp", "fsdp and tp")], id="two ranks"),
        pytest.param(4, ["fsdp", "fsdp, uneven", "hsdp", "tp", "fsdp and tp", "ddp"], id="four ranks"),
    ],
)
def test_against_real_ranks(ranks: int, cases: list[str]) -> None:
    """The peak of a step and what is alive after it, counted operator by operator on a real rank.

    The real run makes sums of gradients anew since it is watched.
    """
    real = on_real_ranks(real_ranks, ranks, cases)
    for case in cases:
        memory_trace = planned(case, ranks)
        assert list(memory_trace.alive())[-1] == real[case]["after"], case
        assert memory_trace.peak() == pytest.approx(real[case]["peak"], rel=0.001), case


def planned(case: str, ranks: int) -> Any:
    """The memory trace of a case."""
    build, _ = real_ranks.CASES[case]
    dims, recipe = RECIPES[case]
    left = ranks
    for size in (size for size in dims.values() if isinstance(size, int)):
        left //= size or 1
    with abstract():
        model = build()
    inputs: Any = f"int64[2, {real_ranks.TOKENS}]" if build is real_ranks.Transformer else "float32[2, 63]"
    training = Training(
        sharding={dim: size or left for dim, size in dims.items()}, kernels="cpu", foreach=True, loss="none", **recipe
    )
    return record_sharded(RunnableModel(case, model, parse(inputs)), {}, training).memory_trace


def test_405_billion_parameters_over_512_ranks() -> None:
    """Llama 405B, FSDP over 64 times tensor parallelism over 8, in a process of its own: under a minute and 1 GB."""
    script = Path(__file__).parents[3] / "benchmarks" / "sharding_speed.py"
    case = "405B, fsdp 64 x tp 8, blocks recomputed"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, str(script), "--here", case], capture_output=True, text=True, check=False, env=environment
    )
    assert run.returncode == 0, run.stderr[-2000:]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 60
    assert int(run.stdout.partition(" MB,")[0].rpartition("+")[2]) < 1000
    # Parameters, gradients and two states in bfloat16; norms are not cut by tensor parallelism
    width, blocks = 16_384, 126
    norms = (2 * blocks + 1) * width
    part = (405_853_388_800 - norms) // 512 + norms // 64
    assert f"steady {8 * part / 2**30:.3f} GiB" in run.stdout
    assert "512 ranks" in run.stdout
