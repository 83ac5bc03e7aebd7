"""How fast a Keras model is summarized, against `model.summary()`: `python tests/benchmarks/keras_speed.py`.

Each backend of Keras has a process of its own. A model is built twice and not timed, without memory for ours and for
real for `model.summary()`; then both are summarized by turns, five rounds, and the least CPU seconds of each are shown.
`model.summary()` prints to nowhere; ours also names the symbolic dimensions and counts FLOPs. The last columns are of a
summary that is asked for `activation_bytes`, as by a limit on them: each layer that is unlike all others is then run
and differentiated by Keras' backend. A tiny model is summarized before the clock starts. Models can be named, and
backends and another number of rounds given: `... --rounds 1 --backend torch ResNet152`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROUNDS = 5
BACKENDS = ("tensorflow", "torch", "jax")
MODELS = ("ResNet50", "ResNet152", "EfficientNetB0", "EfficientNetV2L", "ConvNeXtTiny")
BAR = 0.3
HEAD = (
    "| model | backend of Keras | rows | ours, CPU s | model.summary() | ratio | with activation_bytes, CPU s | ratio |\n"
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
)


@dataclass(frozen=True, slots=True)
class Speed:
    """Least CPU seconds of each way, of the rounds; and the rows. `asked` is ours with `activation_bytes`."""

    rows: int
    ours: float
    theirs: float
    asked: float

    def line(self, name: str, backend: str) -> str:
        """A row of the table."""
        ratio, asked = (seconds / self.theirs for seconds in (self.ours, self.asked))
        over = "" if ratio < BAR else f" (over {BAR})"
        times = f"{self.ours:.3f} | {self.theirs:.3f} | {ratio:.2f}{over} | {self.asked:.3f} | {asked:.2f}"
        return f"| {name} | {backend} | {self.rows} | {times} |"


def _seconds(work: Callable[[], object]) -> float:
    """The CPU seconds of a call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def measure(name: str, rounds: int) -> Speed:
    """Both ways by turns, in this process."""
    import keras

    from pytest_modelbudget.backends import keras as backend

    def summarized(model: Any, *, activations: bool = False) -> Any:
        return backend.summarize(model, name="model", inputs=None, sizes={}, built_here=True, activations=activations)

    def printed(model: Any) -> None:
        model.summary(print_fn=lambda text: None)

    build = getattr(keras.applications, name)
    with backend.global_state_restored(), backend.abstract():
        tiny = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), keras.layers.LayerNormalization()])
        model = build(weights=None)
    real = build(weights=None)
    for _ in range(2):
        summarized(tiny, activations=True)
        printed(tiny)
    ways = {
        "theirs": lambda: printed(real),
        "ours": lambda: summarized(model),
        "asked": lambda: summarized(model, activations=True),
    }
    seconds = {way: [_seconds(work)] for way, work in ways.items()}
    for _ in range(rounds - 1):
        for way, work in ways.items():
            seconds[way].append(_seconds(work))
    summary = summarized(model)
    assert summary.params == real.count_params()
    return Speed(len(summary.layers), **{way: min(values) for way, values in seconds.items()})


def main() -> None:
    """The Markdown table; each backend prints its own rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--backend", action="append", choices=BACKENDS)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("models", nargs="*", default=MODELS)
    words = parser.parse_args()
    if words.here:
        for name in words.models:
            print(measure(name, words.rounds).line(name, os.environ["KERAS_BACKEND"]), flush=True)
        return
    print(HEAD, flush=True)
    for backend in words.backend or BACKENDS:
        command = [sys.executable, __file__, "--here", "--rounds", str(words.rounds), *words.models]
        subprocess.run(command, env={**os.environ, "KERAS_BACKEND": backend}, check=True)


if __name__ == "__main__":
    main()
