"""Published tables: every row's type, shape, params and connections, and the totals."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import keras
import pytest
from keras import layers as L

from pytest_modelbudget.backends import keras as backend
from pytest_modelbudget.summary import Layer, Summary
from pytest_modelbudget.summary.formulas import why

DATA = Path(__file__).parents[2] / "data"
CASES = sorted((DATA / "summaries_keras").glob("*.json"), key=lambda path: path.stem)
ADDITIONS = {"ConvNeXtTiny": 18}
"""Additions written as `x + y`: rows here and in Keras' own table, and not among `model.layers`, which were counted."""
FAST_APPLICATIONS = {"EfficientNetB0", "MobileNetV2", "ResNet50", "VGG16"}


def cnn() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((28, 28, 3)),
            L.Conv2D(32, 3),
            L.MaxPooling2D(2),
            L.Conv2D(64, 3),
            L.MaxPooling2D(2),
            L.Flatten(),
            L.Dense(128),
            L.Dense(10),
        ]
    )


def lstm() -> keras.Model:
    return keras.Sequential([keras.Input((50, 1)), L.LSTM(64, return_sequences=True), L.LSTM(32), L.Dense(1)])


def towers() -> keras.Model:
    user, item = keras.Input((100,), name="user"), keras.Input((20,), name="item")
    joined = L.Concatenate()([L.Dense(50, name="of_user")(user), L.Dense(50, name="of_item")(item)])
    return keras.Model([user, item], L.Dense(1, name="score")(joined))


@pytest.mark.parametrize(
    ("build", "params", "total"),
    [
        pytest.param(cnn, [896, 0, 18_496, 0, 0, 204_928, 1_290], 225_610, id="cnn"),
        pytest.param(lstm, [16_896, 12_416, 33], 29_345, id="lstm"),
        pytest.param(towers, [0, 0, 5_050, 1_050, 0, 101], 6_201, id="two inputs"),
    ],
)
def test_classic_tables(summarize: Any, build: Callable[[], Any], params: list[int], total: int) -> None:
    """The three tables everybody knows come out row by row."""
    summary = summarize(build)
    assert [layer.params for layer in summary.layers] == params
    assert (summary.params, summary.non_trainable_params) == (total, 0)


def test_cnn_shapes_and_weights(summarize: Any) -> None:
    """Shapes carry the batch as B, weights their names and shapes."""
    summary = summarize(cnn)
    assert [layer.output_text for layer in summary.layers] == [
        "[B, 26, 26, 32]",
        "[B, 13, 13, 32]",
        "[B, 11, 11, 64]",
        "[B, 5, 5, 64]",
        "[B, 1600]",
        "[B, 128]",
        "[B, 10]",
    ]
    assert summary.layers[0].weights_text == "kernel 3x3x3x32 + bias 32"
    assert [str(port) for port in summary.inputs] == ["input_layer float32[B, 28, 28, 3]"]
    assert [str(spec) for spec in summary.outputs] == ["float32[B, 10]"]
    assert summary.weight_bytes == 4 * 225_610


def test_towers_are_connected(summarize: Any) -> None:
    """A functional model says what feeds each layer."""
    connected = {layer.path: layer.connected_to for layer in summarize(towers).layers}
    assert connected == {
        "user": (),
        "item": (),
        "of_user": (("user",),),
        "of_item": (("item",),),
        "concatenate": (("of_user", "of_item"),),
        "score": (("concatenate",),),
    }


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_published_summary(summarize: Any, path: Path) -> None:
    """A table printed by Keras, from a guide or a book, comes out row by row."""
    case = json.loads(path.read_text(encoding="utf-8"))
    summary = summarize(getattr(_builders(), case["builder"].rpartition(":")[2]))
    rows = [layer for layer in summary.layers if "/" not in layer.path]
    expected = case["rows"]
    if len(rows) == len(expected) + 1 and rows[0].type == "InputLayer":
        rows = rows[1:]
    assert [_row(summary, layer, row) for layer, row in zip(rows, expected, strict=True)] == list(
        map(_expected, expected)
    )
    if any(row["connected_to"] for row in expected):
        names = [row["name"] for row in expected]
        paths = [layer.path for layer in rows]
        printed = [[names.index(source.partition("[")[0]) for source in row["connected_to"]] for row in expected]
        assert [[paths.index(source) for call in layer.connected_to for source in call] for layer in rows] == printed
    totals = (summary.params, summary.trainable_params, summary.non_trainable_params)
    assert totals == tuple(case["totals"][key] for key in ("total", "trainable", "non_trainable"))


