"""Makes the ONNX files in tests/data/exported: `python -m tests.backends.exported.make_onnx FOLDER`.

They are what the exporters write (torch with onnxscript, Keras with tf2onnx, onnxruntime's quantiser), with two changes:
weights lie in a data file beside them, which is not kept since nothing reads it (`with_data` in `onnx_files.py` makes one
of zeros), and metadata with paths and code of the machine is gone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_KEPT = (
    "pkg.torch.onnx.name_scopes",
    "pkg.torch.onnx.class_hierarchy",
    "pkg.torch.export.ExportedProgram.graph_signature",
)
BLOCKS, WIDTH, HEADS, VOCABULARY, POSITIONS = 2, 128, 4, 5000, 128


def resnet(path: Path, **options: Any) -> None:
    """torchvision's ResNet-18, without training; `options` are those of `torch.onnx.export`."""
    import torch
    from torchvision.models import resnet18

    torch.manual_seed(0)
    shapes = ({0: torch.export.Dim("B")},)
    torch.onnx.export(resnet18().eval(), (torch.randn(2, 3, 224, 224),), path, dynamic_shapes=shapes, **options)


def gpt2(path: Path) -> None:
    """Two blocks of GPT-2 with a tied head."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = GPT2Config(
                n_layer=BLOCKS,
                n_embd=WIDTH,
                n_head=HEADS,
                vocab_size=VOCABULARY,
                n_positions=POSITIONS,
                use_cache=False,
            )
            self.m = GPT2LMHeadModel(config)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.m(ids).logits  # type: ignore[no-any-return]

    torch.manual_seed(0)
    shapes = ({0: torch.export.Dim("B"), 1: torch.export.Dim("T", max=POSITIONS)},)
    ids = torch.zeros(2, 16, dtype=torch.int64)
    torch.onnx.export(Logits().eval(), (ids,), path, dynamic_shapes=shapes, dynamo=True, external_data=False)


def cnn(path: Path) -> None:
    """A small Keras network, by way of tf2onnx."""
    import keras
    import numpy as np

    layers = keras.layers
    model = keras.Sequential([
        keras.Input((32, 32, 3)),
        layers.Conv2D(16, 3, padding="same"),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.DepthwiseConv2D(3, padding="same"),
        layers.Conv2D(32, 1),
        layers.ReLU(),
        layers.GlobalAveragePooling2D(),
        layers.Dense(10),
    ])  # fmt: skip
    model(np.zeros((1, 32, 32, 3), "float32"))
    model.export(path, format="onnx", verbose=False)


def quantised(source: Path, path: Path) -> None:
    """The 8-bit form that onnxruntime makes, with scales for each channel."""
    import numpy as np
    from onnxruntime import quantization

    class Samples(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples = iter([{"x": np.zeros((1, 3, 224, 224), "float32")}])

        def get_next(self) -> Any:
            return next(self.samples, None)

    quantization.quantize_static(source, path, Samples(), per_channel=True)


def keep_graph(source: Path, target: Path) -> None:
    """Write `source` without its weights and without most of its metadata."""
    import onnx

    model = onnx.load(source)
    for part in (model, model.graph, *_parts(model.graph)):
        kept = [(entry.key, entry.value) for entry in part.metadata_props if entry.key in _KEPT]
        del part.metadata_props[:]
        for key, value in kept:
            part.metadata_props.add(key=key, value=value)
    onnx.save(model, target, save_as_external_data=True, location=f"{target.name}.data", size_threshold=256)
    target.with_name(f"{target.name}.data").unlink(missing_ok=True)


def _parts(graph: Any) -> Iterator[Any]:
    yield from (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info)


def main(folder: Path) -> None:
    """Make all of them."""
    whole = folder / "whole"
    whole.mkdir()
    resnet(whole / "resnet18.onnx", dynamo=True, external_data=False)
    gpt2(whole / "gpt2.onnx")
    cnn(whole / "cnn.onnx")
    quantised(whole / "resnet18.onnx", whole / "resnet18_int8.onnx")
    for path in whole.glob("*.onnx"):
        keep_graph(path, folder / path.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
