"""Published numbers: printed summaries of other tools, and torchvision's parameter counts and GMACs."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from pytest_modelbudget.summary import Layer, Summary

DATA = Path(__file__).parents[2] / "data"
CASES = [json.loads(path.read_text()) for path in sorted((DATA / "summaries").glob("torch_*.json"))]
FAST = {
    "alexnet",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet50",
    "swin_t",
}


def _zoo() -> list[Any]:
    with (DATA / "torchvision_params.csv").open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    return [
        pytest.param(row, id=f"{row['builder']}-{row['weights']}", marks=() if _fast(row) else pytest.mark.slow)
        for row in rows
    ]


def _fast(row: dict[str, str]) -> bool:
    return row["builder"] in FAST and row["weights"].endswith("_V1")


def _builder(name: str) -> Callable[[], Any]:
    spec = importlib.util.spec_from_file_location("builders_torch", DATA / "summaries" / "builders_torch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_printed_summary(case: dict[str, Any], count: Callable[..., Summary]) -> None:
    """Totals, FLOPs, and for each called layer its output shapes and own params are those of the printed table."""
    pytest.importorskip("torchvision")
    truth, build = case["verified"], _builder(case["builder"])
    summary = count(lambda: build()[0], [_spec(tensor) for tensor in build()[1]])
    assert summary.params == truth["total"]
    assert summary.trainable_params == truth["trainable"]
    assert summary.non_trainable_params == truth["non_trainable"]
    assert summary.buffers == truth["buffers"]
    assert (
        sum(weight.bytes for row in summary.layers for weight in row.own if weight.role == "param")
        == truth["param_bytes"]
    )
    assert summary.flops.value == 2 * truth["macs"]
    assert summary.flops.uncounted == ()
    called = [
        row for row in summary.leaves if row.calls and not row.type.islower()
    ]  # a join is called like its operator
    if isinstance(truth["leaf_calls"], int):
        assert sum(row.calls or 0 for row in called) == truth["leaf_calls"]
        return
    assert {row.path: _first_shapes(row) for row in called} == _shapes(truth["leaf_calls"])
    assert {row.path: row.params for row in called} == {one["module"]: one["own_params"] for one in truth["leaf_calls"]}


def _spec(tensor: Any) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _first_shapes(row: Layer) -> list[list[Any]]:
    return [list(call[0].shape) for call in row.outputs]


def _shapes(calls: list[dict[str, Any]]) -> dict[str, list[list[int]]]:
    found: dict[str, list[list[int]]] = {}
    for one in calls:
        shapes = found.setdefault(one["module"], [])
        if one["output_shape"] not in shapes:
            shapes.append(one["output_shape"])
    return found


DETECTORS = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": (19_386_354, None),
    "fasterrcnn_mobilenet_v3_large_fpn": (19_386_354, None),
    "fasterrcnn_resnet50_fpn": (41_755_286, 134.380),
    "fasterrcnn_resnet50_fpn_v2": (43_712_278, 280.371),
    "maskrcnn_resnet50_fpn": (44_401_393, None),
    "maskrcnn_resnet50_fpn_v2": (46_359_409, None),
}
"""Params and GMACs at one image of 3x512x512 (`num_params` and `_ops` of COCO_V1). GMACs depend on how many boxes the
weights find: those at the full number of proposals are given, and not those of trained weights that find fewer, or of
masks on top of them."""


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_published_detectors(name: str, monkeypatch: pytest.MonkeyPatch, count: Callable[..., Summary]) -> None:
    """Built as with their weights, but without them: params are exact; GMACs depend on the values, and a note says so."""
    models = pytest.importorskip("torchvision.models")
    params, gmacs = DETECTORS[name]
    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", lambda *args, **kwargs: {})
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *args, **kwargs: None)
    summary = count(lambda: models.get_model(name, weights="COCO_V1"), {"args": [["float32[3, 512, 512]"]]})
    assert summary.params == params
    assert summary.real_run
    assert summary.flops.value is None
    (seen,) = [note for note in summary.notes if "FLOPs depend on them" in note]
    assert gmacs is None or f"{2 * gmacs:.1f} GFLOPs" in seen


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("row", _zoo())
def test_torchvision(row: dict[str, str], count: Callable[..., Summary]) -> None:
    """Params are exact, GMACs as published to four digits, the batch is symbolic, and nothing is left uncounted."""
    models = pytest.importorskip("torchvision.models")

    def build() -> Any:
        return models.get_model(row["builder"], weights=None, **json.loads(row["kwargs"]))

    if row["kind"] == "detection":
        assert count(build, {"args": [["float32[3, 320, 320]"]]}).params == int(row["params"])
        return
    shape = ", ".join(["B", *row["input"].split("x")[1:]])
    summary = count(build, f"float32[{shape}]", B=1)
    assert summary.params == int(row["params"])
    assert summary.flops.value is not None
    assert summary.flops.value / 2e9 == pytest.approx(float(row["gmacs"]), abs=6e-5)
    assert summary.flops.uncounted == ()
    assert [note for note in summary.notes if not note.startswith("activation_bytes")] == []
    assert {spec.shape[0] for spec in summary.outputs} == {"B"}