def _row(summary: Summary, layer: Layer, row: dict[str, Any]) -> tuple[str, list[list[int | None]], int]:
    shapes = [[dim if isinstance(dim, int) else None for dim in spec.shape] for call in layer.outputs for spec in call]
    if layer.container:  # Keras 2 printed what a nested model could give, not what it gives in this place
        shapes = [[dim if old else None for dim, old in zip(shapes[0], row["output_shape"], strict=True)]]
    return layer.type, shapes, sum(row.params for row in summary.below(layer.path))


def _expected(row: dict[str, Any]) -> tuple[str, list[list[int | None]], int]:
    return row["type"], [row["output_shape"]], row["params"]


def _builders() -> ModuleType:
    spec = importlib.util.spec_from_file_location("builders_keras", DATA / "summaries_keras" / "builders_keras.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _applications() -> list[Any]:
    with open(DATA / "keras_applications.csv", encoding="utf-8") as file:
        next(file)
        rows = list(csv.DictReader(file))
    marks = {row["model"]: [] if row["model"] in FAST_APPLICATIONS else [pytest.mark.slow] for row in rows}
    return [pytest.param(row, id=row["model"], marks=marks[row["model"]]) for row in rows]


def _builder(name: str) -> Callable[..., Any]:
    if name.startswith("NASNet") and keras.backend.backend() == "torch":
        pytest.skip("Keras does not build it on torch")
    return cast(Callable[..., Any], getattr(keras.applications, name))


@pytest.mark.parametrize("row", _applications())
def test_application(summarize: Any, row: dict[str, str]) -> None:
    """A published network has its published number of params, with and without its head."""
    build = _builder(row["model"])
    summary = summarize(lambda: build(weights=None))
    assert summary.params == int(row["verified_params"])
    if row["published_params_exact"]:
        assert summary.params == int(row["published_params_exact"])
    assert summary.trainable_params == int(row["verified_trainable"])
    assert all(why(layer).endswith(f" = {layer.params:,}") for layer in summary.layers if layer.weights)
    layers = [layer for layer in summary.layers if "/" not in layer.path]
    assert len(layers) == int(row["layers"]) + ADDITIONS.get(row["model"], 0)
    weighty = [layer for layer in layers if any(below.weights for below in summary.below(layer.path))]
    assert len(weighty) == int(row["layers_with_weights"])
    assert summarize(lambda: build(weights=None, include_top=False)).params == int(row["verified_params_no_top"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("ConvNeXtXLarge", 350_196_968),
        ("DenseNet169", 14_307_880),
        ("DenseNet201", 20_242_984),
        ("EfficientNetB1", 7_856_239),
        ("EfficientNetB2", 9_177_569),
        ("EfficientNetB3", 12_320_535),
        ("EfficientNetB4", 19_466_823),
        ("EfficientNetB5", 30_562_527),
        ("EfficientNetB6", 43_265_143),
        ("EfficientNetB7", 66_658_687),
        ("EfficientNetV2L", 119_027_848),
        ("InceptionResNetV2", 55_873_736),
        ("MobileNet", 4_253_864),
        ("MobileNetV3Large", 5_507_432),
        ("MobileNetV3Small", 2_554_968),
        ("NASNetLarge", 88_949_818),
        ("ResNet101", 44_707_176),
        ("ResNet101V2", 44_675_560),
        ("ResNet152", 60_419_944),
        ("ResNet152V2", 60_380_648),
        ("VGG19", 143_667_240),
    ],
)
def test_params_of_applications(summarize: Any, name: str, params: int) -> None:
    """The other published networks have their published number of params."""
    assert summarize(lambda: _builder(name)(weights=None)).params == params


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        pytest.param("ResNet50", 3_857_973_248, id="ResNet50"),
        pytest.param("MobileNet", 568_740_352, id="MobileNet, depthwise"),
        pytest.param("EfficientNetB0", 385_814_752, id="EfficientNetB0, squeeze and excite"),
    ],
)
def test_application_flops(summarize: Any, name: str, macs: int) -> None:
    """FLOPs are twice the multiply-adds that three other counters agree on."""
    summary = summarize(lambda: getattr(keras.applications, name)(weights=None))
    assert summary.flops.value == 2 * macs
    assert not summary.flops.is_lower_bound
    assert sum(layer.flops or 0 for layer in summary.layers) == 2 * macs


def test_protocol_classes() -> None:
    """The backend knows its models and layers and their classes from everything else."""
    assert all(map(backend.owns, (keras.Sequential(), L.Dense(1))))
    assert not any(backend.owns(one) for one in (keras.losses.MeanSquaredError(), "model", keras.Sequential))
    assert all(map(backend.is_class, (keras.Sequential, L.Dense)))
    assert not any(backend.is_class(one) for one in (keras.Variable, keras.Sequential(), "model"))
