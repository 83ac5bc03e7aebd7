"""Names of dimensions in ONNX files, which may be any text."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import helper

from pytest_modelbudget.api import summarize
from pytest_modelbudget.backends.exported.onnx import read
from tests.backends.exported.onnx_files import graph, save


@pytest.mark.parametrize(
    ("dims", "shape"),
    [
        pytest.param(["N", "T + 1"], "[N, T+1, 8]", id="an expression"),
        pytest.param(["batch", "batch-1"], "[batch, batch-1, 8]", id="a difference of what is a dimension"),
        pytest.param(["batch-size", "seq len"], "[batch_size, seq_len, 8]", id="words"),
        pytest.param(["batch-size", "batch_size"], "[batch_size_2, batch_size, 8]", id="a name that another has"),
        pytest.param(["B<i>", "b:1"], "[B_i, b_1, 8]", id="signs"),
        pytest.param(["[N]", "N,"], "[N, N_2, 8]", id="two names that differ by signs"),
        pytest.param(["{N}", "{N}"], "[N, N, 8]", id="one name twice"),
        pytest.param(["1x", "floor(H/4)"], "[dim_1x, floor_H_4, 8]", id="what no grammar has"),
        pytest.param(["N", "7"], "[N, 7, 8]", id="a size as a text"),
        pytest.param(["N", "?"], "[N, ?, 8]", id="no name at all"),
    ],
)
def test_names_of_dimensions(tmp_path: Path, dims: list[str], shape: str) -> None:
    """What is no expression of dimensions is one symbol, the same for all values."""
    made = graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [*dims, 8]}, {"y": [*dims, 8]}, {"w": (8, 8)})
    values = read(save(tmp_path / "m.onnx", made)).values
    assert [str(values[name]) for name in "xy"] == [f"float32{shape}"] * 2


def test_a_batch_by_any_name(tmp_path: Path) -> None:
    """The one first dimension of all inputs is the batch, whatever it is called."""
    made = graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["Batch<8>", 8]}, {"y": ["Batch<8>", 8]}, {"w": (8, 8)}
    )
    assert summarize(save(tmp_path / "m.onnx", made), batch=4).flops.value == 4 * 2 * 8 * 8
