"""Steps of small models on one of many ranks, and the numbers by which their bytes are worked out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from pytest_modelbudget.backends.torch.distributed.rank import ShardedStep, record_sharded
from pytest_modelbudget.backends.torch.model.build import abstract
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import MemoryTrace, Training
from tests.backends.torch.real_ranks import LAYERS, TOKENS, VOCABULARY, WIDTH

FLOAT = 4
BATCH = 2
TABLE = VOCABULARY * WIDTH
BLOCK = 4 * WIDTH * WIDTH + 8 * WIDTH * WIDTH + 4 * WIDTH
"""Parameters of a block: four projections, two layers of four times the width, two norms."""
WHOLE = 2 * TABLE + LAYERS * BLOCK + 2 * WIDTH
BLOCKS, ROOT = LAYERS * BLOCK, 2 * TABLE + 2 * WIDTH
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


def on_real_ranks(module: ModuleType, ranks: int, cases: Sequence[str]) -> Any:
    """What `module` (`real_ranks`, `real_ring`, ...) measures on so many processes of this machine, by case."""
    run = subprocess.run(
        [sys.executable, "-m", module.__name__, str(ranks), *cases], capture_output=True, text=True, timeout=600,
        check=False, cwd=Path(__file__).parents[3], env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.strip().splitlines()[-1])


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
