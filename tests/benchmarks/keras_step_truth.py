"""Planned peaks of Keras models against real steps on the CPU: `KERAS_BACKEND=tensorflow python tests/benchmarks/keras_step_truth.py`.

The truth on TensorFlow is the high-water mark of memory (VmHWM) of a step with Adam, or of a pass without gradients, above
what was there, with every allocation of 16 KB and more in a mapping of its own: each model runs in a process of its own
that gets glibc's settings. It contains what kernels and the allocator take. On torch it is the sum of the allocator's own
events over two steps (torch.profiler), since there gradients of the step before are in memory when a step begins. The
bars: torch within 1 %; TensorFlow, for training, median within 4 %, worst within 10 %, never more than 6 % too low.
Models can be named: `... mlp unet`.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_ENABLE_ONEDNN_OPTS="0", CUDA_VISIBLE_DEVICES="-1")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import layers as L  # noqa: E402

from pytest_modelbudget import plan  # noqa: E402

MALLOC = {"MMAP_THRESHOLD_": 16384, "MMAP_MAX_": 100_000_000, "TRIM_THRESHOLD_": 0, "TOP_PAD_": 0, "ARENA_MAX": 1}
ON = keras.backend.backend()


def mlp() -> Any:
    hidden = [L.Dense(1024, activation="relu") for _ in range(4)]
    return keras.Sequential([keras.Input((784,)), *hidden, L.Dense(10)])


def cnn() -> Any:
    x = y = keras.Input((64, 64, 3))
    for filters in (64, 64, 128, 128):
        y = L.ReLU()(L.BatchNormalization()(L.Conv2D(filters, 3, padding="same", use_bias=False)(y)))
    return keras.Model(x, L.Dense(10)(L.GlobalAveragePooling2D()(y)))


def application(name: str) -> Callable[[], Any]:
    options = {"weights": None, "input_shape": (128, 128, 3), "classes": 10, "classifier_activation": None}
    return lambda: getattr(keras.applications, name)(**options)


def lstm() -> Any:
    x = keras.Input((200,), dtype="int32")
    y = L.LSTM(128, return_sequences=True)(L.Embedding(20_000, 128)(x))
    return keras.Model(x, L.Dense(10)(L.LSTM(128)(y)))


def transformer() -> Any:
    x = keras.Input((256,), dtype="int32")
    y = L.Embedding(10_000, 256)(x)
    for _ in range(2):
        y = L.LayerNormalization()(y + L.MultiHeadAttention(8, 32)(y, y, use_causal_mask=True))
        y = L.LayerNormalization()(y + L.Dense(256)(L.Dense(1024, activation="gelu")(y)))
    return keras.Model(x, L.Dense(10_000)(y))


def unet() -> Any:
    def convolved(y: Any, filters: int) -> Any:
        inner = L.Conv2D(filters, 3, padding="same", activation="relu")(y)
        return L.Conv2D(filters, 3, padding="same", activation="relu")(inner)

    x = y = keras.Input((96, 96, 3))
    skips = []
    for filters in (16, 32, 64):
        y = convolved(y, filters)
        skips.append(y)
        y = L.MaxPooling2D()(y)
    y = convolved(y, 128)
    for filters in (64, 32, 16):
        up = L.Conv2DTranspose(filters, 2, strides=2, padding="same")(y)
        y = convolved(L.Concatenate()([up, skips.pop()]), filters)
    return keras.Model(x, L.Conv2D(4, 1)(y))


def towers() -> Any:
    user, words = keras.Input((), dtype="int32"), keras.Input((20,), dtype="int32")
    left = L.Dense(64)(L.Dense(256, activation="relu")(L.Embedding(50_000, 64)(user)))
    mean = L.GlobalAveragePooling1D()(L.Embedding(20_000, 64)(words))
    right = L.Dense(64)(L.Dense(256, activation="relu")(mean))
    return keras.Model([user, words], L.Dense(2)(L.Concatenate()([left, right, left * right])))


MODELS: dict[str, tuple[Callable[[], Any], int, tuple[int, ...]]] = {
    "mlp": (mlp, 4096, ()),
    "cnn": (cnn, 16, ()),
    "resnet50": (application("ResNet50"), 8, ()),
    "mobilenetv2": (application("MobileNetV2"), 16, ()),
    "lstm": (lstm, 32, ()),
    "transformer": (transformer, 8, (256,)),
    "unet": (unet, 16, (96, 96)),
    "towers": (towers, 4096, ()),
}
"""Builder, batch, and the sizes of the targets after it."""


def _bytes(variables: Any) -> int:
    dtypes = [np.dtype(keras.backend.standardize_dtype(variable.dtype)) for variable in variables]
    return sum(int(np.prod(variable.shape)) * dtype.itemsize for variable, dtype in zip(variables, dtypes, strict=True))


def _high_water(run: Callable[[], Any]) -> int:
    """The lowest of three high-water marks above what was there."""
    marks = []
    for _ in range(3):
        gc.collect()
        before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        Path("/proc/self/clear_refs").write_text("5")
        result = run()
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
        marks.append(int(line.split()[1]) * 1024 - before)
        del result
    return min(marks)


def real(name: str) -> dict[str, int]:
    """Bytes of a real step and of a real pass."""
    build, batch, target = MODELS[name]
    model = build()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    arrays = [np.zeros((batch, *tensor.shape[1:]), tensor.dtype) for tensor in model.inputs]
    y: Any = np.zeros((batch, *target), "int32")
    given = sum(array.nbytes for array in arrays)
    if ON == "tensorflow":  # tensors, or Keras copies the arrays
        tensors, y = [keras.ops.convert_to_tensor(array) for array in arrays], keras.ops.convert_to_tensor(y)
    else:
        tensors = arrays
    x = tensors if len(tensors) > 1 else tensors[0]
    forward = _forward(model)
    runs = {"train": lambda: model.train_on_batch(x, y), "infer": lambda: forward(x)}
    found = {}
    for case, run in runs.items():
        run()
        run()
        there = _bytes(model.weights) + given
        there += _bytes(model.optimizer.variables) + int(np.prod((batch, *target))) * 4 if case == "train" else 0
        found[case] = there + _measured(run, case)
    return found


def _forward(model: Any) -> Callable[[Any], Any]:
    if ON == "torch":
        return lambda x: model.predict_on_batch(x)
    import tensorflow as tf

    return tf.function(lambda x: model(x, training=False), jit_compile=False)  # type: ignore[no-any-return]


def _measured(run: Callable[[], Any], case: str) -> int:
    if ON != "torch":
        return _high_water(run)
    from tests.real_steps import measured

    def step() -> None:
        gc.collect()  # of what Keras' calls leave behind, which is not to happen somewhere in the step
        gc.disable()
        run()
        gc.enable()

    return measured(step, 2 if case == "train" else 1)


def planned(name: str) -> dict[str, int | None]:
    """Bytes that are planned."""
    build, batch, _ = MODELS[name]
    kernels = {"kernels": "cpu"} if ON == "torch" else {}
    training = {"batch": batch, "optimizer": "adam", "loss": "cross_entropy", **kernels}
    return {
        "train": plan(build, training=training).peak_bytes,
        "infer": plan(build, inference={"batch": batch, **kernels}).peak_bytes,
    }


def _in_process(name: str) -> dict[str, int]:
    environment = {**os.environ, **{f"MALLOC_{key}": str(value) for key, value in MALLOC.items()}}
    command = [sys.executable, __file__, "--real", name]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(run.stdout.splitlines()[-1]))


def main(names: list[str]) -> None:
    errors: dict[str, list[float]] = {"train": [], "infer": []}
    for name in names or MODELS:
        truth, peaks = _in_process(name), planned(name)
        for case, size in truth.items():
            peak = peaks[case]
            error = None if peak is None else 100 * (peak / size - 1)
            errors[case] += [] if error is None else [error]
            shown = "?" if peak is None or error is None else f"{peak / 2**20:9.1f} {error:+6.1f} %"
            print(f"{ON:10} {name:12} {case:6} real {size / 2**20:9.1f} MiB planned {shown}", flush=True)
    for case, found in errors.items():
        if found:
            worst, lowest = max(map(abs, found)), min(found)
            print(
                f"{case}: median {statistics.median(map(abs, found)):.1f} %, worst {worst:.1f} %, lowest {lowest:+.1f} %"
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--real"]:
        if ON == "tensorflow":
            import tensorflow

            tensorflow.config.threading.set_intra_op_parallelism_threads(2)
            tensorflow.config.threading.set_inter_op_parallelism_threads(1)
        else:
            import torch

            torch.set_num_threads(2)
        print(json.dumps(real(sys.argv[2])))
    else:
        main(sys.argv[1:])
