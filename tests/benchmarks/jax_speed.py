"""What counting a decoder of 8 billion parameters takes: `python tests/benchmarks/jax_speed.py`.

The shape of Llama-3-8B at 2,048 tokens, written layer after layer for flax.nnx and as one scan for flax.linen. A tiny
model is counted before the clock starts, so that imports are not in it. Shown are CPU seconds and how far the most
memory that the process held went up; the bars are 3 seconds and 200 MiB.
Needs `pip install flax`.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

SECONDS, MEBIBYTES = 3.0, 200.0
PARAMS = 8_030_261_248


def _most_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(build: Callable[[], Any]) -> tuple[float, float]:
    """CPU seconds and MiB."""
    from pytest_modelbudget import summarize

    memory, begin = _most_memory(), time.process_time()
    summary = summarize(build, "int32[B, T]", dims={"T": 2048})
    taken = time.process_time() - begin, _most_memory() - memory
    assert summary.params == PARAMS
    return taken


def main() -> int:
    from flax import nnx

    from pytest_modelbudget import summarize
    from tests.backends.jax.published import DECODERS, LinenDecoder, NnxDecoder

    config = DECODERS["Llama-3-8B"][0]
    builders: dict[str, Callable[[], Any]] = {
        "flax.nnx, 32 layers": lambda: NnxDecoder(config, rngs=nnx.Rngs(0)),
        "flax.linen, one scan": lambda: LinenDecoder(config),
    }
    summarize(lambda: nnx.Linear(3, 4, rngs=nnx.Rngs(0)), "float32[B, 3]")
    too_much = False
    for name, build in builders.items():
        seconds, mebibytes = measure(build)
        too_much |= seconds > SECONDS or mebibytes > MEBIBYTES
        print(f"{name:<24} {seconds:6.2f} CPU s {mebibytes:8.1f} MiB")
    return int(too_much)


if __name__ == "__main__":
    raise SystemExit(main())
