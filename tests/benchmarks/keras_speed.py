"""How fast a Keras model is summarized, against `model.summary()`: `python tests/benchmarks/keras_speed.py`.

Each backend of Keras has a process of its own. A model is built twice and not timed, without memory for ours and for
real for `model.summary()`; then both are summarized by turns, five rounds, and the least CPU seconds of each are shown.
`model.summary()` prints to nowhere; ours also names the symbolic dimensions, counts FLOPs and, on torch and jax, has
the backend differentiate each layer that is unlike the others for `activation_bytes`: a column says what that takes.
A tiny model is summarized before the clock starts. Models can be named, and backends and another number of rounds
given: `... --rounds 1 --backend torch ResNet152`.
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
    "| model | backend of Keras | rows | ours, CPU s | of it activations | model.summary() | ratio | without activations |\n"
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
)


@dataclass(frozen=True, slots=True)
class Speed:
    """Least CPU seconds of each way, of the rounds; and the rows."""

    rows: int
    ours: float
    activations: float
    theirs: float

    def line(self, name: str, backend: str) -> str:
        """A row of the table."""
        ratio, without = (seconds / self.theirs for seconds in (self.ours, self.ours - self.activations))
        seconds = " | ".join(f"{seconds:.3f}" for seconds in (self.ours, self.activations, self.theirs))
        over = "" if ratio < BAR else f" (over {BAR})"
        return f"| {name} | {backend} | {self.rows} | {seconds} | {ratio:.2f}{over} | {without:.2f} |"


def _timed(work: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The same, with the CPU seconds of each call in the list."""

    def timed(*args: Any) -> Any:
        begin = time.process_time()
        try:
            return work(*args)
        finally:
            seconds.append(time.process_time() - begin)

    return timed


def measure(name: str, rounds: int) -> Speed:
    """Both ways by turns, in this process."""
    import keras

    from pytest_modelbudget.backends import keras as backend
    from pytest_modelbudget.backends.keras import activations

    def summarized(model: Any) -> Any:
        return backend.summarize(model, name="model", inputs=None, sizes={}, built_here=True)

    def printed(model: Any) -> None:
        model.summary(print_fn=lambda text: None)

    build = getattr(keras.applications, name)
    with backend.global_state_restored(), backend.abstract():
        tiny = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), keras.layers.LayerNormalization()])
        model = build(weights=None)
    real = build(weights=None)
    for _ in range(2):
        summarized(tiny)
        printed(tiny)
    seconds: dict[str, list[float]] = {"ours": [], "activations": [], "theirs": []}
    original = activations.measure_activations
    activations.measure_activations = _timed(original, seconds["activations"])
    for _ in range(rounds):
        _timed(printed, seconds["theirs"])(real)
        _timed(summarized, seconds["ours"])(model)
    activations.measure_activations = original
    summary = summarized(model)
    assert summary.params == real.count_params()
    least = {way: min(values) for way, values in seconds.items()}
    if summary.activation_bytes is None:
        least["activations"] = 0.0
    return Speed(len(summary.layers), **least)


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
