"""Published sizes of timm's models, at the size of image they were published for."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget.summary import Summary

DATA = Path(__file__).parents[2] / "data" / "timm.csv"


def _rows() -> list[Any]:
    """Those of models that timm still has, under a definition that it has not changed since."""
    with DATA.open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    return [pytest.param(row, id=f"{row['model']}-{row['image']}") for row in rows if row["params"]]


def _build(timm: Any, row: dict[str, str]) -> Any:
    size = int(row["image"])
    if (known := timm.get_pretrained_cfg(row["model"])) and known.input_size[-1] == size:
        return timm.create_model(row["model"])
    try:
        return timm.create_model(row["model"], img_size=size)
    except TypeError:  # convolutions alone take any size
        return timm.create_model(row["model"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", _rows())
def test_published_params_and_gmacs(row: dict[str, str], count: Callable[..., Summary]) -> None:
    """Params are exact, GMACs within 0.2 % (as far as they are printed)."""
    timm = pytest.importorskip("timm")
    summary = count(lambda: _build(timm, row), f"float32[B, 3, {row['image']}, {row['image']}]", B=1)
    assert summary.params == int(row["params"])
    assert summary.flops.value
    if row["gmacs"]:
        assert summary.flops.value / 2e9 == pytest.approx(float(row["gmacs"]), rel=2e-3, abs=6e-5)
