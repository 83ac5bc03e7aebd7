"""How fast a Keras model is summarized, against `model.summary()`: `python tests/benchmarks/keras_speed.py`.

Each model is built once, without memory, and not timed; then both summarize it by turns in the same process, five
rounds, and the least CPU seconds of each are shown. `model.summary()` prints to nowhere; ours also names the symbolic
dimensions and counts FLOPs. A tiny model is summarized before the clock starts. The backend is that of
`KERAS_BACKEND`. Models can be named, and another number of rounds given: `... --rounds 1 ResNet152`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROUNDS = 5
MODELS = ("ResNet50", "ResNet152", "EfficientNetV2L", "ConvNeXtXLarge")
BAR = 1.0


def _seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def _ours(model: Any) -> Any:
    from pytest_modelbudget.backends import keras as backend

    return backend.summarize(model, name="model", inputs=None, sizes={}, built_here=True)


def measure(name: str, rounds: int) -> tuple[float, float, int]:
    """Least CPU seconds of ours and of `model.summary()`, and the rows."""
    import keras

    from pytest_modelbudget.backends import keras as backend

    with backend.global_state_restored(), backend.abstract():
        tiny = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), keras.layers.LayerNormalization()])
        model = getattr(keras.applications, name)(weights=None)
    for _ in range(2):
        _ours(tiny)
        tiny.summary(print_fn=lambda text: None)
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds):
        theirs.append(_seconds(lambda: model.summary(print_fn=lambda text: None)))
        ours.append(_seconds(lambda: _ours(model)))
    summary = _ours(model)
    assert summary.params == model.count_params()
    return min(ours), min(theirs), len(summary.layers)


def table(names: list[str], rounds: int) -> str:
    """The Markdown table, and what is above the bar."""
    import keras

    lines = [
        f"| model (Keras {keras.__version__}, {keras.backend.backend()}) | rows | ours, CPU s | model.summary() | ratio |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    over = []
    for name in names:
        ours, theirs, rows = measure(name, rounds)
        lines.append(f"| {name} | {rows} | {ours:.3f} | {theirs:.3f} | {ours / theirs:.2f} |")
        over += [name] if ours / theirs >= BAR else []
    return "\n".join([*lines, "", f"above the bar of {BAR}: {', '.join(over) or 'none'}"])


if __name__ == "__main__":
    given = sys.argv[1:]
    count = ROUNDS
    if given[:1] == ["--rounds"]:
        count, given = int(given[1]), given[2:]
    print(table(given or list(MODELS), count))
