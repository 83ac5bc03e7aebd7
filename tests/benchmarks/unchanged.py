"""Whether a change of the code changed what is counted: `python tests/benchmarks/unchanged.py FOLDER`.

Writes the snapshots of 60 models (torchvision, timm, transformers, keras.applications) into a new folder; where the folder
is there already, compares with what is in it and prints what differs. Written with one commit and compared with another, it shows that
a change of the house is none for users.
"""

from __future__ import annotations

import difflib
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

from pytest_modelbudget import summarize
from pytest_modelbudget.snapshot.text import render
from tests.benchmarks import zoo

TORCHVISION, TIMM, TRANSFORMERS = 18, 16, 10
KERAS = (
    "Xception", "VGG16", "ResNet50", "ResNet50V2", "InceptionV3", "InceptionResNetV2", "MobileNet", "MobileNetV2",
    "DenseNet121", "NASNetMobile", "EfficientNetB0", "EfficientNetV2S", "ConvNeXtTiny", "MobileNetV3Small", "ResNet101",
    "DenseNet201",
)  # fmt: skip


def spread(samples: Iterator[zoo.Sample], count: int) -> list[zoo.Sample]:
    """So many of them, evenly from first to last."""
    listed = list(samples)
    return listed[:: max(1, len(listed) // count)][:count]


def torch_snapshots() -> Iterator[tuple[str, str]]:
    """A name and the text of a snapshot, or of the error, for each model."""
    for zoo_name, samples in (
        ("torchvision", spread(zoo.torchvision_models(), TORCHVISION)),
        ("timm", spread(zoo.timm_models(), TIMM)),
        ("transformers", spread(zoo.transformers_models(), TRANSFORMERS)),
    ):
        for sample in samples:
            yield f"{zoo_name}-{sample.name}", snapshot_of(sample.name, sample.build, sample.inputs)


def keras_snapshots() -> Iterator[tuple[str, str]]:
    """The same for keras.applications."""
    import keras

    for name in KERAS:
        build = getattr(keras.applications, name)
        yield f"keras-{name}", snapshot_of(name, lambda build=build: build(weights=None), lambda _: None)


def snapshot_of(name: str, build: Any, inputs: Any) -> str:
    """The text of its snapshot."""
    try:
        return render(summarize(build, inputs(build_on_meta(build)), name=name), declared="here")
    except Exception as error:
        return f"{type(error).__name__}: {error}\n"


def build_on_meta(build: Any) -> Any:
    """A model to read its input size from, without memory for weights; Keras models know their own."""
    if "torch" not in sys.modules:
        return None
    from pytest_modelbudget.backends import torch as backend

    with backend.global_state_restored(), backend.abstract():
        return build()


def main(folder: Path) -> int:
    """Write, or compare and print."""
    before = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    different = 0
    for name, text in itertools.chain(keras_snapshots(), torch_snapshots()):
        path = folder / f"{name}.yaml"
        if not before:
            path.write_text(text, encoding="utf-8")
        elif path.exists() and (old := path.read_text(encoding="utf-8")) != text:
            different += 1
            print(*difflib.unified_diff(old.splitlines(), text.splitlines(), name, name, n=0, lineterm=""), sep="\n")
    print(f"{len(list(folder.iterdir()))} snapshots, {different} differ" if before else f"written: {folder}")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
